"""Compare a training step of rlvr_sweeps with one of plain TRL: phases, memory, share of the peak, tokens per second.

    python bench/gpu/step.py --model PATH_OR_NAME --tokens 16384 --output FILE.json
    python bench/gpu/step.py          the 1.5B's shape with random weights, on this machine's GPU
    python bench/gpu/step.py --toy    a small shape, on any machine

PATH_OR_NAME is a folder with config.json, weights and a tokenizer, or a file of conf/model. By default both implementations
get the same prompts and completions, of lengths spread evenly up to --tokens, so the update is measured on padded rows and
nothing is decoded. With --sample the model samples them (with vLLM on a GPU that has it), and decoding takes most of the time.

Methods are LoRA, DoRA and full fine-tuning, G = 8. TRL runs with its defaults and the same sampler, batch and precision. Each
implementation and method runs in its own process, one after another; the exit status is 1 where one of rlvr_sweeps failed.
Medians leave out the first step. The share of the peak counts necessary operations, which are the same for both: a forward
and a backward pass over the tokens without padding, and with --sample each completion decoded once. Recomputation adds to the
time and not to the operations. FILE.json holds options, device, versions and one entry per implementation and method:

    seconds, steps, phases (sampling, forward, backward, rest; in seconds), tokens (of the step's rows, prompts included),
    positions (computed in the update, padding included), tokens_per_second, share_of_peak, memory_gib (peak: reserved on the
    GPU, else of the process), mask_bytes (of the largest mask that attention received, 0 for none); or error
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMPLEMENTATIONS, METHODS, GROUP_SIZE = ("rlvr_sweeps", "trl"), ("lora", "dora", "full"), 8
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
MEAN_TOKENS = {False: 2048, True: 48}  # of a sampled completion without a limit, by --toy
LONGEST_PROMPT, SHORTEST_LIMIT = 512, 64  # tokens of a prompt; less than SHORTEST_LIMIT would leave no problem
PHASES = ("sampling", "forward", "backward", "rest")


def make_model(folder: Path, toy: bool) -> None:
    """Write a model with random weights, and a tokenizer."""
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_problems(folder: Path) -> None:
    """Write train.jsonl and test.jsonl, with questions of eight lengths."""
    for name, count in (("train", 512), ("test", 4)):
        rows = (
            {"question": f"What is {number} + {number + 1}? " * (1 + number % 8), "answer": str(2 * number + 1)}
            for number in range(count)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def model_folder(options: argparse.Namespace, world: Path) -> Path:
    """Return the folder of the measured model; make, convert or download it where that has not been done."""
    if options.model is None:
        make_model(world / "model", options.toy)
        return world / "model"
    if (Path(options.model).expanduser() / "config.json").exists():
        return Path(options.model).expanduser().absolute()
    from rlvr_sweeps.assets.locations import weights_folder
    from rlvr_sweeps.config.compose import offline_composer

    return weights_folder(offline_composer().point([f"model={options.model}"]).cfg)


def given_rows(options: argparse.Namespace, step: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts and completions of a step as token ids: lengths spread evenly up to --prompt and --tokens."""
    generator, groups = random.Random(step), options.batch // GROUP_SIZE
    prompts = [max(2, options.prompt * (index + 1) // groups) for index in range(groups)]
    completions = [max(1, options.tokens * (index + 1) // options.batch) for index in range(options.batch)]
    generator.shuffle(prompts)
    generator.shuffle(completions)
    return [[5] * length for length in prompts for _ in range(GROUP_SIZE)], [[5] * length for length in completions]


def make_own_trainer(options: argparse.Namespace, world: Path) -> Any:
    """Return the trainer of rlvr_sweeps, built from a composed configuration."""
    import torch

    from rlvr_sweeps.config.compose import offline_composer
    from rlvr_sweeps.runs.directory import Run
    from rlvr_sweeps.training import train
    from rlvr_sweeps.training.dynamic_sampling import Group

    vllm = options.sample and options.vllm
    cfg = offline_composer().point([
        "model=local", "model.name=bench", f"model.path={options.folder}", "model.revision=null",
        f"data.path={world}/train.jsonl", f"benchmark.local.path={world}/test.jsonl",
        "algo=dapo_released", f"peft={options.method}", *rank_override(options),
        f"rollout={'vllm' if vllm else 'hf'}", *(["rollout.vllm.gpu_memory_utilization=0.3"] if vllm else []),
        f"rollout.max_tokens={options.tokens}", f"data.max_prompt_tokens={options.prompt}",
        f"batch_size={options.batch}", "steps=10000", "training.save_every=100000",
        f"training.per_device_batch_size={options.per_device}", f"model.autocast_bf16={options.cuda}", "untested_versions=true",
        f"runs_dir={world}/runs", "cluster.gpu=null", "signal_check=off", f"rollout.group_size={GROUP_SIZE}",
    ]).cfg  # fmt: skip
    run = Run.of(cfg)
    run.prepare(cfg)
    trainer, _ = train.build(run, cfg)

    def given_groups(count: int) -> list[Group]:
        prompts, completions = given_rows(options, trainer.state.global_step)
        texts, groups = [[{"role": "assistant", "content": ""}]] * GROUP_SIZE, []
        rewards = torch.tensor([[float(index % 2)] * len(trainer.score_functions) for index in range(GROUP_SIZE)])
        for index, (_, row) in enumerate(trainer.prompts.take(count)):
            part, reasons = slice(index * GROUP_SIZE, (index + 1) * GROUP_SIZE), ["correct"] * GROUP_SIZE
            correct = [index % 2 == 1 for index in range(GROUP_SIZE)]
            groups.append(Group([row] * GROUP_SIZE, prompts[part], completions[part], texts, None, rewards, reasons, correct))
        return groups

    if not options.sample:
        trainer.roll = given_groups
    return trainer


def rank_override(options: argparse.Namespace) -> list[str]:
    """Return the override of the rank; none for full fine-tuning."""
    return [] if options.method == "full" else ["rank=32"]


def make_trl_trainer(options: argparse.Namespace, world: Path) -> Any:
    """Return TRL's GRPOTrainer with its defaults."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    sampler = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    config = GRPOConfig(
        output_dir=str(world / "trl"), max_steps=10_000, learning_rate=1e-5, per_device_train_batch_size=options.per_device,
        gradient_accumulation_steps=options.batch // options.per_device, num_generations=GROUP_SIZE,
        max_completion_length=options.tokens, save_strategy="no", report_to="none", logging_steps=1, bf16=options.cuda,
        use_cpu=not options.cuda, **(sampler if options.sample and options.vllm else {}),
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
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)

    def given_completions(_: list[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids, completion_ids = given_rows(options, trainer.state.global_step)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return GRPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer, peft_config=adapter,
        reward_funcs=lambda completions, **_: [float(index % 2) for index, _ in enumerate(completions)],
        rollout_func=None if options.sample else given_completions,
    )  # fmt: skip


def time_calls(trainer: Any, name: str, seconds: dict[str, float], synchronise: Callable[[], object]) -> None:
    """Add the seconds of every call of a method of `trainer` to `seconds[name]`."""
    method = getattr(trainer, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronise()
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            synchronise()
            seconds[name] += time.perf_counter() - start

    setattr(trainer, name, timed)


def observe_model(model: Any, counts: dict[str, int]) -> None:
    """Count the positions of forward passes with gradient, and keep the bytes of the largest mask that attention receives."""
    import torch

    def count_positions(_: Any, inputs: Any) -> None:
        counts["positions"] += inputs[0].numel() if torch.is_grad_enabled() else 0

    def measure_mask(_: Any, __: Any, keywords: Any) -> None:
        mask = keywords.get("attention_mask")
        if mask is not None and torch.is_grad_enabled():
            counts["mask_bytes"] = max(counts["mask_bytes"], mask.numel() * mask.element_size())

    model.get_input_embeddings().register_forward_pre_hook(count_positions)
    attention = next(module for name, module in model.named_modules() if name.endswith("self_attn"))
    attention.register_forward_pre_hook(measure_mask, with_kwargs=True)


def add_recorder(trainer: Any, options: argparse.Namespace, steps: list[dict[str, Any]]) -> None:
    """Append seconds, phases, positions and tokens of every step to `steps`.

    The training ends when at least three steps are done and another one would exceed `options.seconds`.
    """
    import torch
    from transformers import TrainerCallback

    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    synchronise = torch.cuda.synchronize if options.cuda else int
    for name in ("_generate_and_score_completions", "compute_loss", "training_step"):
        time_calls(trainer, name, seconds, synchronise)
    observe_model(trainer.model, counts)

    class StepRecorder(TrainerCallback):
        """Callback that records every step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise()
            seconds.clear()
            counts["positions"] = 0
            self.start, self.tokens = time.perf_counter(), state.num_input_tokens_seen
            self.first = getattr(self, "first", self.start)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise()
            now = time.perf_counter()
            sampling, forward = seconds["_generate_and_score_completions"], seconds["compute_loss"]
            backward, step = seconds["training_step"] - sampling - forward, now - self.start
            phases = dict(zip(PHASES, (sampling, forward, backward, step - seconds["training_step"]), strict=True))
            tokens = int(state.num_input_tokens_seen - self.tokens)
            steps.append({"seconds": step, "phases": phases, "tokens": tokens, **counts})
            out_of_time = now - self.first + step > options.seconds
            control.should_training_stop = len(steps) >= 3 and out_of_time

    trainer.add_callback(StepRecorder())


def measure(options: argparse.Namespace) -> None:
    """Train with one implementation and method in this process, and print its medians as JSON."""
    import torch

    steps: list[dict[str, Any]] = []
    make_trainer = make_own_trainer if options.implementation == "rlvr_sweeps" else make_trl_trainer
    trainer = make_trainer(options, Path(options.world))
    add_recorder(trainer, options, steps)
    trainer.train()
    measured = steps[1:]
    process_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({
        "seconds": statistics.median(step["seconds"] for step in measured), "steps": len(measured),
        "phases": {phase: statistics.median(step["phases"][phase] for step in measured) for phase in PHASES},
        "tokens": statistics.fmean(step["tokens"] for step in measured),
        "positions": statistics.fmean(step["positions"] for step in measured),
        "mask_bytes": max(step.get("mask_bytes", 0) for step in measured),
        "memory_gib": torch.cuda.max_memory_reserved() / 2**30 if options.cuda else process_gib,
    }))  # fmt: skip


def operations(options: argparse.Namespace, tokens: float) -> float | None:
    """Return the operations that a step of `tokens` needs; None for an unknown architecture.

    These are a forward pass, a backward pass with the gradients of trained weights, and with --sample one pass for decoding.
    """
    from rlvr_sweeps.assets.architecture import base_parameters
    from rlvr_sweeps.planning.timing import forward_operations

    model = json.loads((Path(options.folder) / "config.json").read_text())
    if base_parameters(model) is None:
        return None
    passes, mean = options.sample + (3 if options.method == "full" else 2), tokens / options.batch
    return passes * forward_operations(model, options.batch, mean, 4 / 3 * mean**2)


def add_rates(options: argparse.Namespace, result: dict[str, Any], peak: float) -> dict[str, Any]:
    """Return the result with tokens per second and the share of the peak, `peak` operations per second."""
    needed = operations(options, result["tokens"])
    share = needed / result["seconds"] / peak if needed else None
    return result | {"tokens_per_second": result["tokens"] / result["seconds"], "share_of_peak": share}


def summary(result: dict[str, Any]) -> str:
    """Return one printed line of a result."""
    share = result["share_of_peak"]
    phases = ", ".join(f"{phase} {result['phases'][phase]:.2f}" for phase in PHASES)
    return (
        f"{result['seconds']:7.2f} s per step ({phases}), {result['tokens_per_second']:,.0f} tokens/s, "
        + (f"{100 * share:.1f} % of the peak, " if share else "")
        + f"{1 - result['tokens'] / result['positions']:.0%} padding, mask of {result['mask_bytes'] / 2**20:,.1f} MiB, "
        f"{result['memory_gib']:.1f} GiB"
    )


def describe_device(options: argparse.Namespace) -> tuple[str, float]:
    """Return this machine's GPU or its threads, and the peak in operations per second: bfloat16 on a GPU, else float32."""
    import torch

    from rlvr_sweeps.planning.hardware import gpu_by_driver_name
    from rlvr_sweeps.planning.profile import measured_peak

    if not options.cuda:
        return f"CPU, {torch.get_num_threads()} threads", measured_peak(torch.get_num_threads())
    name = torch.cuda.get_device_name()
    gpu = gpu_by_driver_name(name)
    return name, gpu.bf16_tflops * 1e12 if gpu else float("inf")


def parse_arguments() -> argparse.Namespace:
    """Return the options, with defaults that depend on the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, or a file of conf/model; by default random weights of the 1.5B's shape")
    parser.add_argument("--toy", action="store_true", help="random weights of a small shape")
    parser.add_argument("--tokens", type=int, help="limit of a completion; by default 16384, without a GPU 512, with --toy 96")
    parser.add_argument("--output", type=Path, help="file for the results, as JSON")
    parser.add_argument("--sample", action="store_true", help="let the model sample the completions")
    parser.add_argument("--seconds", type=float, default=40, help="seconds of steps per implementation and method")
    parser.add_argument("--batch", type=int, default=32, help="completions per step")
    parser.add_argument("--per-device", type=int, default=4, help="completions per forward pass")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    for option in ("--implementation", "--method", "--world", "--folder", "--prompt"):  # passed to this script's own processes
        parser.add_argument(option, help=argparse.SUPPRESS, type=int if option == "--prompt" else str)
    options = parser.parse_args()
    if options.batch % options.per_device or options.batch % GROUP_SIZE:
        parser.error(f"--batch {options.batch} must be a multiple of --per-device {options.per_device} and of {GROUP_SIZE}.")
    import torch

    options.cuda, options.vllm = torch.cuda.is_available(), torch.cuda.is_available() and find_spec("vllm") is not None
    options.tokens = options.tokens or (96 if options.toy else 16384 if options.cuda else 512)
    return options


def measure_in_process(options: argparse.Namespace, name: str, world: str) -> dict[str, Any]:
    """Return the result of one implementation and method, measured in a process of its own; its error where it failed."""
    arguments = ["--implementation", name, "--method", options.method, "--world", world, "--folder", str(options.folder)]
    arguments += ["--prompt", str(options.prompt)]
    process = subprocess.run([sys.executable, __file__, *sys.argv[1:], *arguments], capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {process.returncode}"}
    return json.loads(process.stdout.strip().splitlines()[-1])


def main() -> int:
    """Measure every implementation and method, print the results and their ratios, and write them to --output."""
    options = parse_arguments()
    if options.implementation:
        measure(options)
        return 0
    import torch

    device, peak = describe_device(options)
    source = ("sampled with vLLM" if options.vllm else "sampled with transformers") if options.sample else "given"
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "device": device, "peak_operations_per_second": peak,
        "model": options.model or ("random, toy" if options.toy else "random, 1.5B"), "completions": source,
        "tokens_limit": options.tokens, "batch": options.batch, "per_device": options.per_device, "results": [], "ratios": {},
    }  # fmt: skip
    print(f"{report['date']}, torch {torch.__version__}, {device}, model {report['model']}")
    print(f"{options.batch} completions of at most {options.tokens:,} tokens per step, {source}")
    with tempfile.TemporaryDirectory() as world:
        write_problems(Path(world))
        options.folder = model_folder(options, Path(world))
        positions = json.loads((options.folder / "config.json").read_text()).get("max_position_embeddings", 2**30)
        options.prompt = min(LONGEST_PROMPT, positions - options.tokens)
        if options.prompt < SHORTEST_LIMIT:
            most = positions - SHORTEST_LIMIT
            print(
                f"The model has {positions} positions, which --tokens {options.tokens} exceeds. Use at most {most}.",
                file=sys.stderr,
            )
            return 2
        seconds: dict[tuple[str, str], float] = {}
        for method in options.methods:
            options.method = method
            for name in IMPLEMENTATIONS:
                result = measure_in_process(options, name, world)
                if "error" in result:
                    print(f"  {method:<5} {name:<11} failed: {result['error']}")
                else:
                    result = add_rates(options, result, peak)
                    seconds[method, name] = result["seconds"]
                    print(f"  {method:<5} {name:<11} {summary(result)}", flush=True)
                report["results"].append({"implementation": name, "method": method, **result})
            if all((method, name) in seconds for name in IMPLEMENTATIONS):
                ratio = seconds[method, "trl"] / seconds[method, "rlvr_sweeps"]
                report["ratios"][f"{method}: trl / rlvr_sweeps"] = ratio
                print(f"  {method:<5} trl takes {ratio:.2f} times as long as rlvr_sweeps")
        for name in IMPLEMENTATIONS:
            if ("lora", name) in seconds and ("dora", name) in seconds:
                ratio = seconds["dora", name] / seconds["lora", name]
                report["ratios"][f"{name}: dora / lora"] = ratio
                print(f"  {name}: a DoRA step takes {ratio:.2f} times as long as a LoRA step")
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    own = [result for result in report["results"] if result["implementation"] == "rlvr_sweeps"]
    return int(any("error" in result for result in own))


if __name__ == "__main__":
    sys.exit(main())
