"""Compare a training step of rlvr_sweeps with one of plain TRL, at the 1.5B's shape with random weights, on this machine's GPU.

    python bench/gpu/step.py          on one H100; needs this package, and vllm for sampling with vLLM
    python bench/gpu/step.py --toy    at a small shape, on any machine

Methods are LoRA, DoRA and full fine-tuning. G = 8 completions of up to 4,096 tokens end at random: one token in 2,048 is an
end token. By the estimates of docs/planning.md it takes less than eight minutes on an H100. Without vLLM both implementations
decode with transformers' generate, which takes seven times as long per token, so the limit is then 512 tokens. Continuous
batching is not used, because it draws all samples from one generator and rlvr_sweeps has one seed per completion. TRL runs
with its defaults and the same sampler, batch and precision. Each implementation and method runs in its own process, one after
another. Medians leave out the first step. The share of the peak counts necessary operations, which are the same for both:
each completion decoded once, and a forward and a backward pass over its tokens without padding. Recomputation adds to the
time and not to the operations.
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

IMPLEMENTATIONS, METHODS = ("rlvr_sweeps", "trl"), ("lora", "dora", "full")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "vocab_size": 151936,
}
TOY_SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 1120,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 4096,
}
MEAN_TOKENS = {False: 2048, True: 48}  # of a completion without a limit, by --toy


def make_world(folder: Path, toy: bool) -> None:
    """Write model/ with random weights and a tokenizer, train.jsonl and test.jsonl."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from rlvr_sweeps.assets.tiny import make_tokenizer

    # The tokenizer has 288 of the tokens; the others decode to an empty text.
    shape, tokenizer = TOY_SHAPE if toy else SHAPE_1_5B, make_tokenizer()
    size = shape["vocab_size"]
    torch.manual_seed(0)
    # With random weights all tokens are about equally likely, so this many end tokens give the mean length.
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


def make_own_trainer(options: argparse.Namespace, world: Path, steps: list[dict[str, Any]]) -> Any:
    """Return the trainer of rlvr_sweeps, built from a composed configuration."""
    from rlvr_sweeps.config.compose import offline_composer
    from rlvr_sweeps.runs.directory import Run
    from rlvr_sweeps.training import train

    cfg = offline_composer().point([
        "model=local", "model.name=bench", f"model.path={world}/model", "model.revision=null", f"data.path={world}/train.jsonl",
        f"benchmark.local.path={world}/test.jsonl", "algo=dapo_released", f"peft={options.method}", *rank_override(options),
        f"rollout={'vllm' if options.vllm else 'hf'}", *(["rollout.vllm.gpu_memory_utilization=0.3"] if options.vllm else []),
        f"rollout.max_tokens={options.tokens}", f"batch_size={options.batch}", "steps=10000", "training.save_every=100000",
        f"training.per_device_batch_size={options.per_device}", f"model.autocast_bf16={options.cuda}", "untested_versions=true",
        f"runs_dir={world}/runs", "cluster.gpu=null",
    ]).cfg  # fmt: skip
    run = Run.of(cfg)
    run.prepare(cfg)
    trainer, _ = train.build(run, cfg)
    trainer.add_callback(make_recorder(options, steps))
    return trainer


def rank_override(options: argparse.Namespace) -> list[str]:
    """Return the override of the rank; none for full fine-tuning."""
    return [] if options.method == "full" else ["rank=32"]


def make_trl_trainer(options: argparse.Namespace, world: Path, steps: list[dict[str, Any]]) -> Any:
    """Return TRL's GRPOTrainer with its defaults."""
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
        reward_funcs=lambda completions, **_: [float(len(completion[0]["content"]) % 2) for completion in completions],
        callbacks=[make_recorder(options, steps)],
    )  # fmt: skip


