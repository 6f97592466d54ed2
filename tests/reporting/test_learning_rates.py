"""Test stars, the choice of each method's own learning rate on constructed results, and its held-out prompts."""

import json

import numpy as np
import pytest

from rlvr_sweeps.assets.problems import Problem, load_problems, split
from rlvr_sweeps.config.identity import evaluation_spec, run_id
from rlvr_sweeps.config.sweeps import RowSpec
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.samples import summarise
from rlvr_sweeps.reporting.differences.baselines import contrasts, smallest_difference
from rlvr_sweeps.reporting.rows import Cell, Result
from rlvr_sweeps.reporting.sweep_results import RowResult
from rlvr_sweeps.reporting.tables.learning_rates import choose
from rlvr_sweeps.reporting.tables.render import make
from rlvr_sweeps.runs.directory import Run
from tests.conftest import write_right

HELD_OUT = ("+benchmark/extra@benchmark=heldout", "data.holdout=40")


def make_row(cfg, levels, seed):
    """Return a row of one run per level: 200 problems, 8 samples each, right with about that probability."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).normal(0, 0.2, 200)  # the problems are the same for all
    cell = Cell(cfg)
    for level in levels:
        right = rng.binomial(8, np.clip(level + difficulty, 0, 1))
        cell.runs.append(Run.of({**cfg, "seed": seed * 100 + len(cell.runs)}))
        cell.summaries.append({"evaluation": "x", "grader": "1"})
        cell.right.append({"tier1": {"k": 8, "golds": "g", "right": {str(n): int(c) for n, c in enumerate(right)}}})
    return RowResult(RowSpec("s", str(levels), (), "", {}), cfg, cell, tuple(cell.runs))


def test_stars_need_a_difference_and_three_seeds(point):
    def row(levels, seed):
        return make_row(point("peft=lora", f"lr={seed}e-5"), levels, seed)

    base, higher, same = row([0.5, 0.51, 0.49], 1), row([0.6, 0.61, 0.59], 2), row([0.5, 0.49, 0.51], 3)
    two_seeds, one_seed = row([0.7, 0.71], 4), row([0.7], 5)
    untrained = make_row(point("peft=none"), [0.3], 6)
    rows = [base, higher, same, two_seeds, one_seed, untrained]
    by_name = contrasts([*rows, base], base.runs[0].name)  # the baseline is in two panels
    assert len(by_name) == 5
    starred = [by_name[each.runs[0].name].star for each in rows[1:]]
    assert starred == [True, False, False, False, True]
    assert all(by_name[each.runs[0].name].p_holm < 0.05 for each in (two_seeds, one_seed))
    assert all(contrast.p_holm >= contrast.difference.p for contrast in by_name.values())
    assert 0.005 < smallest_difference(list(by_name.values())) < 0.2
    assert contrasts(rows, "another") == {} and smallest_difference([]) is None


def test_a_methods_own_rate_and_its_sensitivity(point):
    def rates(*scores):
        rows = []
        for lr, score in zip(("1e-3", "1e-4", "1e-5", "1e-6"), scores, strict=True):
            cfg = point("peft=lora", f"lr={lr}")
            cell = Cell(cfg, [{"heldout/avg": score, "heldout/avg_se": 0.004}], [Run.of(cfg)])
            rows.append(RowResult(RowSpec("s", lr, (), "", {}), cfg, cell if score is not None else None, (Run.of(cfg),)))
        return choose("LoRA", rows)

    peaked = rates(0.2, 0.5, 0.495, 0.4)
    assert peaked.lrs == [1e-6, 1e-5, 1e-4, 1e-3] and peaked.lrs[peaked.best] == 1e-4
    assert peaked.width == pytest.approx(1) and not peaked.at_edge and peaked.complete
    assert rates(0.5, 0.4, 0.495, 0.3).width == 0  # a gap ends the span
    assert rates(0.5, 0.4, 0.3, 0.2).at_edge
    assert not rates(0.5, None, 0.3, 0.2).complete


def test_held_out_prompts_are_neither_trained_on_nor_part_of_the_average(point, world, tmp_path):
    cfg = point("peft=lora", *HELD_OUT)
    trained, held_out = split(load_problems(cfg["data"]), 40)
    assert load_problems(cfg["benchmark"]["heldout"]) == held_out and len(held_out) == 40
    assert len(trained) == 1960 and not set(trained) & set(held_out)
    assert set(split(load_problems(cfg["data"]), 20)[1]) < set(held_out)  # fewer are part of more
    plain = point("peft=lora")
    assert run_id(cfg) != run_id(plain) and evaluation_spec(cfg) != evaluation_spec(plain)
    run = Run.of(cfg)
    run.prepare(cfg)
    for name, source in cfg["benchmark"].items():
        write_right(run, name, load_problems(source), source["k"], 4 if name == "heldout" else 2)
    summary = summarise(run, cfg)
    assert summary["heldout/avg"] == 1 and summary["avg"] == summary["avg_over_samples"] == 0.25
    assert json.loads(run.right_path.read_text())["heldout"]["k"] == 4


def test_no_copy_of_a_held_out_question_is_trained_on():
    """Test a set that contains each question twice, under different ids."""
    problems = [Problem(f"{n}{copy}", f"{n}?", str(n)) for n in range(100) for copy in ("", "-2")]
    trained, held_out = split(problems, 30)
    assert len(held_out) == 30 and trained
    assert not {problem.question for problem in trained} & {problem.question for problem in held_out}


@pytest.mark.parametrize(
    "overrides", [HELD_OUT[:1], (*HELD_OUT, "benchmark.heldout.held_out=20"), ("benchmark.tier1.held_out=5",)]
)
def test_held_out_prompts_that_are_trained_on_are_refused(point, overrides):
    with pytest.raises(Refused, match="held out"):
        point("peft=lora", *overrides)


def test_holding_out_all_prompts_is_refused(world):
    with pytest.raises(Refused, match="nothing to train on"):
        split(load_problems(world["data"]), 2000)


def test_the_table_of_own_rates():
    """Test PiSSA with its best rate at the lowest of the grid, VeRA at the highest, and LoRA at the common rate."""

    def source(run, cfg):
        peak = {"pissa": 2e-4, "vera": 1e-2}.get(cfg["peft"]["name"], 1e-3)
        level = round(0.6 - 0.2 * abs(np.log10(cfg["lr"] / peak)), 6)
        counts = {
            name: {"k": 5, "golds": "g", "right": {str(n): 5 * (n < 100 * level) for n in range(100)}} for name in ("tier1",)
        }
        summary = {"evaluation": "x", "grader": "1", "avg": level - 0.1, "avg_se": 0.01, "pass": 1.0}
        return Result(summary | {"heldout/avg": level, "heldout/avg_se": 0.001}, counts)

    _, sheet = make("lr_fair", ["model=tiny"], source)
    rows = {line.entries["row"].value: line for line in sheet.blocks["Methods"]}
    shown = {name: (row.entries["own/lr"].value, row.entries["width"].value) for name, row in rows.items()}
    assert shown["LoRA"] == ("1e-3", "0.0") and shown["PiSSA"] == ("2e-4 (edge)", "≥ 0.0")
    assert shown["VeRA"][0] == "0.01 (edge)"
    assert rows["PiSSA"].entries["common/avg"].value == pytest.approx(50 - 20 * np.log10(5))
    assert rows["PiSSA"].entries["gain"].value == pytest.approx(20 * np.log10(5)) and rows["LoRA"].entries["gain"].value == 0
    assert rows["PiSSA"].entries["own/difference"].value.startswith("+0.0")
    assert rows["PiSSA"].facts["common/points"] == pytest.approx(-13) and rows["PiSSA"].facts["heldout/1e-3"] == pytest.approx(
        46.0206
    )
    assert rows["PiSSA"].entries["paper"].value == 0.2


def test_the_table_of_grids_that_grow():
    """Test lr=auto: LoRA's best rate is inside its first three, DoRA's is two rates further, or not within the bound."""

    def source(_run, cfg):
        peak = 2e-2 if cfg["peft"]["name"] == "dora" else 1e-3
        level = round(0.6 - 0.2 * abs(np.log10(cfg["lr"] / peak)), 6)
        right = {"tier1": {"k": 5, "golds": "g", "right": {str(n): 5 * (n < 100 * level) for n in range(100)}}}
        summary = {"evaluation": "x", "grader": "1", "avg": level - 0.1, "avg_se": 0.01, "pass": 1.0}
        return Result(summary | {"heldout/avg": level, "heldout/avg_se": 0.001}, right)

    _, sheet = make("seeds", ["model=tiny", "seed=42", "lr=auto"], source)
    rows = {line.entries["row"].value: line.entries for line in sheet.blocks["Seeds"]}
    assert rows["LoRA"]["curve"].value == "3e-4 49.5, 1e-3 60.0*, 3e-3 50.5" and rows["LoRA"]["own/lr"].value == "1e-3"
    assert rows["DoRA"]["own/lr"].value == "0.03" and rows["DoRA"]["curve"].value.endswith("0.03 56.5*, 0.1 46.0")
    assert rows["LoRA"]["own/difference"].value == "baseline" and not any("at an edge for" in note for note in sheet.notes)
    _, sheet = make("seeds", ["model=tiny", "seed=42", "lr=auto:4"], source)
    rows = {line.entries["row"].value: line.entries for line in sheet.blocks["Seeds"]}
    assert rows["DoRA"]["own/lr"].value == "0.01 (edge)" and any("at an edge for DoRA" in note for note in sheet.notes)
