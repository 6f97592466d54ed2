"""A launch on Slurm, from Enter to the last sbatch: 6, 100 and 1,000 runs, a finished sweep again, the supervisor's own time.

    SLURM_MAX_ARRAY=1001 tests/launching/slurm/with.sh .venv/bin/python bench/submission.py

On the tests' real Slurm of two virtual nodes. The queue is closed while submissions are timed: nothing runs beside them.
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
    """Seconds of the clock and of all its processors, and output, of one launch into a folder."""
    where = [f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launches/{time.time()}"]
    start, used = time.perf_counter(), processor_seconds()
    command = [sys.executable, "launch.py", "-m", *NO_GPU, *arguments, *where]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return time.perf_counter() - start, processor_seconds() - used, done.stdout


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def closed_queue() -> Iterator[None]:
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
    try:
        yield
    finally:
        while queue.active_jobs():
            subprocess.run(["scancel", "--me"], check=True)
            time.sleep(0.5)
        subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)


def submission(axes: dict[str, object], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, closed_queue():
        planned, planned_cpu, _ = launch(Path(folder), *grid_of(axes), "plan=true")
        took, took_cpu, said = launch(Path(folder), *grid_of(axes))
        calls = len(list(Path(folder).glob("launches/*/.submitit/*_submission.sh")))
        again, again_cpu, _ = launch(Path(folder), *grid_of(axes))
        assert "submitted" in said
        cells = [(took, took_cpu), (planned, planned_cpu), (again, again_cpu)]
        print(f"{name:>6} runs", *(f"{clock:9.2f} ({cpu:5.2f})" for clock, cpu in cells), f"{calls:13}", flush=True)


def finished_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "runs", points_of(AXES))
        planned, planned_cpu, _ = launch(Path(folder), *grid_of(AXES), "plan=true")
        took, took_cpu, said = launch(Path(folder), *grid_of(AXES))
        assert "1000 done; nothing to do" in said
        print(
            f"\na finished sweep of 1,000 again: {took:.2f} s ({took_cpu:.2f}), of it composing and planning "
            f"{planned:.2f} s ({planned_cpu:.2f}); nothing submitted",
            flush=True,
        )


def supervision() -> None:
    """Of a job's time, as Slurm counts it, what is not its stage's."""
    with tempfile.TemporaryDirectory() as folder:
        over = []
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
                over.append(end - start - read_json(run.stage_path(stage))["seconds"])
        mean = sum(over) / len(over)
        print(f"a job's time beside its stage (srun, Python, supervisor, end): {mean:.1f} s, mean of {len(over)} jobs")


def main() -> None:
    limit = queue.config_number("MaxArraySize", 0)
    print(f"{time.strftime('%Y-%m-%d')}, MaxArraySize {limit}; seconds of the clock (of all its processors)")
    columns = ("submitted", 17), ("only planned", 17), ("again, while queued", 17), ("sbatch calls", 13)
    print(" " * 11 + " ".join(f"{words:>{width}}" for words, width in columns))
    submission(SIX, "6")
    submission(HUNDRED, "100")
    submission(AXES, "1,000")
    finished_again()
    supervision()


if __name__ == "__main__":
    main()
