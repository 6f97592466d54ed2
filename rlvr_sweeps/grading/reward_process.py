"""The process that runs one reward function: `python -m rlvr_sweeps.grading.reward_process`, started by `reward_pool.py`.

It is started fresh, so that a reward function neither shares the memory of a trainer nor can stop it. The first request names
the function; each later one has completions, and every one is judged by a call of its own and answered by a line of its own. A
call may use CPU time, wall-clock time and memory up to its limits. Only the standard library is imported here.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

CHARACTERS = 300  # of an error's text
MIB = 1 << 20
Reply = tuple[int, float | None, str, str]  # index of the completion, score, kind of failure or "", its text


class TimeLimitError(BaseException):
    """Raised in a call that exceeds its limit; not an Exception, so that a reward function does not catch it by accident."""


class LoadError(Exception):
    """A reward function that cannot be loaded; the message is a sentence."""


class ReturnError(Exception):
    """A return that is no score; the message is a clause: `returned 2 scores for one completion`."""


def split_target(target: str) -> tuple[str, str]:
    """Return (module or file, function) of `pkg.module:function` or `path/file.py:function`; raise LoadError otherwise."""
    origin, colon, function = target.rpartition(":")
    if not colon or not origin or not function.isidentifier():
        raise LoadError(f"{target!r} names no function. Write pkg.module:function, or a file: ./my_reward.py:function.")
    return origin, function


def source_path(target: str) -> Path:
    """Return the source file of a target, without importing it. Raise LoadError where there is none."""
    origin, _ = split_target(target)
    if origin.endswith(".py"):
        path = Path(origin).expanduser()
        if not path.is_file():
            raise LoadError(f"{origin} does not exist in {Path.cwd()}. Give the path of an existing Python file.")
        return path
    spec, folders = None, None
    name = ""
    for part in origin.split("."):
        name = f"{name}.{part}" if name else part
        spec = importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None:
            raise LoadError(
                f"There is no module {name!r} (of {target}). Install the package that has it, or name a file: "
                "./my_reward.py:function."
            )
        folders = list(spec.submodule_search_locations) if spec.submodule_search_locations else []
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise LoadError(
            f"{origin} has no Python source, so that its version cannot be recorded. Name a module with a .py file."
        )
    return Path(spec.origin)


def source_digest(target: str) -> str:
    """Return the SHA-256 of a target's source file, in hex; raise LoadError where there is none."""
    return hashlib.sha256(source_path(target).read_bytes()).hexdigest()


def load(target: str, source: str | None) -> Callable[..., Any]:
    """Import and return the function, after its module's `check_environment()` where there is one.

    Raise LoadError where the source is another than `source`, or the module cannot be imported or used.
    """
    origin, name = split_target(target)
    path = source_path(target)
    if source is not None and (present := source_digest(target)) != source:
        raise LoadError(
            f"{path} has changed: the run was configured with the source {source[:12]}, and the file is now {present[:12]} "
            "(SHA-256). Restore the file to go on, or launch the run again, which gives it another id."
        )
    try:
        if origin.endswith(".py"):
            sys.path.insert(0, str(path.parent.absolute()))  # modules beside the file can be imported
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(origin)
        getattr(module, "check_environment", lambda: None)()  # raises where the function could not work on this machine
    except BaseException as error:  # SystemExit of a script without a __main__ guard too
        raise LoadError(f"{path} cannot be imported ({described(error, path)}).") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise LoadError(f"{path} has no function {name!r}. Its functions: {', '.join(names) or 'none'}.")
    return function


