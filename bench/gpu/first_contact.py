"""Measure this machine's GPU for the cost model: bench/gpu/first_contact.sh starts this file.

Each part runs in a process of its own with a time limit, one after another; one that fails is recorded, and the others go on:

    doctor   the checks of `rlvr doctor`
    svd      an exact SVD in float64 of each shape of layer, on the device and on one CPU thread
    load     the weights onto the device: seconds, and host memory
    decode   vLLM: start, size of the KV cache, seconds per token at several numbers of sequences
    step     bench/gpu/step.py: an update beside plain TRL's
    share    a training with vLLM alone, and two at the same time on one GPU

`python -m rlvr_sweeps.planning.calibration OUT/first_contact.json` prints what follows from the results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smoke import ROOT, describe_machine
from step import make_model, write_problems

LIMITS_S = {"doctor": 60, "svd": 120, "load": 120, "decode": 180, "step": 240, "share": 300}
SEQUENCES = {"cuda": (1, 8, 32, 128, 256, 512, 1024), "cpu": (1, 4, 16)}
PROMPT_TOKENS, FEWER_TOKENS, MORE_TOKENS = 64, 32, 160  # a pass is the difference of two lengths: prompts and start cancel
LARGEST_SVD = 3  # layers of different shapes


def load_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and host memory of loading the weights."""
    import torch

    from rlvr_sweeps.training.models import load_weights, own_device

    before, start = anonymous_gib(), time.perf_counter()
    with HostPeak() as peak:
        model = load_weights(options.model, own_device())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "seconds": time.perf_counter() - start, "weights_gib": size / 2**30, "host_gib": peak.gib - before,
        "process_gib": anonymous_gib(), "device": str(next(model.parameters()).device),
    }  # fmt: skip


def svd_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of an SVD of the largest layers of different shapes, and the error that its check finds."""
    import torch

    from rlvr_sweeps.training.methods.svd import svd_by_qr, svd_error
    from rlvr_sweeps.training.models import PublishedWeights, own_device

    torch.set_num_threads(1)
    weights, shapes, layers = PublishedWeights(Path(options.model)), {}, []
    for name in weights.file_of:
        if name.endswith("_proj.weight"):
            weight = weights[name]
            shapes.setdefault(tuple(sorted(weight.shape)), weight)
    for shape in sorted(shapes, key=lambda shape: -(shape[0] ** 2) * shape[1])[:LARGEST_SVD]:
        weight = shapes[shape] if shapes[shape].shape[0] >= shapes[shape].shape[1] else shapes[shape].T
        matrix = weight.double().to(own_device())
        svd_by_qr(matrix[: shape[0] // 4, : shape[0] // 8])  # loads the library
        device_s, result = timed(lambda matrix=matrix: svd_by_qr(matrix))
        host = matrix.cpu()
        cpu_s, _ = timed(lambda host=host: torch.linalg.svd(host, full_matrices=False))
        rows, columns = matrix.shape
        layers.append(
            {"rows": rows, "columns": columns, "device_s": device_s, "cpu_s": cpu_s, "error": svd_error(matrix, result)}
        )
    return {"layers": layers}


def decode_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return vLLM's start, its KV cache, and the seconds of a decoding pass at several numbers of sequences."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams, TokensPrompt

    from rlvr_sweeps import patches

    settings: dict[str, Any] = {"gpu_memory_utilization": 0.8, "dtype": "bfloat16"}
    if options.device == "cpu":
        patches.keep_cpu_weights_unpacked()
        settings = {"kv_cache_memory_bytes": 2**28, "enforce_eager": True, "dtype": "float32", "max_num_batched_tokens": 16384}
    start = time.perf_counter()
    llm = LLM(options.model, max_model_len=PROMPT_TOKENS + MORE_TOKENS, seed=0, **settings)
    start_s, config = time.perf_counter() - start, llm.llm_engine.vllm_config
    slots = config.scheduler_config.max_num_seqs

    def decode(sequences: int, tokens: int) -> float:
        prompts = [TokensPrompt(prompt_token_ids=[5 + index % 64] * PROMPT_TOKENS) for index in range(sequences)]
        parameters = [
            SamplingParams(max_tokens=tokens, ignore_eos=True, seed=index, detokenize=False) for index in range(sequences)
        ]
        return timed(lambda: llm.generate(prompts, parameters, use_tqdm=False))[0]

    passes = []
    for sequences in (number for number in SEQUENCES[options.device] if number <= slots):
        decode(sequences, 2)
        seconds = decode(sequences, MORE_TOKENS) - decode(sequences, FEWER_TOKENS)
        passes.append({"sequences": sequences, "pass_s": seconds / (MORE_TOKENS - FEWER_TOKENS)})
    return {
        "start_s": start_s, "max_num_seqs": slots,
        "cache_tokens": config.cache_config.num_gpu_blocks * config.cache_config.block_size,
        "bytes_per_weight": 2 if options.device == "cuda" else 4,
        "context_tokens": PROMPT_TOKENS + (MORE_TOKENS + FEWER_TOKENS) / 2, "passes": passes, "host_gib": anonymous_gib(),
        "model_runner": "V2" if config.use_v2_model_runner else "V1",
    }  # fmt: skip


def step_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return the results of bench/gpu/step.py for LoRA."""
    file = Path(options.out) / "step.json"
    size = ["--model", options.model, "--tokens", "16384", "--seconds", "30"]
    if options.device == "cpu":
        size = ["--toy", "--tokens", "48", "--batch", "8", "--seconds", "1"]  # the embedded model has 256 positions
    command = [sys.executable, "bench/gpu/step.py", "--methods", "lora", "--output", str(file), *size]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not file.exists():
        raise RuntimeError(last_line(process.stderr))
    return dict(json.loads(file.read_text()))


