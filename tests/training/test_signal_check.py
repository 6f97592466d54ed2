"""Test the check of the start policy before step 1, the kept completions, and what is shown of steps without a signal."""

import json

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.launching import status
from rlvr_sweeps.launching.status_table import table
from rlvr_sweeps.reporting import rollouts
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.runs.reading import no_signal
from rlvr_sweeps.runs.rollouts import without_middle
from rlvr_sweeps.training.dynamic_sampling import TEXT_LIMIT
from rlvr_sweeps.training.early_stopping import why_collapsed
from rlvr_sweeps.training.signal_check import explanation

SHORT = ("steps=1", "analysis=none", "benchmark.tier1.k=1", "~benchmark.tier2", "~benchmark.tier3", "~benchmark.tier4",
         "~benchmark.tier5")  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Use an empty cache, so that no completions of an earlier session are read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_run_whose_completions_are_all_cut_off_stops_before_its_first_step(launch, tmp_path, capsys):
    stopped = launch("peft=lora", "rollout.max_tokens=2", *SHORT, expect=1)
    message = stopped.stdout + stopped.stderr
    assert "All 16 sampled completions of the start policy are wrong (" in message and "unfinished thinking" in message
    [run] = all_runs(launch.runs)
    assert run.state() == "failed" and not read_rows(run.metrics_path)
    error = read_json(run.failure_path)["error"]
    first_line = error.splitlines()[0]
    assert (
        "16 of 16 were cut off at rollout.max_tokens=2: raise it." in first_line
        and "signal_check=warn retry=true" in first_line
    )
    capsys.readouterr()
    rlvr(["samples", run.id, "--runs-dir", str(launch.runs)])
    assert capsys.readouterr().out.count("step 0, problem") == 16
    completions = read_json(run.signal_path)["completions"]
    assert len({row["problem"] for row in completions}) == 16 and all(row["tokens"] == 2 for row in completions)
    assert len(list((tmp_path / "cache/rlvr_sweeps/signal").iterdir())) == 1, "other runs read these completions"

    launch("peft=lora", "rollout.max_tokens=2", "signal_check=warn", "retry=true", *SHORT)
    assert run.state() == "done"
    assert "warning: All 16 sampled completions" in run.log_path("train").read_text()
    [row] = read_rows(run.metrics_path)
    assert row["reward_mean"] == 0 and row["share_unfinished_thinking"] > 0.2
    assert no_signal([row]).startswith("no signal for 1 step: ")
    kept = read_rows(run.rollouts_path)
    assert len(kept) == 4 and {row["step"] for row in kept} == {1} and not any(row["correct"] for row in kept)


@pytest.mark.slow
def test_wrong_answers_in_the_required_form_are_sampled_further_before_a_run_stops(launch, tmp_path):
    problems = [{"question": f"Start with {n} A:+{n} mod 10.", "answer": "123"} for n in range(10)]
    path = tmp_path / "unreachable.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in problems))
    data = (f"data.path={path}", "data.revision=null", "data.problems=null")
    stopped = launch("peft=lora", *data, *SHORT, expect=1)
    assert "All 64 sampled completions of the start policy are wrong" in stopped.stdout + stopped.stderr


def completion(text, gold="8", reason="no box", correct=False, truncated=False):
    """Return one graded completion of the start policy."""
    return {"text": text, "gold": gold, "reason": reason, "correct": correct, "truncated": truncated}


