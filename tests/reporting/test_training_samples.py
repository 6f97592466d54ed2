"""Test the training samples on the report page: which steps and completions are chosen, and that the page shows them."""

import json

from rlvr_sweeps.reporting.page.training_samples import CHARACTERS, MAX_STEPS, training_samples
from rlvr_sweeps.runs.directory import Run


def write_rollouts(run, steps, text="2"):
    """Write two completions for each step, and metrics with the shares of their reasons."""
    sample = {"problem": "p", "prompt": "1 + 1", "gold": "2", "text": text, "reward": 1.0, "correct": True, "reason": "correct",
              "tokens": 3, "truncated": False, "trained": True}  # fmt: skip
    samples = [{"step": step, **sample} for step in range(1, steps + 1) for _ in range(2)]
    metrics = [{"step": step, "reward_mean": 0.25, "share_correct": 0.25, "share_no_box": 0.75} for step in range(1, steps + 1)]
    run.path.mkdir(parents=True, exist_ok=True)
    run.rollouts_path.write_text("".join(json.dumps(row) + "\n" for row in samples))
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return run


def test_steps_are_spread_from_the_first_to_the_last(tmp_path):
    run = write_rollouts(Run(tmp_path / "a"), 101)
    [shown] = training_samples([(run, "LoRA"), (Run(tmp_path / "without"), "Base")])
    assert shown["label"] == "LoRA" and [step["step"] for step in shown["steps"]] == [1, 21, 41, 61, 81, 101]
    assert len(shown["steps"]) == MAX_STEPS and all(len(step["samples"]) == 2 for step in shown["steps"])
    assert shown["steps"][0]["reward"] == "25%" and shown["steps"][0]["reasons"] == "75% no box, 25% correct"


def test_long_completions_are_cut_and_many_runs_show_fewer_steps(tmp_path):
    runs = [(write_rollouts(Run(tmp_path / str(number)), 30, "x" * 4000), str(number)) for number in range(60)]
    shown = training_samples(runs)
    assert len(shown) == 60 and {len(run["steps"]) for run in shown} == {3}
    assert len(shown[0]["steps"][0]["samples"][0]["text"]) < CHARACTERS + 60
