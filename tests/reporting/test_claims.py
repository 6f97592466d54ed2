"""Test the verdicts on claim cards: the rule, its error rates, and verdicts from the files of runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from rlvr_sweeps.assets.problems import load_problems
from rlvr_sweeps.cli import main
from rlvr_sweeps.config.claims import Contrast, load_claims
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.claims import table, verdicts
from rlvr_sweeps.reporting.claims.page import claim_entries
from rlvr_sweeps.reporting.claims.rule import Verdict, decide, detectable, level, together
from rlvr_sweeps.reporting.differences.bootstrap import Difference, difference
from rlvr_sweeps.reporting.differences.compare import compare
from rlvr_sweeps.reporting.page.report import write_report
from rlvr_sweeps.reporting.rows import Result
from rlvr_sweeps.reporting.tables.formats import show
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import find_runs
from tests.conftest import finish_evaluated

SUPPORTED, REFUTED, UNDECIDED = Verdict.SUPPORTED, Verdict.REFUTED, Verdict.UNDECIDED
(DORA,) = load_claims(["dora_beats_lora"])  # greater, one point


@pytest.mark.parametrize(
    ("direction", "value", "low", "high", "p", "expected"),
    [
        ("greater", 2.0, 0.5, 3.5, 0.01, SUPPORTED),
        ("greater", 2.0, 0.5, 3.5, 0.06, UNDECIDED),  # Holm's correction
        ("greater", 0.8, 0.2, 1.4, 0.01, UNDECIDED),  # above 0, and perhaps too small to matter
        ("greater", 0.6, 0.2, 0.9, 0.01, REFUTED),  # above 0, and certainly too small to matter
        ("greater", 2.0, -0.5, 4.5, 0.01, UNDECIDED),
        ("greater", -3.0, -5.0, -1.0, 0.01, REFUTED),
        ("less", -2.0, -3.5, -0.5, 0.01, SUPPORTED),
        ("less", 0.1, -0.7, 0.9, 0.8, REFUTED),
        ("less", -0.5, -1.2, 0.2, 0.2, UNDECIDED),
        ("equivalent", 0.3, -0.4, 0.9, 0.5, SUPPORTED),
        ("equivalent", 0.3, -0.4, 1.1, 0.5, UNDECIDED),
        ("equivalent", -2.0, -3.5, -0.5, 0.01, REFUTED),
        ("equivalent", -0.9, -1.5, -0.3, 0.01, UNDECIDED),
    ],
)
def test_the_rule(direction, value, low, high, p, expected):
    claim = replace(DORA, direction=direction)
    assert decide(claim, Difference(value / 100, low / 100, high / 100, p), p) == expected


def test_a_card_needs_all_contrasts_and_falls_with_one():
    assert together([SUPPORTED, SUPPORTED]) == SUPPORTED and together([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert together([SUPPORTED, REFUTED, UNDECIDED]) == REFUTED and together([]) == UNDECIDED


def arms(effect, seed, problems=100, seeds=3):
    """Return two arms of simulated runs: problems of varying difficulty, seeds that differ, 8 samples of each problem."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(0.1, 0.8, problems)

    def arm(level):
        levels = difficulty + level + rng.normal(0, 0.005, (seeds, 1)) + rng.normal(0, 0.05, problems)
        return [rng.binomial(8, np.clip(levels, 0, 1)) / 8]

    return arm(effect), arm(0.0)


def test_the_level_of_an_interval_widens_it_and_leaves_p():
    a, b = arms(0.02, 1)
    usual, wide = difference(a, b), difference(a, b, level=1 - 0.05 / 4)
    assert usual == difference(a, b, level=0.95) and wide.p == usual.p and wide.value == usual.value
    assert 1.15 < (wide.high - wide.low) / (usual.high - usual.low) < 1.6
    four = replace(DORA, contrasts=DORA.contrasts * 4)
    assert level(DORA) == 0.95 and level(four) == 0.9875 and level(replace(four, combine="mean")) == 0.95
    assert detectable(DORA, Difference(0, -0.0196, 0.0196, 1)) == pytest.approx(0.028016, abs=1e-5)  # 1.96 + 0.84 errors
    assert detectable(replace(DORA, direction="equivalent"), Difference(0, -0.0196, 0.0196, 1)) == pytest.approx(
        0.032415, abs=1e-5
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("direction", "effect", "wrong"),
    [("greater", 0.0, SUPPORTED), ("greater", 0.01, REFUTED), ("equivalent", 0.01, SUPPORTED), ("equivalent", 0.0, REFUTED)],
)
def test_wrong_verdicts_are_as_rare_as_promised(direction, effect, wrong):
    """Simulate 400 experiments: no effect, and exactly the smallest effect; each wrong verdict is one-sided, at most 2.5 %."""
    claim = replace(DORA, direction=direction)
    results = [difference(*arms(effect, seed)) for seed in range(400)]
    share = np.mean([decide(claim, result, result.p) == wrong for result in results])
    assert share <= 0.025 + 3 * (0.025 * 0.975 / 400) ** 0.5


