"""Failures that pass: what of a stage's end says that the same again may work."""

import re
import signal
from pathlib import Path

TRANSIENT = re.compile(
    r"NCCL error|ncclSystemError|uncorrectable ECC|Address already in use|Connection reset by peer|EADDRINUSE"
    r"|ProcessGroupNCCL.*timeout|CUDA error: an illegal instruction|Stale file handle"
)
TAIL = 20_000  # bytes of a log in which such words are looked for


def said_since(log: Path, since: int) -> str:
    """The end of what a log got from byte `since` on; nothing where there is no log."""
    return log.read_bytes()[since:][-TAIL:].decode(errors="replace") if log.exists() else ""


def why_it_may_pass(status: int, log: Path, since: int) -> str | None:
    """The reason, from an exit code (negative for a signal) and what the log got from byte `since` on; None without one."""
    if status == -signal.SIGKILL:
        return "its process was killed"
    text = said_since(log, since)
    found = TRANSIENT.search(text)
    if found:
        return found.group()
    return "a process of several was killed" if "Signal 9 (SIGKILL)" in text else None