def test_the_message_names_the_reason_and_the_grading_that_would_accept_the_answers(point):
    cfg = point("model=tiny") | {"grading": "boxed"}
    text = explanation([completion("5 + 3 = 8")] * 12 + [completion("It is 9.")] * 4, cfg)
    assert "All 16 sampled completions of the start policy are wrong (100% no box)" in text
    assert "With grading=any, 12 of 16 would be right." in text and "model.system_prompt" in text
    assert "grading=boxed requires what is missing in them: 16 without \\boxed{}." in text
    assert text.count("gold answer '8'") == 3 and text.splitlines()[0].endswith("signal_check=warn retry=true.")
    without_thinking = explanation(
        [completion("5 + 3 = 8", reason="unfinished thinking")] * 15 + [completion("\\boxed{8}", reason="unfinished thinking")],
        cfg | {"grading": "boxed_after_thinking"},
    )
    assert (
        "16 without </think> and 15 without \\boxed{}." in without_thinking
        and "With grading=boxed, 1 of 16" in without_thinking
    )
    solved = explanation([completion("\\boxed{8}", reason="correct", correct=True)] * 16, cfg)
    assert "are right (100% correct)" in solved and "Use harder problems" in solved
    too_hard = explanation([completion("\\boxed{9}", reason="wrong")] * 64, cfg)
    assert "Use easier problems" in too_hard and "grading=" not in too_hard


@pytest.mark.slow
def test_a_run_with_a_signal_keeps_right_and_wrong_completions_of_each_step(launch, capsys):
    launch("peft=lora", *SHORT, "steps=3")
    [run] = all_runs(launch.runs)
    rows = read_rows(run.rollouts_path)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(sum(row["correct"] for row in rows[start : start + 4]) == 2 for start in (0, 4, 8))
    metrics = read_rows(run.metrics_path)
    for row in metrics:
        shares = {name: value for name, value in row.items() if name.startswith("share_")}
        assert sum(shares.values()) == pytest.approx(1) and shares["share_correct"] == pytest.approx(row["reward_mean"])
    assert no_signal(metrics) is None
    rlvr(["samples", run.id, "--runs-dir", str(launch.runs), "--step", "2", "--wrong"])
    shown = capsys.readouterr().out
    assert shown.count("step 2, problem") == 2 and "wrong" in shown and "right" not in shown and "gold answer" in shown
    assert len(rollouts.select(run)) == 4
    with pytest.raises(Refused, match="no completions of step 9; it has those of steps 0 to 3"):
        rollouts.select(run, 9)


def test_steps_without_a_signal_are_named_and_counted():
    mixed = {"step": 1, "trained_zero_std_share": 0.5, "share_no_box": 1.0}
    equal = {"step": 1, "trained_zero_std_share": 1.0, "share_no_box": 0.75, "share_wrong": 0.25}
    assert no_signal([]) is None and no_signal([equal, mixed]) is None
    assert no_signal([mixed, equal, equal]) == "no signal for 2 steps: 75% no box"
    assert no_signal([equal, equal | {"step": 2}]) == "no signal for 2 steps: 75% no box"
    assert no_signal([equal | {"step": 2}, equal | {"step": 3}]) == "no signal for at least 2 steps: 75% no box"


def test_a_window_without_a_signal_is_a_collapse():
    row = {"loss": 0.0, "truncated_share": 0.0, "reward_mean": 0.0, "trained_zero_std_share": 1.0}
    assert why_collapsed([row] * 3, 4, 3.0, 0.9) is None
    assert why_collapsed([row] * 4, 4, 3.0, 0.9) == "in the last 4 steps, every group of completions was all right or all wrong"
    assert why_collapsed([*[row] * 3, row | {"trained_zero_std_share": 0.5}], 4, 3.0, 0.9) is None


def test_status_warns_of_a_run_without_a_signal(tmp_path):
    facts = {"state": "running", "step": 3, "steps": 9, "reward": 0.0, "no_signal": "no signal for 3 steps: 100% no box"}
    *_, warning, total = str(table([status.empty_row(Run(tmp_path / "a")) | facts])).splitlines()
    assert warning == "a: no signal for 3 steps: 100% no box" and total == "1 run: 1 running"


def test_a_long_completion_keeps_its_beginning_and_its_end():
    text = "".join(f"{n} " for n in range(5000))
    short = without_middle(text, TEXT_LIMIT)
    assert len(short) < TEXT_LIMIT + 60 and short.startswith("0 1 2 ") and short.endswith("4998 4999 ")
    assert without_middle("short", TEXT_LIMIT) == "short"
