"""A training step of the 1.5B's true shape with random weights: this project's beside plain TRL's, on the GPU that is here.

    python bench/gpu/step.py          on one H100; needs this package, and vllm where it should sample
    python bench/gpu/step.py --toy    the same at a toy shape, on any machine

LoRA, DoRA and full fine-tuning; G = 8 completions of up to 4,096 tokens that end at random (one token in 2,048 is an end).
Under eight minutes, as docs/planning.md reckons an H100's steps. Without vLLM both decode by transformers' generate, which
takes seven times as long per token: then completions end at 512 tokens. Continuous batching draws all that it decodes at once
from one generator, while here every completion has its own seed, so it is not used. TRL runs with its defaults, and with the
same sampler, batch and precision. Each side and method has a process of its own, in turn; the first step of each is left out,
medians of the others are shown. Necessary operations are the same on both sides: what is decoded once, and a forward and a
backward pass over tokens that are no padding; recomputing counts as time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIDES, METHODS = ("ours", "plain"), ("lora", "dora", "full")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRUE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "vocab_size": 151936,
}
TOY = {"hidden_size": 192, "intermediate_size": 1120, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 4096}
MEAN_TOKENS = {False: 2048, True: 48}  # by --toy


def make_world(folder: Path, toy: bool) -> None:
    """model/ with random weights and a tokenizer of as many words, train.jsonl, test.jsonl."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from rlvr_sweeps.assets.tiny import make_tokenizer

    shape, tokenizer = TOY if toy else TRUE, make_tokenizer()  # knows 288 of the tokens; the others are nothing when read
    size = shape["vocab_size"]
    torch.manual_seed(0)
    # With random weights every token is about as likely.
    ends = [tokenizer.eos_token_id, *range(size - size // MEAN_TOKENS[toy] + 1, size)]
    config = Qwen2Config(
        **shape, num_key_value_heads=2, max_position_embeddings=131072, tie_word_embeddings=False, eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count in (("train", 512), ("test", 4)):
        rows = (
            {"question": f"What is {number} + {number + 1}? " * 4, "answer": str(2 * number + 1)} for number in range(count)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(options: argparse.Namespace, world: Path, steps: list[dict[str, Any]]) -> Any:
    """This project's trainer by its own configuration."""
    from rlvr_sweeps.config.compose import offline_composer
    from rlvr_sweeps.runs.directory import Run
    from rlvr_sweeps.training import train

    cfg = offline_composer().point([
        "model=local", "model.name=bench", f"model.path={world}/model", "model.revision=null", f"data.path={world}/train.jsonl",
        f"benchmark.local.path={world}/test.jsonl", "algo=dapo_released", f"peft={options.method}", *rank(options),
        f"rollout={'vllm' if options.vllm else 'hf'}", *(["rollout.vllm.gpu_memory_utilization=0.3"] if options.vllm else []),
        f"rollout.max_tokens={options.tokens}", f"batch_size={options.batch}", "steps=10000", "training.save_every=100000",
        f"training.per_device_batch_size={options.per_device}", f"model.autocast_bf16={options.cuda}", "untested_versions=true",
        f"runs_dir={world}/runs", "cluster.gpu=null",
    ]).cfg  # fmt: skip
    run = Run.of(cfg)
    run.prepare(cfg)
    trainer, _ = train.build(run, cfg)
    trainer.add_callback(watch(options, steps))
    return trainer


def rank(options: argparse.Namespace) -> list[str]:
    return [] if options.method == "full" else ["rank=32"]


def plain(options: argparse.Namespace, world: Path, steps: list[dict[str, Any]]) -> Any:
    """TRL's GRPOTrainer with its defaults, as a user would write it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    sampler = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3} if options.vllm else {}
    config = GRPOConfig(
        output_dir=str(world / "trl"), max_steps=10_000, learning_rate=1e-5, per_device_train_batch_size=options.per_device,
        gradient_accumulation_steps=options.batch // options.per_device, num_generations=8,
        max_completion_length=options.tokens,
        save_strategy="no", report_to="none", logging_steps=1, bf16=options.cuda, use_cpu=not options.cuda, **sampler,
    )  # fmt: skip
    adapter = None
    if options.method != "full":
        adapter = LoraConfig(
            r=32,
            lora_alpha=64,
            lora_dropout=0.05,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
            use_dora=options.method == "dora",
        )
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    return GRPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer, peft_config=adapter,
        reward_funcs=lambda completions, **_: [float(len(each[0]["content"]) % 2) for each in completions],
        callbacks=[watch(options, steps)],
    )  # fmt: skip


def watch(options: argparse.Namespace, steps: list[dict[str, Any]]) -> Any:
    """A callback that notes seconds and lengths of every step, and stops when the time is over and three are done."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()
            self.first = getattr(self, "first", self.start)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if options.cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            steps.append({"seconds": now - self.start})
            over = now - self.first + steps[-1]["seconds"] > options.seconds
            control.should_training_stop = len(steps) >= 3 and over

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "completions/mean_length" in logs:
                steps[-1]["tokens"] = logs["completions/mean_length"]

    return Watch()


def measure(options: argparse.Namespace) -> None:
    """One side and method, in this process: prints medians as JSON."""
    import torch

    steps: list[dict[str, Any]] = []
    world = Path(options.world)
    trainer = (ours if options.side == "ours" else plain)(options, world, steps)
    trainer.train()
    kept = [step for step in steps[1:] if "tokens" in step]
    print(json.dumps({
        "seconds": statistics.median(step["seconds"] for step in kept), "steps": len(kept),
        "tokens": statistics.fmean(step["tokens"] for step in kept),
        "gib": torch.cuda.max_memory_reserved() / 2**30 if options.cuda else None,
        "device": torch.cuda.get_device_name() if options.cuda else "one core",
    }))  # fmt: skip


def operations(options: argparse.Namespace, tokens: float) -> float:
    """Necessary in a step: completions decoded once, then forward and backward, gradients of what is trained included."""
    from rlvr_sweeps.planning.timing import forward_operations

    model = (TOY if options.toy else TRUE) | {"num_key_value_heads": 2, "model_type": "qwen2", "tie_word_embeddings": False}
    passes = 1 + (3 if options.method == "full" else 2)
    return passes * forward_operations(model, options.batch, tokens, 4 / 3 * tokens**2)


def in_words(options: argparse.Namespace, found: dict[str, Any]) -> str:
    from rlvr_sweeps.planning.hardware import gpu_by_driver_name

    gpu = gpu_by_driver_name(found["device"])
    words = f"{found['seconds']:7.2f} s a step, {found['tokens']:,.0f} tokens per completion ({found['steps']} steps), "
    words += f"{options.batch * found['tokens'] / found['seconds']:,.0f} tokens/s"
    words += f", {found['gib']:.0f} GiB" if found["gib"] else ""
    share = operations(options, found["tokens"]) / found["seconds"] / (gpu.bf16_tflops * 1e12) if gpu else None
    return words + (f", {100 * share:.1f} % of the peak" if share else f", on {found['device']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--seconds", type=float, default=40, help="of steps per side and method")
    parser.add_argument("--tokens", type=int, help="the longest completion: 4096, without vLLM 512, with --toy 96")
    parser.add_argument("--batch", type=int, default=32, help="completions per step")
    parser.add_argument("--per-device", type=int, default=4, help="completions per forward pass")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    for hidden in ("--side", "--method", "--world"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    options.cuda, options.vllm = torch.cuda.is_available(), torch.cuda.is_available() and find_spec("vllm") is not None
    options.tokens = options.tokens or (96 if options.toy else 4096 if options.vllm else 512)
    if options.side:
        measure(options)
        return
    sampler = "vLLM" if options.vllm else "transformers"
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {sampler} samples")
    print(f"{options.batch} completions of at most {options.tokens:,} tokens a step")
    with tempfile.TemporaryDirectory() as world:
        make_world(Path(world), options.toy)
        seconds: dict[tuple[str, str], float] = {}
        for method in options.methods:
            options.method = method
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--method", method, "--world", world]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"  {method:<5} {side:<6} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                seconds[method, side] = found["seconds"]
                print(f"  {method:<5} {side:<6} {in_words(options, found)}")
            if all((method, side) in seconds for side in SIDES):
                print(f"  {method:<5} plain TRL takes {seconds[method, 'plain'] / seconds[method, 'ours']:.2f} times as long")
        for side in SIDES:
            if ("lora", side) in seconds and ("dora", side) in seconds:
                print(f"  {side}: DoRA's step takes {seconds['dora', side] / seconds['lora', side]:.2f} times LoRA's")


if __name__ == "__main__":
    main()