@pytest.fixture
def finished(composer, tmp_path):
    """Return a function that writes the files of a run with the default evaluation, right with about the given probability."""

    def write(*overrides, level, k=None):
        evaluation = [f"benchmark.tier{tier}.k={k}" for tier in range(1, 6)] if k else []
        cfg = composer.point([*overrides, *evaluation, "analysis=none", f"runs_dir={tmp_path}/runs"]).cfg
        run = Run.of(cfg)
        rng = np.random.default_rng(int(run.id, 16))
        run.prepare(cfg)
        for number, (name, source) in enumerate(cfg["benchmark"].items()):
            path = run.samples_path(name)
            path.parent.mkdir(exist_ok=True)
            rows = []
            for index, problem in enumerate(load_problems(source)):
                chance = np.clip(level + 0.2 * np.sin(number + index), 0, 1)
                rows += [
                    {"problem": problem.id, "sample": sample, "correct": bool(rng.random() < chance), "tokens": 5,
                     "truncated": False, "text": "", "gold": problem.answer, "answer": "", "reason": "correct"}
                    for sample in range(source["k"])
                ]  # fmt: skip
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        finish_evaluated(run, cfg)
        return run

    return write


def verdict_of(composer, tmp_path, *overrides):
    """Return the verdict on a card from the runs in the test's folder."""
    (result,) = verdicts.read_claims(
        ["dora_beats_lora"], ["model=tiny", "analysis=none", f"runs_dir={tmp_path}/runs", *overrides], composer=composer
    )
    return result


def test_verdicts_from_runs(finished, composer, tmp_path, capsys):
    """Test missing runs, one seed, a supported claim with the numbers of rlvr compare, and runs of another evaluation."""
    dora = [finished("peft=dora", f"seed={seed}", level=0.6) for seed in (42, 43)]
    lora = [finished("peft=lora", "seed=42", level=0.4)]
    result = verdict_of(composer, tmp_path)
    assert result.verdict == UNDECIDED and not result.has_runs
    assert [text.rpartition(" (")[2] for text in result.missing] == ["not launched)"] * 2  # three seeds where a row has one
    assert result.command == (f"python launch.py sweep=methods model=tiny analysis=none runs_dir={tmp_path}/runs seed=42,43,44")
    one_seed = verdict_of(composer, tmp_path, "seed=42")
    assert one_seed.verdict == UNDECIDED and one_seed.contrasts[0].difference.low > 0.1
    assert "two trained models" in one_seed.notes[0]

    lora.append(finished("peft=lora", "seed=43", level=0.4))
    result = verdict_of(composer, tmp_path)
    assert result.verdict == SUPPORTED and result.contrasts[0].label == "DoRA − LoRA" and result.contrasts[0].seeds == (2, 2)
    rows = compare([",".join(run.name for run in lora), ",".join(run.name for run in dora)], tmp_path / "runs")
    compared = next(row for row in rows if row["benchmark"] == "overall")
    measured = result.contrasts[0].difference
    assert (measured.value, measured.low, measured.high) == (compared["difference"], compared["low"], compared["high"])
    assert result.contrasts[0].detectable < 0.1
    show(table.sheet([result]), Console(width=80))
    assert "supported  +" in capsys.readouterr().out
    (entry,) = claim_entries(tmp_path / "runs", find_runs(tmp_path / "runs"))
    assert entry["title"] == "DoRA is more accurate than LoRA." and entry["verdict"] == "supported"
    assert entry["effect"] == "at least 1" and entry["contrasts"][0]["difference"].startswith("+")

    summary = json.loads(dora[0].summary_path.read_text())
    write_json(dora[0].summary_path, summary | {"grader": "older"})
    result = verdict_of(composer, tmp_path)
    assert (
        result.verdict == UNDECIDED and "versions of the grader" in result.notes[0] and result.contrasts[0].difference is None
    )
    finished("peft=dora", "seed=42", level=0.6, k=2)
    result = verdict_of(composer, tmp_path)
    assert result.verdict == UNDECIDED and result.missing == (f"{dora[0].name} (evaluated with other settings)",)
    assert claim_entries(tmp_path / "runs", find_runs(tmp_path / "runs")) == []


