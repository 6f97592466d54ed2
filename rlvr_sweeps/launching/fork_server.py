"""The warm process: imports torch, transformers, TRL and PEFT once, then forks a process per run and one per stage.

    python -m rlvr_sweeps.launching.fork_server

It reads {"run": path, "gpus": [...]} lines, writes {"run": path, "exit": code} lines, and ends with its input.

A fork shares the imported pages, so a run starts in milliseconds instead of eight seconds. Everything forked dies with the
process that asked: nothing trains on unseen after a kill -9.
"""

import gc
import importlib
import json
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from rlvr_sweeps.assets.locations import place_of
from rlvr_sweeps.launching.stages import die_with_parent, process_count, run_stage, supervise, torchrun_command
from rlvr_sweeps.runs.directory import Run


def fork(work: Callable[[], int]) -> int:
    """Run `work` in a child that leaves with its return value; returns the child's pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process at the terminal; it ends the rest
        if os.getppid() == parent:
            code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_stage(stage: str, run: Run) -> int:
    """A stage in a forked process whose output goes to the run's log; returns its wait status."""

    def work() -> int:
        log = run.log_path(stage)
        log.parent.mkdir(exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # ours brings the next runs
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        count = process_count(run.config(), stage)
        if count > 1:  # a process group starts afresh: its members meet by torchrun
            os.execv(sys.executable, torchrun_command(stage, run, count))
        run_stage(stage, run)
        return 0

    return os.waitpid(fork(work), 0)[1]


def import_everything() -> None:
    """What a stage imports, before any fork; one thread, since a fork carries no thread pool along.

    What is there then is kept from the collector, which would walk through all of it again and again, in every fork.
    """
    gc.disable()
    import torch

    torch.set_num_threads(1)
    import rlvr_sweeps.evaluation.analyse
    import rlvr_sweeps.evaluation.evaluate
    import rlvr_sweeps.training.train  # noqa: F401

    in_advance(lambda: importlib.import_module("deepspeed"))  # a training does
    gc.freeze()
    gc.enable()


def in_advance(load: Callable[[], object]) -> None:
    """Import what a stage will, where there can be no GPU: it might look for one, which a fork has to do for itself.

    What fails here fails again in the stage, which says so.
    """
    import torch

    if torch.accelerator.current_accelerator() is None:
        logging.disable(logging.WARNING)
        with suppress(Exception):
            load()
        logging.disable(logging.NOTSET)


def import_model_class(run: Run) -> None:
    """The code of a local model's architecture."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    place, revision = place_of(run.config())
    if not revision:
        MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(place, trust_remote_code=False))]


def serve() -> None:
    """Fork a run for every line read; report every run that ends."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no message
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    import_everything()
    running: dict[int, str] = {}
    buffer = b""
    print(json.dumps({"ready": True}), file=report, flush=True)
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            for pid, path in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    print(json.dumps({"run": path, "exit": os.waitstatus_to_exitcode(status)}), file=report, flush=True)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break  # the launcher has left; the kernel ends our children with us
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                path = asked["run"]
                in_advance(partial(import_model_class, Run(Path(path))))

                def work(path: str = path, gpus: list[str] = asked["gpus"]) -> int:
                    if gpus:
                        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return supervise(Run(Path(path)), start_stage)

                running[fork(work)] = path


if __name__ == "__main__":
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