def make_recorder(options: argparse.Namespace, steps: list[dict[str, Any]]) -> Any:
    """Return a callback that appends seconds and mean tokens of every step to `steps`.

    It stops the training when at least three steps are done and another one would exceed `options.seconds`.
    """
    import torch
    from transformers import TrainerCallback

    class StepRecorder(TrainerCallback):
        """Callback that records every step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()
            self.first = getattr(self, "first", self.start)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if options.cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            steps.append({"seconds": now - self.start})
            out_of_time = now - self.first + steps[-1]["seconds"] > options.seconds
            control.should_training_stop = len(steps) >= 3 and out_of_time

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "completions/mean_length" in logs:
                steps[-1]["tokens"] = logs["completions/mean_length"]

    return StepRecorder()


def measure(options: argparse.Namespace) -> None:
    """Train with one implementation and method in this process, and print its medians as JSON."""
    import torch

    steps: list[dict[str, Any]] = []
    world = Path(options.world)
    make_trainer = make_own_trainer if options.implementation == "rlvr_sweeps" else make_trl_trainer
    trainer = make_trainer(options, world, steps)
    trainer.train()
    measured = [step for step in steps[1:] if "tokens" in step]
    print(json.dumps({
        "seconds": statistics.median(step["seconds"] for step in measured), "steps": len(measured),
        "tokens": statistics.fmean(step["tokens"] for step in measured),
        "gib": torch.cuda.max_memory_reserved() / 2**30 if options.cuda else None,
        "device": torch.cuda.get_device_name() if options.cuda else "one core",
    }))  # fmt: skip


def operations(options: argparse.Namespace, tokens: float) -> float:
    """Return the operations that a step needs: decoding, a forward pass, a backward pass with gradients of trained weights."""
    from rlvr_sweeps.planning.timing import forward_operations

    model = (TOY_SHAPE if options.toy else SHAPE_1_5B) | {
        "num_key_value_heads": 2,
        "model_type": "qwen2",
        "tie_word_embeddings": False,
    }
    passes = 1 + (3 if options.method == "full" else 2)
    return passes * forward_operations(model, options.batch, tokens, 4 / 3 * tokens**2)


def summary(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Return one printed line: seconds, tokens, memory, and the share of the GPU's peak or the device."""
    from rlvr_sweeps.planning.hardware import gpu_by_driver_name

    gpu = gpu_by_driver_name(result["device"])
    text = f"{result['seconds']:7.2f} s per step, {result['tokens']:,.0f} tokens per completion ({result['steps']} steps), "
    text += f"{options.batch * result['tokens'] / result['seconds']:,.0f} tokens/s"
    text += f", {result['gib']:.0f} GiB" if result["gib"] else ""
    share = operations(options, result["tokens"]) / result["seconds"] / (gpu.bf16_tflops * 1e12) if gpu else None
    return text + (f", {100 * share:.1f} % of the peak" if share else f", on {result['device']}")


def main() -> None:
    """Measure every implementation and method, and print the results and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--seconds", type=float, default=40, help="seconds of steps per implementation and method")
    parser.add_argument("--tokens", type=int, help="limit of a completion; by default 4096, without vLLM 512, with --toy 96")
    parser.add_argument("--batch", type=int, default=32, help="completions per step")
    parser.add_argument("--per-device", type=int, default=4, help="completions per forward pass")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    for option in ("--implementation", "--method", "--world"):  # passed by this script to its own processes
        parser.add_argument(option, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    options.cuda, options.vllm = torch.cuda.is_available(), torch.cuda.is_available() and find_spec("vllm") is not None
    options.tokens = options.tokens or (96 if options.toy else 4096 if options.vllm else 512)
    if options.implementation:
        measure(options)
        return
    sampler = "vLLM" if options.vllm else "transformers"
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, sampling with {sampler}")
    print(f"{options.batch} completions of at most {options.tokens:,} tokens per step")
    with tempfile.TemporaryDirectory() as world:
        make_world(Path(world), options.toy)
        seconds: dict[tuple[str, str], float] = {}
        for method in options.methods:
            options.method = method
            for name in IMPLEMENTATIONS:
                arguments = ["--implementation", name, "--method", method, "--world", world]
                process = subprocess.run([sys.executable, __file__, *sys.argv[1:], *arguments], capture_output=True, text=True)
                if process.returncode:
                    print(f"  {method:<5} {name:<11} failed: {process.stderr.strip().splitlines()[-1]}")
                    continue
                result = json.loads(process.stdout.strip().splitlines()[-1])
                seconds[method, name] = result["seconds"]
                print(f"  {method:<5} {name:<11} {summary(options, result)}")
            if all((method, name) in seconds for name in IMPLEMENTATIONS):
                ratio = seconds[method, "trl"] / seconds[method, "rlvr_sweeps"]
                print(f"  {method:<5} trl takes {ratio:.2f} times as long as rlvr_sweeps")
        for name in IMPLEMENTATIONS:
            if ("lora", name) in seconds and ("dora", name) in seconds:
                ratio = seconds["dora", name] / seconds["lora", name]
                print(f"  {name}: a DoRA step takes {ratio:.2f} times as long as a LoRA step")


if __name__ == "__main__":
    main()