@pytest.mark.exhaustive
def test_the_command_and_the_report_page_show_the_verdict(finished, tmp_path, capsys):
    for seed in (42, 43):
        finished("peft=dora", f"seed={seed}", level=0.6)
        finished("peft=lora", f"seed={seed}", level=0.4)
    page = write_report(tmp_path / "runs", tmp_path / "report.html").page.read_text()
    section = page.partition('<section id="claims"')[2].partition("</section>")[0]
    assert "DoRA is more accurate than LoRA." in section and "<strong>supported</strong>" in section
    main(
        [
            "claims",
            "dora_beats_lora",
            "model=tiny",
            "analysis=none",
            f"runs_dir={tmp_path}/runs",
            "--json",
            "--out",
            str(tmp_path),
        ]
    )
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "supported"
    assert "supported" in (tmp_path / "claims.md").read_text() and "supported" in (tmp_path / "claims.tex").read_text()


def make_source(accuracy, held_out=None):
    """Return a source of results whose runs have these accuracies; `held_out` gives the accuracy on held-out prompts."""

    def source(run, cfg):
        rng = np.random.default_rng(int(run.id, 16))
        chance = np.clip(accuracy(cfg) + np.random.default_rng(0).normal(0, 0.2, 200), 0, 1)
        right = {"tier1": {"k": 64, "golds": "g", "right": dict(enumerate(map(int, rng.binomial(64, chance))))}}
        heldout = {"heldout/avg": held_out(cfg), "heldout/avg_se": 0.001} if held_out else {}
        return Result(
            {"evaluation": "x", "grader": "1", "avg": 0.5, "avg_se": 0.01, "pass": 1.0, "seed": cfg["seed"], **heldout}, right
        )

    return source


def peak_at(rates):
    """Return the held-out accuracy of a method with its peak at the rate given for it, else at 1e-3."""
    return lambda cfg: 0.6 - 0.2 * abs(np.log10(cfg["lr"] / rates.get(cfg["peft"]["name"], 1e-3)))


def test_rates_at_an_edge_decide_nothing_that_a_better_rate_could_overturn(composer):
    arguments = ["model=tiny", "seed=42,43,44"]
    inside, edge = make_source(lambda _cfg: 0.5, peak_at({})), make_source(lambda _cfg: 0.5, peak_at({"full": 5e-5}))
    (result,) = verdicts.read_claims(["lora_equals_full"], arguments, inside, composer)
    assert result.verdict == SUPPORTED and result.contrasts[0].label == "LoRA lr 1e-3 − Full lr 1e-3"
    (result,) = verdicts.read_claims(["lora_equals_full"], arguments, edge, composer)
    assert result.verdict == UNDECIDED and "at an edge of its grid for Full lr 2e-4" in result.notes[0]
    worse = make_source(lambda cfg: 0.5 if cfg["peft"]["name"] == "full" else 0.3, peak_at({"full": 5e-5}))
    (result,) = verdicts.read_claims(["lora_equals_full"], arguments, worse, composer)
    assert result.verdict == REFUTED  # a better rate of full fine-tuning would only widen the difference
    (result,) = verdicts.read_claims(["lora_equals_full"], [*arguments, "lr=auto"], edge, composer)
    assert result.verdict == SUPPORTED and result.contrasts[0].label == "LoRA lr 1e-3 − Full lr 6e-5"


def test_a_difference_of_differences_and_an_average(composer):
    """Test DoRA's advantage of 10 points under DAPO that is 4 under GRPO and Dr. GRPO, and its average over objectives."""

    def accuracy(cfg):
        advantage = 0.1 if cfg["algo"]["name"] == "dapo" else 0.04
        return 0.4 + advantage * (cfg["peft"]["name"] == "dora")

    arguments = ["model=tiny", "seed=42,43,44"]
    (result,) = verdicts.read_claims(["algorithm_keeps_ranking"], arguments, make_source(accuracy), composer)
    assert result.verdict == REFUTED and len(result.contrasts) == 2
    assert all(each.difference.value == pytest.approx(-0.06, abs=0.02) for each in result.contrasts)
    assert result.contrasts[0].label == "(DoRA GRPO − LoRA GRPO) − (DoRA DAPO − LoRA DAPO)"
    algos = ("grpo", "dr_grpo", "dapo")
    contrasts = tuple(Contrast((f"peft=dora algo={algo}",), (f"peft=lora algo={algo}",)) for algo in algos)
    claim = replace(result.claim, combine="mean", direction="greater", contrasts=contrasts)
    reader = verdicts.ClaimReader(composer, "tiny", ["model=tiny"], [42, 43, 44], [], make_source(accuracy))
    (average,) = verdicts.verdicts([claim], reader)
    assert average.verdict == SUPPORTED and len(average.contrasts) == 1
    assert average.contrasts[0].difference.value == pytest.approx(0.06, abs=0.015)


def test_an_override_that_a_cards_rows_set_is_refused():
    with pytest.raises(Refused, match="sets peft itself"):
        verdicts.read_claims(["dora_beats_lora"], ["model=tiny", "peft=lora"])
