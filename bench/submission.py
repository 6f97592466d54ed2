"""Measure launches of 6, 100 and 1,000 runs on Slurm, a repeated launch of finished runs, and a job's time outside its stage.

    SLURM_MAX_ARRAY=1001 tests/launching/slurm/with.sh .venv/bin/python bench/submission.py

It uses the tests' real Slurm of two virtual nodes. The partition is closed while launches are timed, so that no job runs.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planning import AXES, ROOT, fill, grid_of, points_of

from rlvr_sweeps.files import read_json
from rlvr_sweeps.launching.slurm import queue
from rlvr_sweeps.runs.directory import all_runs

SIX = {"peft": ["dora", "lora", "pissa"], "algo": ["dapo", "grpo"]}
HUNDRED = AXES | {"seed": range(1)}
NO_GPU = ["cluster=slurm", "cluster.train.gpus_per_node=0", "cluster.evaluate.gpus_per_node=0"]
SHORT = [
    "peft=lora",
    "algo=grpo",
    "steps=2",
    "analysis=none",
    "benchmark.tier1.k=1",
    *(f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)),
]
REPEATS = 4


def launch(folder: Path, *arguments: str) -> tuple[float, float, str]:
    """Return wall-clock seconds, processor seconds and output of one launch into a folder."""
    folders = [f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launches/{time.time()}"]
    start, processor_start = time.perf_counter(), processor_seconds()
    command = [sys.executable, "launch.py", "-m", *NO_GPU, *arguments, *folders]
    process = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return time.perf_counter() - start, processor_seconds() - processor_start, process.stdout


def processor_seconds() -> float:
    """Return the processor seconds of ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def closed_partition() -> Iterator[None]:
    """Close the partition; at the end, cancel all jobs and open it again."""
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
    try:
        yield
    finally:
        while queue.active_jobs():
            subprocess.run(["scancel", "--me"], check=True)
            time.sleep(0.5)
        subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)


def time_submission(axes: dict[str, object], name: str) -> None:
    """Print the seconds of a launch, of its plan, and of the same launch repeated while its jobs are queued."""
    with tempfile.TemporaryDirectory() as folder, closed_partition():
        plan_s, plan_cpu, _ = launch(Path(folder), *grid_of(axes), "plan=true")
        launch_s, launch_cpu, output = launch(Path(folder), *grid_of(axes))
        calls = len(list(Path(folder).glob("launches/*/.submitit/*_submission.sh")))
        repeat_s, repeat_cpu, _ = launch(Path(folder), *grid_of(axes))
        assert "submitted" in output
        cells = [(launch_s, launch_cpu), (plan_s, plan_cpu), (repeat_s, repeat_cpu)]
        print(f"{name:>6} runs", *(f"{seconds:9.2f} ({cpu:5.2f})" for seconds, cpu in cells), f"{calls:13}", flush=True)


def time_finished() -> None:
    """Print the seconds of a repeated launch of 1,000 finished runs, and of its plan."""
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "runs", points_of(AXES))
        plan_s, plan_cpu, _ = launch(Path(folder), *grid_of(AXES), "plan=true")
        launch_s, launch_cpu, output = launch(Path(folder), *grid_of(AXES))
        assert "1000 done; nothing to do" in output
        print(
            f"\nrepeated launch of 1,000 finished runs: {launch_s:.2f} s ({launch_cpu:.2f}), of which composing and planning "
            f"{plan_s:.2f} s ({plan_cpu:.2f}); nothing submitted",
            flush=True,
        )


def time_supervision() -> None:
    """Print the mean time of a job outside its stage: Slurm's time of the job less the stage's own."""
    with tempfile.TemporaryDirectory() as folder:
        overheads = []
        for seed in range(REPEATS):
            launch(Path(folder), *SHORT, f"seed={seed}")
            while queue.active_jobs():
                time.sleep(0.5)
        for run in all_runs(Path(folder) / "runs"):
            for stage, job in run.jobs().items():
                shown = queue.slurm_output("scontrol", "show", "job", job)
                start, end = (
                    time.mktime(time.strptime(re.search(rf"{key}=(\S+)", shown)[1], "%Y-%m-%dT%H:%M:%S"))
                    for key in ("StartTime", "EndTime")
                )
                overheads.append(end - start - read_json(run.stage_path(stage))["seconds"])
        mean = sum(overheads) / len(overheads)
        print(f"time of a job outside its stage (srun, Python, supervisor, end): {mean:.1f} s, mean of {len(overheads)} jobs")


def main() -> None:
    """Print all measurements."""
    limit = queue.config_number("MaxArraySize", 0)
    print(f"{time.strftime('%Y-%m-%d')}, MaxArraySize {limit}; wall-clock seconds (processor seconds)")
    columns = ("launch", 17), ("plan=true", 17), ("repeated launch", 17), ("sbatch calls", 13)
    print(" " * 11 + " ".join(f"{label:>{width}}" for label, width in columns))
    time_submission(SIX, "6")
    time_submission(HUNDRED, "100")
    time_submission(AXES, "1,000")
    time_finished()
    time_supervision()


if __name__ == "__main__":
    main()
