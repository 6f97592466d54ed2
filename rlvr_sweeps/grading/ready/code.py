"""The reward for programs: the share of a problem's tests that the Python program of a completion passes, in a sandbox.

The sandbox is bubblewrap (`bwrap`): no network, no file but the system's and Python's own, both read-only, a small temporary
folder, a process tree of its own, no capability; and limits of CPU time, memory, file size and processes. Without it the
verifier is refused when it is loaded. A program runs with the standard library only. Where this process is
root, for whom the kernel limits no number of processes, the sandbox is made by the user nobody.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_sweeps.grading.extraction import END_OF_THINKING

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
OUTPUT_BYTES = 1 << 20  # of a program; what it writes beyond this ends it
FOLDER_BYTES = 1 << 26  # of the temporary folder
PROCESSES = 32
NOBODY = 65534  # the user and group in the sandbox
SYSTEM_PYTHON = "/usr/bin/python3"
WALL_PER_CPU = 3.0  # a program may wait this many times its CPU limit
MIB = 1 << 20
# Runs in the sandbox: sets the limits, reads program, test and a mark from stdin, and writes the mark once both have run.
HARNESS = """
import json, os, resource, sys
request = json.loads(sys.stdin.readline())
for name, value in request["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
scope = {"__name__": "__main__"}
exec(compile(request["program"], "program.py", "exec"), scope)
if request["test"] is not None:
    exec(compile(request["test"], "test.py", "exec"), scope)
    sys.stdout.flush()
    os.write(1, request["mark"].encode())
"""


class NoSandboxError(Exception):
    """This machine has no sandbox."""


def reward(completions: Sequence[Any], tests: Sequence[Any], seconds: float = 4.0, memory_mb: int = 512) -> list[float]:
    """Return the share of tests that the program of each completion passes; 0.0 without a program.

    tests: a text of Python that runs after the program and raises where it is wrong (assert); or a list of such texts, or of
    objects {"input": stdin, "output": stdout}, compared without spaces at line ends; or such a list as JSON text. seconds: CPU
    time of one test. memory_mb: its address space.
    """
    scores = []
    for completion, given in zip(completions, tests, strict=True):
        program, cases = read_program(completion[0]["content"]), read_tests(given)
        passed = [program is not None and passes(program, case, seconds, memory_mb) for case in cases]
        scores.append(sum(passed) / len(passed))
    return scores


def read_program(text: str) -> str | None:
    """Return the last fenced block of a completion after its thinking, else all of it; None where nothing is there."""
    text = text.rpartition(END_OF_THINKING)[2]
    blocks = FENCED.findall(text)
    program = blocks[-1] if blocks else text
    return program if program.strip() else None


def read_tests(given: Any) -> list[str | Mapping[str, str]]:
    """Return the tests of a problem; raise ValueError where they are none."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = json.loads(given)
    tests = [given] if isinstance(given, str) else given
    if not tests or not isinstance(tests, list):
        raise ValueError("a problem has no tests")
    for test in tests:
        if not isinstance(test, str) and not (isinstance(test, Mapping) and {"input", "output"} <= test.keys()):
            raise ValueError(f"a test is neither a text of Python nor an object with input and output: {str(test)[:80]}")
    return tests


def passes(program: str, test: str | Mapping[str, str], seconds: float, memory_mb: int) -> bool:
    """Return whether a program passes one test."""
    if isinstance(test, str):
        mark = secrets.token_hex(16)  # a program that only exits does not write it
        return run(program, test, mark, "", seconds, memory_mb).endswith(mark)
    written = run(program, None, "", str(test["input"]), seconds, memory_mb)
    return as_lines(written) == as_lines(str(test["output"]))


def as_lines(text: str) -> list[str]:
    """Return the lines of a text without spaces at their ends, and without empty lines at its end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def run(program: str, test: str | None, mark: str, stdin: str, seconds: float, memory_mb: int) -> str:
    """Return what a program writes to stdout in the sandbox, within its limits; "" where it fails."""
    limits = {
        "RLIMIT_CPU": max(1, round(seconds)), "RLIMIT_AS": memory_mb * MIB, "RLIMIT_FSIZE": OUTPUT_BYTES,
        "RLIMIT_NPROC": PROCESSES, "RLIMIT_CORE": 0,
    }  # fmt: skip
    request = json.dumps({"program": program, "test": test, "mark": mark, "limits": limits})
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            sandboxed(HARNESS), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL, **as_nobody()
        )
        try:
            process.communicate(f"{request}\n{stdin}".encode(), timeout=WALL_PER_CPU * seconds + 1)
        except subprocess.TimeoutExpired:
            process.kill()  # with its tree: it was the first process there
            process.wait()
        output.seek(0)
        return output.read(OUTPUT_BYTES).decode(errors="replace") if process.returncode == 0 else ""


def as_nobody() -> dict[str, Any]:
    """Return the arguments of Popen by which root starts a process as the user nobody; none for other users."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def sandboxed(program: str) -> list[str]:
    """Return the command that runs a Python program in the sandbox."""
    system = [path for path in ("/usr", "/lib", "/lib64", "/bin") if Path(path).exists()]
    python = _python[0]
    own = [] if python.startswith("/usr/") else [str(Path(python).parent.parent)]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL",
        "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
        *(part for path in (*system, *own) for part in ("--ro-bind", path, path)),
        "--proc", "/proc", "--dev", "/dev", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp",
        python, "-I", "-S", "-c", program,
    ]  # fmt: skip


def check_environment() -> None:
    """Choose the Python of the sandbox: this one, else the system's, which nobody can read.

    Raise NoSandboxError, with what is missing, where a program cannot be run in the sandbox.
    """
    if shutil.which("bwrap") is None:
        raise NoSandboxError("the program bwrap is not installed. Install it: apt-get install bubblewrap")
    message = ""
    for python in (str(Path(sys.executable).resolve()), SYSTEM_PYTHON):
        _python[:] = [python]
        try:
            tried = subprocess.run(sandboxed(""), capture_output=True, text=True, check=False, **as_nobody())
        except OSError as error:  # root may not become nobody, or nobody may not start it
            message = str(error)
            continue
        if tried.returncode == 0:
            return
        message = (tried.stderr.strip().splitlines() or ["no message"])[-1]
    raise NoSandboxError(
        f"bwrap cannot make a sandbox here ({message}). The kernel must allow user namespaces (user.max_user_namespaces, "
        "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), and a container must allow them too"
    )


_python: list[str] = []  # the program that check_environment chose
