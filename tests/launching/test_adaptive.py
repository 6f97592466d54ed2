"""Test sweeps within a budget: which seeds a round has, when it stops, and that no look is forgotten between launches."""

import itertools
import json

import pytest

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching.adaptive import read_budget, rounds
from rlvr_sweeps.reporting.claims.looks import Looks
from rlvr_sweeps.reporting.differences import sequential


@pytest.fixture
def base(tmp_path):
    """Return the overrides by which the fixture `evaluated` makes runs."""
    used = [
        f"benchmark.{tier}.{key}"
        for tier in ("tier1", "tier2")
        for key in (f"path={tmp_path}/problems.jsonl", "problems=3", "k=4")
    ]
    return [*used, *(f"~benchmark.tier{n}" for n in (3, 4, 5)), "analysis=none", f"runs_dir={tmp_path}/runs"]


@pytest.fixture
def start(composer, base):
    """Return a function that starts the rounds of sweep=algo: LoRA by three objectives, which a card calls equivalent."""

    def begin(budget="40", *more, most=6, plan=False):
        return rounds(composer, "algo", "tiny", [*base, *more], read_budget(budget), most, plan)

    return begin


def finish(evaluated, points, accuracies):
    """Write the results of a round's runs; accuracies: by objective, right samples of four on tier2, a list over the seeds."""
    for overrides in points:
        values = dict(text.split("=", 1) for text in overrides if "=" in text)
        own = [text for text in overrides if text.startswith(("peft=", "algo=", "seed="))]
        evaluated(*own, right=accuracies[values["algo"]][int(values["seed"]) - 42])


def runs_of(points):
    """Return (objective, seed) of each run of a round."""
    values = [dict(text.split("=", 1) for text in overrides if "=" in text) for overrides in points]
    return sorted((each["algo"], int(each["seed"])) for each in values)


def test_seeds_go_to_claims_that_are_open_and_stop_when_they_are_decided(start, evaluated, capsys, tmp_path):
    accuracies = {"grpo": [2] * 6, "dapo": [2] * 6, "dr_grpo": [4, 1, 4, 1, 4, 1]}
    launch = start()
    points = next(launch)
    assert runs_of(points) == [(algo, seed) for algo in ("dapo", "dr_grpo", "grpo") for seed in (42, 43)]
    finish(evaluated, points, accuracies)
    further = []
    for points in launch:
        further += runs_of(points)
        finish(evaluated, points, accuracies)
    assert "undecided" in capsys.readouterr().out
    assert all(algo != "grpo" for algo, _ in further), "GRPO and DAPO are equal in every seed, which is decided at once"
    (path,) = (tmp_path / "runs" / "looks").glob("algo-tiny-*.json")
    looks = json.loads(path.read_text())["looks"]
    equal, other = sorted(looks.values(), key=len)
    assert [(look["seeds"], look["verdict"]) for look in equal] == [(2, "supported")]
    assert [look["seeds"] for look in other] == list(range(2, 2 + len(other)))
    assert all(first["ratio"] >= second["ratio"] for first, second in itertools.pairwise(other))


def test_a_later_launch_goes_on_from_the_record(start, evaluated, composer, base, tmp_path, capsys):
    accuracies = {"grpo": [2, 3, 2, 3, 2, 3], "dapo": [3, 2, 3, 2, 2, 3], "dr_grpo": [2] * 6}
    launch = start("6")
    finish(evaluated, next(launch), accuracies)
    assert list(launch) == []
    assert "The budget of 6 runs is spent" in capsys.readouterr().out
    before = Looks(composer, "algo", "tiny", base, tmp_path / "runs", 6)
    assert [len(question.looks) for question in before.questions] == [1, 1]
    points = next(start("8"))
    assert runs_of(points) != [], "the same command with a larger budget goes on"
    assert {seed for _, seed in runs_of(points)} == {44}
    assert len(points) <= 2
    again = Looks(composer, "algo", "tiny", base, tmp_path / "runs", 6)
    assert [question.looks for question in again.questions] == [question.looks for question in before.questions], "looked twice"
    with pytest.raises(Refused, match=r"most_seeds=7 differs from the 6"):
        next(start(most=7))


