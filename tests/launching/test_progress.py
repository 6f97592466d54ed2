"""Test the display of a launch: phases, the time left, lines that are not repeated, and failures that runs have in common."""

import io
import os
import time

import pytest
from rich.console import Console

from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import append_rows, write_json
from rlvr_sweeps.launching import progress
from rlvr_sweeps.launching.local import refuse_failures
from rlvr_sweeps.launching.progress import ProgressDisplay
from rlvr_sweeps.launching.stages import FAILED
from rlvr_sweeps.planning.plan import make_plan
from rlvr_sweeps.runs.directory import Run


def metrics(step, seconds):
    """Return a row of metrics.jsonl of a step that took so many seconds."""
    return {"step": step, "reward_mean": 0.25, "rollout_s": seconds / 2, "reward_s": 0.0, "logprobs_s": 0.0,
            "update_s": seconds / 2, "rest_s": 0.0, "trained_zero_std_share": 0.0}  # fmt: skip


@pytest.fixture
def started(point, monkeypatch):
    """Return a run of 30 steps, its display without a terminal, and the display's text; every refresh may print a line."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    cfg = point("peft=lora", "steps=30")
    run, text = Run.of(cfg), io.StringIO()
    run.prepare(cfg)
    display = ProgressDisplay([(run, cfg)], Console(file=text, width=200))
    display.run_started(run)
    return run, display, text


def lines(display, text):
    """Return what a refresh prints, without the run's name."""
    start = len(text.getvalue())
    display.refresh()
    return [line.split("  ", 1)[1] for line in text.getvalue()[start:].splitlines()]


def test_each_phase_is_printed_once(started):
    run, display, text = started
    assert lines(display, text) == ["starting"] and lines(display, text) == []
    run.write_phase("grading completions of the start policy")
    assert lines(display, text) == ["grading completions of the start policy"] and lines(display, text) == []


def test_the_phase_of_long_steps_and_after_the_last_step_is_shown(started):
    run, display, text = started
    run.write_phase("sampling round 4 of at most 10")
    append_rows(run.metrics_path, [metrics(1, 10.0)])
    (short,) = lines(display, text)
    assert short.startswith("step 1/30  reward 0.25") and short.endswith("left")
    append_rows(run.metrics_path, [metrics(2, 60.0)])
    (long,) = lines(display, text)
    assert long.endswith("left  sampling round 4 of at most 10")
    run.write_phase("writing the trained model")
    append_rows(run.metrics_path, [metrics(30, 10.0)])
    assert lines(display, text)[0].endswith("00:00 left  writing the trained model")


def test_the_time_left_falls_by_a_step_at_most_and_never_grows(started):
    run, _, _ = started
    rows = [metrics(step, 100.0) for step in (1, 2)]
    append_rows(run.metrics_path, rows)
    left = []
    for age_s in (0, 50, 1000):
        os.utime(run.metrics_path, times=(time.time() - age_s,) * 2)
        minutes, seconds = progress.time_left(run, rows, 3).split()[0].split(":")
        left.append(60 * int(minutes) + int(seconds))
    assert 295 <= left[0] <= 300 and 245 <= left[1] <= 250 and left[2] == 200


def test_a_failure_that_runs_have_in_common_is_printed_once_with_each_log(point):
    plan = make_plan([Point((), point("peft=lora", f"seed={seed}")) for seed in (1, 2, 3)], retry=False, live=None)
    for planned, error in zip(plan, ("no signal\nThree of them", "no signal\nThree of them", "another"), strict=True):
        planned.run.prepare(planned.cfg)
        write_json(planned.run.failure_path, {"stage": "train", "error": error})
    with pytest.raises(Refused) as refusal:
        refuse_failures(plan, {planned.run.name: FAILED for planned in plan}, Console(file=io.StringIO()))
    text = str(refusal.value)
    assert (
        text.count("2 runs failed in train: no signal\nThree of them\n") == 1
        and text.count("A run failed in train: another") == 1
    )
    assert all(text.count(f"  {planned.run.name}, log: ") == 1 for planned in plan)
