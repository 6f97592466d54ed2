"""Test early stopping: the numbers of the collapse rule, the table of rungs with several writers, and runs that are stopped."""

import subprocess
import sys

import numpy as np
import optuna
import pytest

from rlvr_sweeps.config.identity import run_id
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import all_runs
from rlvr_sweeps.training import train as train_stage
from rlvr_sweeps.training.early_stopping import why_collapsed
from rlvr_sweeps.training.successive_halving import Competitor, journal_path
from tests.launching.test_launch import SHORT, summaries

RULE = {"window": 4, "standard_errors": 3.0, "truncated_share": 0.9}


def rows(rewards, cut_off=0.0, loss=0.1):
    """Return rows of metrics.jsonl with the given rewards."""
    return [{"reward_mean": reward, "truncated_share": cut_off, "loss": loss} for reward in rewards]


def test_a_loss_that_is_not_a_number_stops_the_run_at_once():
    assert "loss" in why_collapsed(rows([0.5])[:-1] + rows([0.5], loss=None), **RULE)


def test_truncated_answers_stop_the_run_at_the_end_of_a_window():
    assert why_collapsed(rows([0.5] * 3, cut_off=1.0), **RULE) is None
    assert "100%" in why_collapsed(rows([0.5] * 4, cut_off=1.0), **RULE)
    assert why_collapsed(rows([0.5] * 4, cut_off=0.9), **RULE) is None
    assert why_collapsed(rows([0.5] * 4, cut_off=1.0) + rows([0.5] * 4, cut_off=0.5), **RULE) is None


def test_two_windows_with_rewards_far_below_the_first_stop_the_run():
    start, low = [0.5, 0.6, 0.4, 0.5], [0.1, 0.2, 0.0, 0.1]
    assert why_collapsed(rows(start + low), **RULE) is None
    assert why_collapsed(rows(start + start + low), **RULE) is None
    assert why_collapsed(rows(start + low + start), **RULE) is None
    assert why_collapsed(rows(start + low + low)[:-1], **RULE) is None
    assert "0.100, is more than 3 standard errors below that of the first 4, 0.500" in why_collapsed(
        rows(start + low * 2), **RULE
    )


def test_the_threshold_is_three_standard_errors_of_the_difference_of_two_means():
    start = [0.5, 0.6, 0.4, 0.5]  # variance 0.02/3 over 4 steps, twice: the error is 0.0577, three of them 0.173
    assert why_collapsed(rows(start + 2 * [value - 0.170 for value in start]), **RULE) is None
    assert why_collapsed(rows(start + 2 * [value - 0.176 for value in start]), **RULE)


def test_constant_rewards_are_seldom_stopped_and_fallen_rewards_mostly():
    """Of runs of 1,024 steps, the rule stops at most 1 % with constant mean reward, and at least 95 % with a fall by 0.15."""
    generator = np.random.default_rng(0)
    flat = generator.normal(0.5, 0.08, (500, 1024))
    fallen = flat[:100] - 0.15 * (np.arange(1024) >= 500)
    assert sum(first_stop(rewards) is not None for rewards in flat) <= 5
    assert sum(first_stop(rewards) is not None for rewards in fallen) >= 95


def first_stop(rewards):
    """Return the first step at which the rule stops a run, or None."""
    metrics = rows(rewards)
    for step in range(16, len(metrics) + 1, 16):
        if why_collapsed(metrics[:step], 16, 3.0, 0.9):
            return step
    return None


def test_early_stopping_changes_the_id_only_where_it_is_used(point):
    plain = run_id(point())
    assert run_id(point("early_stopping=none", "tracking=wandb", "tracking.entity=x", "tracking.project=y")) == plain
    ids = {run_id(point("early_stopping=collapse")), run_id(point("early_stopping=asha", "early_stopping.study=a")),
           run_id(point("early_stopping=asha", "early_stopping.study=b"))}  # fmt: skip
    assert len(ids | {plain}) == 4


@pytest.mark.parametrize("wrong", ["early_stopping.first_rung=8", "early_stopping.reduction=1", "early_stopping.study=a/b"])
def test_impossible_settings_of_asha_are_refused(point, wrong):
    with pytest.raises(Refused, match="early_stopping"):
        point("early_stopping=asha", "early_stopping.study=a", wrong)
    with pytest.raises(Refused, match="study=NAME"):
        point("early_stopping=asha")


def trials_of(runs_dir):
    """Return the trials of study s, read by Optuna from its journal."""
    journal_file = optuna.storages.journal.JournalFileBackend(str(journal_path(runs_dir, "s")))
    storage = optuna.storages.JournalStorage(journal_file)
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).trials