def test_a_verdict_is_not_taken_back_and_ends_the_sweep(start, evaluated, capsys):
    accuracies = {"grpo": [4] * 6, "dapo": [1] * 6, "dr_grpo": [1] * 6}
    launch = start()
    finish(evaluated, next(launch), accuracies)
    assert list(launch) == []
    out = capsys.readouterr().out
    assert "All claims are decided" in out
    assert "refuted" in out


def test_a_round_that_has_not_ended_ends_the_launch_and_the_same_command_repeats_it(start, evaluated, capsys):
    launch = start()
    points = next(launch)
    assert list(launch) == []
    assert "6 of 6 runs of this round are not evaluated" in capsys.readouterr().out
    finish(evaluated, points[:3], {"grpo": [2] * 6, "dapo": [2] * 6, "dr_grpo": [2] * 6})
    assert len(next(start())) + 3 == len(points)


def test_a_plan_shows_one_round(start):
    assert len(list(start(plan=True))) == 1


@pytest.mark.parametrize(
    ("budget", "more", "most", "message"),
    [
        ("5", (), 6, "needs 2 seeds of each row, that is 6 runs"),
        ("40", ("seed=1",), 6, "chooses the seeds itself"),
        ("40", ("lr=1e-3,1e-4",), 6, "one value of lr"),
        ("40", (), 1, "Allowed: 2 to 30"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(start, budget, more, most, message):
    with pytest.raises(Refused, match=message):
        next(start(budget, *more, most=most))


@pytest.mark.parametrize("text", ["0", "x", "2.5", "-3h", "h"])
def test_a_budget_is_runs_or_hours(text):
    assert (read_budget("40").limit, read_budget("1.5h").in_hours) == (40, True)
    with pytest.raises(Refused, match="Allowed: a number of runs"):
        read_budget(text)


def test_hours_are_counted_from_the_runs(start, evaluated, tmp_path):
    accuracies = {"grpo": [2, 3, 2, 3, 2, 3], "dapo": [3, 2, 3, 2, 2, 3], "dr_grpo": [2] * 6}
    launch = start("0.01h")
    finish(evaluated, next(launch), accuracies)  # each takes a second, so that 36 runs are affordable
    assert len(next(launch)) > 0
    assert list(start("0.0017h")) == [], "6 seconds are spent"


def test_a_sweep_without_claims_and_a_damaged_run_are_refused(composer, base, start, evaluated, tmp_path):
    with pytest.raises(Refused, match="no card of conf/claim is about sweep=rank"):
        Looks(composer, "rank", "tiny", base, tmp_path / "runs", 6)
    finish(evaluated, next(start()), {"grpo": [2] * 6, "dapo": [2] * 6, "dr_grpo": [2] * 6})
    next((tmp_path / "runs").glob("tiny-lora-*/summary.json")).write_text("{")
    with pytest.raises(Refused, match="next seeds cannot be chosen"):
        next(start())


def test_cards_about_differences_of_differences_and_means_have_weights_that_sum_to_zero(composer, tmp_path):
    looks = Looks(composer, "algo_methods", "tiny", [f"runs_dir={tmp_path}"], tmp_path, 6)
    assert any(sorted(question.weights.values()) == [-1, -1, 1, 1] for question in looks.questions)
    assert all(sum(question.weights.values()) == pytest.approx(0) for question in looks.questions)
    assert {question.alpha for question in looks.questions} == {
        question.claim.alpha / question.claim.intervals for question in looks.questions
    }


def test_one_run_has_no_budget(point):
    with pytest.raises(Refused, match="budget=4 needs a sweep that claims are about"):
        point("peft=lora", "budget=4")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_real_sweep_goes_on_round_by_round(launch):
    small = (
        "model=tiny", "steps=2", "analysis=none", "evaluation.max_tokens=24", "benchmark.tier1.k=4", "benchmark.tier2.k=4",
        "~benchmark.tier3", "~benchmark.tier4", "~benchmark.tier5", "most_seeds=4",
    )  # fmt: skip
    first = launch("sweep=algo", "budget=7", *small).stdout
    assert "Claims after 6 runs" in first
    finished = len(list(launch.runs.glob("*/summary.json")))
    assert finished == 7 or "All claims are decided" in first or "No further seed" in first
    again = launch("sweep=algo", "budget=7", *small).stdout
    assert len(list(launch.runs.glob("*/summary.json"))) == finished
    assert f"Claims after {finished} runs" in again
    assert sequential.FIRST_LOOK == 2
