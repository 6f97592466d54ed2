"""Test tables of constructed runs: their entries in every format, stars, dashes, and equality between sources."""

import csv
import io
import json

import pytest
from rich.console import Console

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.rows import Result
from rlvr_sweeps.reporting.tables import render
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet, as_csv, as_latex, as_markdown, show, write
from rlvr_sweeps.runs.directory import all_runs

SMALL = ("steps=5",)


def overrides_of(tmp_path):
    """Return the overrides of `evaluated` runs: two tiers of three problems, four samples each."""
    path = tmp_path / "problems.jsonl"
    tiers = [f"benchmark.{tier}.{key}" for tier in ("tier1", "tier2") for key in (f"path={path}", "problems=3", "k=4")]
    return [*tiers, *(f"~benchmark.tier{n}" for n in (3, 4, 5)), *SMALL, f"runs_dir={tmp_path}/runs"]


@pytest.fixture
def batches(evaluated):
    """Make runs of Table 5's batch sizes: three seeds of the baseline, two of the second row."""
    for seed, right in ((42, 1), (43, 2), (44, 1)):
        evaluated("sweep=batch_size", "peft=lora", "batch_size=64", f"seed={seed}", *SMALL, right=right)
    for seed, right in ((42, 3), (43, 4)):
        evaluated("sweep=batch_size", "peft=lora", "batch_size=16", f"seed={seed}", *SMALL, right=right)


def test_a_table_shows_finished_and_missing_runs(batches, tmp_path):
    _, sheet = render.make("batch_size", [*overrides_of(tmp_path), "seed=42,43,44"])
    small, baseline = sheet.blocks["Batch size"]
    assert small.entries["row"].value == "batch 16" and small.entries["stands_for"].value == "batch 32"
    assert (small.entries["seeds"].value, baseline.entries["seeds"].value) == ("2/3", "3")
    assert small.entries["tier1/avg"].value == 100 and small.entries["tier2/avg"].value == pytest.approx(87.5)
    average = small.entries["overall/avg"]
    assert average.value == pytest.approx(93.75) and average.error == pytest.approx(6.25) and average.best  # seeds 87.5 and 100
    assert small.entries["overall/paper"].value == 43.0 and baseline.entries["difference"].value == "baseline"
    assert small.facts["points"] == pytest.approx(93.75 - 100 * (0.625 + 0.75 + 0.625) / 3)
    assert not average.star  # two seeds on one side
    notes = " ".join(sheet.notes)
    assert "5 of 6 runs have finished" in notes and "seed=42,43,44" in notes and "not comparable" in notes
    assert "Smallest difference to LoRA that can be detected" in notes and "problems, samples and seeds" in notes


def test_the_error_of_one_seed_is_that_of_sampling(evaluated, tmp_path):
    evaluated("sweep=batch_size", "peft=lora", "batch_size=64", *SMALL)
    run = evaluated("sweep=batch_size", "peft=lora", "batch_size=16", *SMALL, right=3)
    _, sheet = render.make("batch_size", overrides_of(tmp_path))
    line = sheet.blocks["Batch size"][0]
    summary = json.loads(run.summary_path.read_text())
    assert line.entries["overall/avg"].error == pytest.approx(100 * summary["avg_se"])
    assert line.facts["interval_from"] == "samples"
    assert any("one seed does not show" in note for note in sheet.notes)


def test_equal_seeds_do_not_hide_the_error_of_sampling(evaluated, tmp_path):
    """Test runs with equal scores: all are sampled with the same random numbers, so the sampling error remains."""
    for seed in (42, 43, 44):
        run = evaluated("sweep=batch_size", "peft=lora", "batch_size=64", f"seed={seed}", *SMALL)
    _, sheet = render.make("batch_size", [*overrides_of(tmp_path), "seed=42,43,44"])
    error = sheet.blocks["Batch size"][1].entries["overall/avg"].error
    assert error == pytest.approx(100 * json.loads(run.summary_path.read_text())["avg_se"]) and error > 5


def test_no_runs_are_dashes_not_zeros(tmp_path, capsys):
    rlvr(["table", "batch_size", f"runs_dir={tmp_path}/runs", "--out", str(tmp_path / "out")])
    assert "0 of 2 runs have finished" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/batch_size.csv").open()))
    assert len(rows) == 2 and {row["overall/avg"] for row in rows} == {""}
    table = json.loads((tmp_path / "out/batch_size.json").read_text())
    assert [row["overall/avg"] for row in table["rows"]] == [None, None]
    assert "| - |" in (tmp_path / "out/batch_size.md").read_text()


