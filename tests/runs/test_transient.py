"""Test which failures of a stage `transient_reason` considers transient, so that the stage is started again."""

import pytest

from rlvr_sweeps.runs.failures import transient_reason


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        (-9, "", "its process was killed"),
        (1, "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp", "NCCL error"),
        (1, "code: -98, name: EADDRINUSE", "EADDRINUSE"),
        (1, "traceback : Signal 9 (SIGKILL) received by PID 1", "a process of several was killed"),
        (1, "ValueError: the loss is nan", None),
        (-11, "", None),
    ],
)
def test_transient_failures_are_recognised(tmp_path, status, output, reason):
    log = tmp_path / "train.txt"
    log.write_text(output)
    assert transient_reason(status, log, 0) == reason


def test_the_output_of_an_earlier_try_is_ignored(tmp_path):
    log = tmp_path / "train.txt"
    log.write_text("NCCL error\n")
    since = log.stat().st_size
    log.write_text("NCCL error\nValueError: the loss is nan\n")
    assert transient_reason(1, log, since) is None
