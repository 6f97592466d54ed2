"""The fork server of a local launch: imports torch, transformers, TRL and PEFT once, then forks one process per run.

    python -m rlvr_sweeps.launching.fork_server

Each run's process supervises the run and forks one process per stage. The server reads lines
{"run": path, "gpus": [...], "threads": n} from standard input, writes lines {"run": path, "exit": code} to standard output,
and ends when its input ends.

A fork shares the imported pages, so a run starts in milliseconds instead of eight seconds. Every forked process dies with its
parent: after a kill -9 of the launcher nothing trains on unobserved.
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

from rlvr_sweeps.assets.locations import model_location
from rlvr_sweeps.launching.stages import die_with_parent, process_count, run_stage, supervise, torchrun_command
from rlvr_sweeps.launching.threads import THREAD_VARIABLES
from rlvr_sweeps.runs.directory import Run


def fork(work: Callable[[], int]) -> int:
    """Run `work` in a child process that exits with its return value; returns the child's pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the launcher, which ends this process
        if os.getppid() == parent:
            code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def use_threads(count: int) -> None:
    """Set the number of threads of this process, and of the processes that it starts."""
    import torch

    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    torch.set_num_threads(count)


def start_stage(stage: str, run: Run, threads: int) -> int:
    """Run a stage in a forked process with so many threads, whose output goes to the run's log; returns its wait status."""

    def work() -> int:
        use_threads(threads)
        log = run.log_path(stage)
        log.parent.mkdir(exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(
            os.open(os.devnull, os.O_RDONLY), 0
        )  # the server's standard input carries launch requests; a stage must not read them
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        count = process_count(run.config(), stage)
        if count > 1:  # several processes are started by torchrun, without the imports of this one
            os.execv(sys.executable, torchrun_command(stage, run, count))
        run_stage(stage, run)
        return 0

    return os.waitpid(fork(work), 0)[1]


def import_everything() -> None:
    """Import what every stage imports, before any fork, with one thread, since a fork does not copy a thread pool.

    The imported objects are frozen for the garbage collector, which would otherwise scan all of them in every fork.
    """
    gc.disable()
    import torch

    torch.set_num_threads(1)
    import rlvr_sweeps.evaluation.analyse
    import rlvr_sweeps.evaluation.evaluate
    import rlvr_sweeps.training.train  # noqa: F401

    in_advance(lambda: importlib.import_module("deepspeed"))  # imported by training
    gc.freeze()
    gc.enable()


def in_advance(load: Callable[[], object]) -> None:
    """Call `load`, which imports what a stage will import; do nothing on a machine with an accelerator.

    There an import might initialise CUDA, and a forked process cannot use its parent's CUDA context. Exceptions of `load` are
    ignored: the stage's own import raises them again, and the run records them.
    """
    import torch

    if torch.accelerator.current_accelerator() is None:
        logging.disable(logging.WARNING)
        with suppress(Exception):
            load()
        logging.disable(logging.NOTSET)


def import_model_class(run: Run) -> None:
    """Import the code of a local model's architecture."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    path, revision = model_location(run.config())
    if not revision:  # a local folder; the look-up imports the module
        MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(path, trust_remote_code=False))]


def serve() -> None:
    """Read requests and fork a process for each run; write a line for each run that ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the replies
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    import_everything()
    running: dict[int, str] = {}
    buffer = b""
    print(json.dumps({"ready": True}), file=replies, flush=True)
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            for pid, path in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    print(json.dumps({"run": path, "exit": os.waitstatus_to_exitcode(status)}), file=replies, flush=True)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break  # the launcher has ended; the kernel kills the children together with this process
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                path = request["run"]
                in_advance(partial(import_model_class, Run(Path(path))))

                def work(path: str = path, gpus: list[str] = request["gpus"], threads: int = request["threads"]) -> int:
                    if gpus:
                        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return supervise(Run(Path(path)), partial(start_stage, threads=threads))

                running[fork(work)] = path


if __name__ == "__main__":
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