def test_another_source_gives_the_same_table(batches, tmp_path):
    """Test a source that gives a Result per run name, as W&B does: the runs' directory is not read."""
    from_runs = render.make("batch_size", [*overrides_of(tmp_path), "seed=42,43,44"])
    results = {
        run.name: Result(json.loads(run.summary_path.read_text()), json.loads(run.right_path.read_text()))
        for run in all_runs(tmp_path / "runs")
    }
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert (
        render.make("batch_size", [*overrides_of(tmp_path), "seed=42,43,44"], lambda run, _: results.get(run.name)) == from_runs
    )


def test_rows_that_were_graded_differently_are_refused(batches, tmp_path):
    run = all_runs(tmp_path / "runs")[0]
    write_json(run.summary_path, json.loads(run.summary_path.read_text()) | {"grader": "another"})
    with pytest.raises(Refused, match="versions of the grader"):
        render.make("batch_size", [*overrides_of(tmp_path), "seed=42,43,44"])


def test_a_table_has_one_value_of_a_dial():
    with pytest.raises(Refused, match="one value of lr"):
        render.make("rank", ["lr=1e-4,1e-3"])
    with pytest.raises(Refused, match="There is no sweep 'table9'"):
        render.make("table9", [])


SHEET = Sheet(
    "t", "Table 7: α & b_2",
    [Column("row", "", align="left"), Column("a", "Avg@8", "AMC"), Column("b", "Pass@8", "AMC", detail=True)],
    {
        "one": [Line({"row": Entry("LoRA+"), "a": Entry(12.34, 0.56, best=True, star=True), "b": Entry(None)}, {"p": 0.01})],
        "two": [Line({"row": Entry("50 %"), "a": Entry(1.0)})],
    },
    ["p < .05"],
)  # fmt: skip


def test_every_format_has_the_same_entries(tmp_path):
    assert "| LoRA+ | **12.3 ± 0.6\\*** | - |" in as_markdown(SHEET)
    latex = as_latex(SHEET)
    assert r"LoRA+ & \textbf{12.3 $\pm$ 0.6\textsuperscript{*}} & -- \\" in latex and r"50 \%" in latex
    assert r"\caption{$\alpha$ \& b\_2}" in latex and r"\cmidrule(lr){2-3}" in latex and r"p $<$ .05" in latex
    first, second = csv.DictReader(io.StringIO(as_csv(SHEET)))
    assert (first["a"], first["a_se"], first["b"], first["p"], second["p"]) == ("12.34", "0.56", "", "0.01", "")
    text = io.StringIO()
    show(SHEET, Console(file=text, width=100))
    assert "12.3 ± 0.6*" in text.getvalue() and "Pass@8" not in text.getvalue()
    assert [path.name for path in write(SHEET, tmp_path)] == ["t.md", "t.tex", "t.csv", "t.json"]


@pytest.mark.slow
def test_a_row_is_compared_with_lora_of_its_own_model():
    """Test `paper`, which has both models: the rows of the 7B model are compared with LoRA on the 7B model."""

    def source(run, cfg):
        right = 20 if cfg["model"]["name"] == "r1_qwen_7b" else 4
        counts = {
            name: {
                "k": benchmark["k"],
                "golds": "g",
                "right": dict.fromkeys(map(str, range(benchmark["problems"])), min(right, benchmark["k"])),
            }
            for name, benchmark in cfg["benchmark"].items()
        }
        scores = {f"{name}/avg": 0.5 for name in counts}
        summary = {"run": run.name, "evaluation": "e", "grader": 1, "avg": 0.5, "avg_se": 0.01, "seed": cfg["seed"], **scores}
        return Result(summary, counts)

    _, sheet = render.make("paper", ["model=r1_qwen_1_5b", "seed=42,43,44"], source)
    lines = [line for block in sheet.blocks.values() for line in block]
    differences = [line.entries["difference"].value for line in lines]
    assert differences.count("baseline") >= 2
    assert all(line.facts["points"] == 0 for line in lines if line.facts.get("points") is not None)