def described(error: BaseException, path: Path) -> str:
    """Return an error as `Type: text, line N of FILE`, where the line is the last one of the function's own file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    where = f", line {lines[-1]} of {path.name}" if lines else ""
    return f"{type(error).__name__}: {str(error)[:CHARACTERS]}{where}"


def parameters_of(function: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """Return (names that the function takes, those without a default, whether it takes any name by **)."""
    named = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    required = [parameter.name for parameter in named if parameter.default is inspect.Parameter.empty]
    return [parameter.name for parameter in named], required, takes_any


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call returns a coroutine, also where the function is an object with an async `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def read_score(returned: Any) -> float | None:
    """Return the score in what a call for one completion returned; raise ReturnError for a wrong one."""
    if hasattr(returned, "tolist"):  # an array or a tensor
        returned = returned.tolist()
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
        raise ReturnError(f"returned {shortened(returned)}, which is no list")
    if len(returned) != 1:
        raise ReturnError(f"returned {len(returned)} scores for one completion")
    (score,) = returned
    if score is None:
        return None
    if hasattr(score, "item"):
        score = score.item()
    if not isinstance(score, int | float):
        raise ReturnError(f"returned {shortened(score)}, which is no number")
    if not math.isfinite(score):
        raise ReturnError(f"returned {score}, which is no finite number")
    return float(score)


def shortened(value: Any) -> str:
    """Return a value's representation, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Judge:
    """A loaded reward function with its limits."""

    def __init__(self, request: dict[str, Any], out: TextIO) -> None:
        self.out, self.path = out, source_path(request["target"])
        self.function = load(request["target"], request["source"])
        self.names, self.required, self.takes_any = parameters_of(self.function)
        self.is_async = is_async(self.function)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = size + request["memory_mb"] * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, self.interrupt)

    def interrupt(self, *_: object) -> None:
        """Raise TimeLimitError in the running call: a handler of SIGPROF and SIGALRM."""
        raise TimeLimitError

    def reply(self, reply: Reply) -> None:
        """Write one reply."""
        self.out.write(json.dumps(reply) + "\n")
        self.out.flush()

    def arguments(self, completion: Any, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a call for one completion: lists of one, and constants unchanged."""
        values = {"completions": [completion]} | {name: [value] for name, value in columns["columns"].items()}
        values |= columns["constants"]
        return {name: value for name, value in values.items() if self.takes_any or name in self.names}

    def serve(self, items: list[tuple[int, Any, dict[str, Any]]], cpu_s: float, wall_s: float) -> None:
        """Judge each item and write its reply."""
        if self.is_async:
            asyncio.run(self.serve_together(items, cpu_s, wall_s))
            return
        for index, completion, columns in items:
            self.reply(self.judged(index, lambda: self.function(**self.arguments(completion, columns)), cpu_s, wall_s))  # noqa: B023

    def judged(self, index: int, call: Callable[[], Any], cpu_s: float, wall_s: float) -> Reply:
        """Return the reply to one item; limits interrupt Python code, and the kernel ends code that cannot be interrupted."""
        try:
            self.limit_cpu(cpu_s + 1)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            signal.setitimer(signal.ITIMER_REAL, wall_s)
            try:
                returned = call()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            return index, read_score(returned), "", ""
        except TimeLimitError:
            return index, None, "timeout", ""
        except MemoryError:
            return index, None, "memory", ""
        except ReturnError as error:
            return index, None, "return", str(error)
        except BaseException as error:  # SystemExit too
            return index, None, "exception", described(error, self.path)

    async def serve_together(self, items: list[tuple[int, Any, dict[str, Any]]], cpu_s: float, wall_s: float) -> None:
        """Judge the items of an async function at the same time; each has the wall-clock limit, all together share CPU time."""
        self.limit_cpu(cpu_s * len(items) + 1)

        async def one(index: int, completion: Any, columns: dict[str, Any]) -> None:
            try:
                returned = await asyncio.wait_for(self.function(**self.arguments(completion, columns)), wall_s)
                self.reply((index, read_score(returned), "", ""))
            except ReturnError as error:
                self.reply((index, None, "return", str(error)))
            except TimeoutError:
                self.reply((index, None, "timeout", ""))
            except MemoryError:
                self.reply((index, None, "memory", ""))
            except Exception as error:
                self.reply((index, None, "exception", described(error, self.path)))

        await asyncio.gather(*(one(*item) for item in items))

    def limit_cpu(self, cpu_s: float) -> None:
        """Make the kernel end this process (SIGXCPU) where it uses more CPU time from now on."""
        usage, (_, most) = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)
        limit = math.ceil(usage.ru_utime + usage.ru_stime + cpu_s)
        resource.setrlimit(resource.RLIMIT_CPU, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def next_line(caller: int) -> str:
    """Return the next request; "" once the caller has exited, even if a process it forked keeps the pipe open."""
    while not select.select([sys.stdin], [], [], 5.0)[0]:
        if os.getppid() != caller:
            return ""
    return sys.stdin.readline()


def main() -> None:
    """Load the function that the first line names, then judge the completions of each line."""
    caller = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a reward function prints must not stand among the replies
    try:
        judge = Judge(json.loads(next_line(caller)), out)
        ready = {"required": judge.required, "takes_any": judge.takes_any, "names": judge.names, "is_async": judge.is_async}
    except LoadError as error:
        ready = {"error": str(error)}
    out.write(json.dumps(ready) + "\n")
    out.flush()
    while "error" not in ready and (line := next_line(caller)):
        request = json.loads(line)
        judge.serve(request["items"], request["cpu_s"], request["wall_s"])


if __name__ == "__main__":
    main()