COMPETE = """
import json, sys
from pathlib import Path
from rlvr_sweeps.training.successive_halving import Competitor
from rlvr_sweeps.runs.directory import Run
run = Run(Path(sys.argv[1]))
competitor = Competitor(run, run.config())
print(json.dumps([competitor.trial.number, competitor.falls_behind(16, float(sys.argv[2]))]))
"""


def test_several_runs_report_at_once_and_a_resumed_run_is_the_same_trial(prepared):
    asha = ("early_stopping=asha", "early_stopping.study=s", "early_stopping.first_rung=16")
    runs = [prepared(*asha, f"seed={seed}")[0] for seed in range(4)]
    for _ in range(2):  # the second time like resumed runs
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", COMPETE, str(run.path), str(0.1 * index)], stdout=subprocess.PIPE, text=True
            )
            for index, run in enumerate(runs)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0] * len(runs)
    trials = trials_of(runs[0].path.parent)
    assert sorted(trial.user_attrs["run"] for trial in trials) == sorted(run.name for run in runs)
    assert sorted(trial.system_attrs["completed_rung_0"] for trial in trials) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_the_best_third_continues_at_each_rung(prepared):
    asha = ("early_stopping=asha", "early_stopping.study=s", "early_stopping.first_rung=16", "early_stopping.reduction=3")
    rewards = [0.5, 0.4, 0.6, 0.3, 0.55, 0.7]
    competitors = [Competitor(*prepared(*asha, f"seed={seed}")) for seed in range(6)]
    assert [step for step in range(1, 200) if competitors[0].is_rung(step)] == [16, 48, 144]
    # by hand: the first continues; then the best of 2, of 3 (1), of 4 (1), of 5 (1), the two best of 6
    assert [competitor.falls_behind(16, reward) for competitor, reward in zip(competitors, rewards, strict=True)] == [
        False, True, False, True, True, False,
    ]  # fmt: skip
    resumed = [Competitor(*prepared(*asha, f"seed={seed}")).falls_behind(16, 0.9) for seed in (1, 2)]
    assert resumed == [True, False]  # a recorded decision does not change with a new reward


@pytest.mark.slow
def test_a_run_stopped_early_has_equal_weights_after_a_kill_before_its_export(prepared):
    run, cfg = prepared("early_stopping=collapse", "early_stopping.window=3", "rollout.max_tokens=4", "algo=grpo", "steps=8")
    for _ in range(2):  # the second time from the checkpoint at which it stopped
        train_stage.train(run, cfg)
        assert [row["step"] for row in read_rows(run.metrics_path)] == [1, 2, 3]
        assert read_json(run.stopped_early_path)["step"] == 3 and "cut off" in read_json(run.stopped_early_path)["why"]
        weights = (run.merged_path / "model.safetensors").read_bytes()
        (run.merged_path / "config.json").unlink()
    assert weights == (run.merged_path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_early_or_fails_it(prepared):
    run, cfg = prepared("early_stopping=collapse", "lr=1e30", "peft=full", "algo=grpo", "steps=6")
    train_stage.train(run, cfg)
    assert "loss" in read_json(run.stopped_early_path)["why"]
    plain, cfg = prepared("lr=1e30", "peft=full", "algo=grpo", "steps=6")
    with pytest.raises(FloatingPointError):
        train_stage.train(plain, cfg)


@pytest.mark.slow
def test_two_runs_at_once_compare_rewards_and_both_are_done(launch):
    competing = ("early_stopping=asha", "early_stopping.study=s", "early_stopping.window=2", "early_stopping.first_rung=2",
                 "early_stopping.reduction=2", "early_stopping.collapse=false")  # fmt: skip
    launch("-m", "lr=1e-3,1e-7", *competing, *SHORT, "steps=6", "hydra.launcher.workers=2")
    assert [run.state() for run in all_runs(launch.runs)] == ["done", "done"]
    trials = {trial.user_attrs["run"]: trial for trial in trials_of(launch.runs)}
    for name, summary in summaries(launch.runs).items():
        pruned = trials[name].state == optuna.trial.TrialState.PRUNED
        assert bool(summary["stopped_early"]) == pruned
        assert summary["steps_done"] == (max(trials[name].intermediate_values) if pruned else 6)
    best = max(trials.values(), key=lambda trial: trial.intermediate_values[2])
    assert len(best.intermediate_values) > 1
    assert launch("-m", "lr=1e-3,1e-7", *competing, *SHORT, "steps=6").stdout.count("2 done; nothing to do.") == 1