def share_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds per step of a training with vLLM alone, and of two at the same time."""
    write_problems(Path(options.out))
    if options.device == "cpu" and options.model != embedded_model():
        raise ValueError("On a CPU this part trains the embedded model. Leave --model out.")
    alone, together = train(options, "alone", [1]), train(options, "together", [2, 3])
    return {"alone_s": alone, "together_s": together, "slowdown": max(0.0, together / alone - 1)}


def train(options: argparse.Namespace, name: str, seeds: list[int]) -> float:
    """Train a run per seed, all at the same time, and return the median seconds per step, without each run's first step."""
    out, count = Path(options.out) / name, len(seeds)
    arguments = [
        "peft=lora", "algo=dapo_released", "rollout=vllm", "evaluation.engine=transformers", "evaluation.max_tokens=16",
        f"seed={','.join(map(str, seeds))}", f"cluster.runs_per_gpu={count}", f"hydra.launcher.workers={count}",
        "analysis=none", "signal_check=off", "untested_versions=true", f"runs_dir={out}/runs", f"hydra.sweep.dir={out}/launch",
    ]  # fmt: skip
    if options.device == "cpu":
        tiers = ["benchmark.tier1.k=1", *(f"~benchmark.tier{number}" for number in (2, 3, 4, 5))]
        arguments += ["model=tiny", "batch_size=16", "steps=3", *tiers]
    else:
        arguments += [
            "model=local", "model.name=contact", f"model.path={options.model}", f"data.path={options.out}/train.jsonl",
            f"benchmark.local.path={options.out}/test.jsonl", "benchmark.local.k=1",
            "rollout.max_tokens=4096", "batch_size=32", "steps=5", "training.per_device_batch_size=1",
            "model.autocast_bf16=true", "rollout.vllm.gpu_memory_utilization=0.4", "cluster.gpu=auto",
        ]  # fmt: skip
    process = subprocess.run([sys.executable, "launch.py", "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    files = sorted((out / "runs").glob("*/metrics.jsonl"))
    if process.returncode or len(files) != count:
        raise RuntimeError(last_line(process.stderr + process.stdout))
    from rlvr_sweeps.runs.reading import STEP_SECONDS

    steps = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return statistics.median(sum(row[phase] for phase in STEP_SECONDS) for row in steps if row["step"] > 1)


def doctor_part(options: argparse.Namespace) -> dict[str, Any]:
    """Return the findings of `rlvr doctor`."""
    command = [sys.executable, "-m", "rlvr_sweeps.cli", "doctor", f"{options.out}/", "--json"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        return {"findings": json.loads(process.stdout)}
    except json.JSONDecodeError:
        raise RuntimeError(last_line(process.stderr)) from None


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "doctor": doctor_part, "svd": svd_part, "load": load_part, "decode": decode_part, "step": step_part, "share": share_part,
}  # fmt: skip


def embedded_model() -> str:
    """Return the folder of the embedded model."""
    from rlvr_sweeps.assets.locations import weights_folder
    from rlvr_sweeps.config.compose import offline_composer

    return str(weights_folder(offline_composer().point([]).cfg))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` takes, the GPU's included, and its result."""
    import torch

    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else int
    synchronise()
    start = time.perf_counter()
    result = work()
    synchronise()
    return time.perf_counter() - start, result


def anonymous_gib() -> float:
    """Return the memory of this process that belongs to no file, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**20


class HostPeak:
    """Context in which a thread reads `anonymous_gib` every 5 ms; `gib` is the largest value."""

    def __enter__(self) -> "HostPeak":
        self.gib, self.ended = anonymous_gib(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.005):
            self.gib = max(self.gib, anonymous_gib())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def last_line(output: str) -> str:
    """Return the last line of a program's output that is not empty, and not Hydra's hint."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return lines[-1] if lines else "no output"


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a part measured in its own process, and its seconds; its error where it failed."""
    arguments = ["--part", name, "--device", options.device, "--model", options.model, "--out", str(options.out)]
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    try:
        process = subprocess.run(
            [sys.executable, __file__, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment,
            timeout=options.limit or LIMITS_S[name],
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        return {"error": f"not finished after {expired.timeout:.0f} s"}
    (options.out / f"{name}.txt").write_text(process.stdout + process.stderr)
    if process.returncode:
        return {"error": last_line(process.stderr)}
    return {**json.loads(process.stdout.splitlines()[-1]), "part_s": time.perf_counter() - start}


def main() -> int:
    """Measure all parts and write first_contact.json after each; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a reduced form without a GPU")
    parser.add_argument(
        "--model", help="folder with weights; by default random ones of the 1.5B's shape, on a CPU the embedded"
    )
    parser.add_argument("--out", type=Path, default=Path("first-contact"), help="folder of the output")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="measure only these")
    parser.add_argument("--limit", type=float, help="seconds for each part, in place of the limits of a GPU session")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # passed by this script to its own processes
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no GPU. The reduced form: bench/gpu/first_contact.sh --device cpu.",
            file=sys.stderr,
        )
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    start, described = time.perf_counter(), options.model
    if options.model is None:
        described = "the embedded model" if options.device == "cpu" else "random weights of the 1.5B's shape"
        options.model = embedded_model() if options.device == "cpu" else str(options.out / "model")
        if options.device == "cuda":
            make_model(Path(options.model), toy=False)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "model": described, "architecture": json.loads((Path(options.model) / "config.json").read_text()),
        "machine": describe_machine(), "parts": {},
    }  # fmt: skip
    for name in options.parts:
        print(f"{time.perf_counter() - start:5.0f} s  {name}", flush=True)
        results["parts"][name] = run_part(name, options)
        results["seconds"] = time.perf_counter() - start
        (options.out / "first_contact.json").write_text(json.dumps(results, indent=1) + "\n")
    from rlvr_sweeps.planning import calibration

    print()
    calibration.main([str(options.out / "first_contact.json")])
    return int(any("error" in part for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
