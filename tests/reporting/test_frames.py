"""Test `rlvr_sweeps.load`: numbers equal to those of report and table, dtypes, damaged runs, parquet, the notebook."""

import csv
import importlib.util
import json
import math
import re
import shutil

import pandas as pd
import pytest

import rlvr_sweeps
from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.rows import cells
from rlvr_sweeps.runs.reading import find_runs
from tests.conftest import ROOT

REAL = ROOT / "results" / "smollm2_135m" / "runs"  # runs of a model of 135M parameters, of 30 steps each but Base
COUNT = len(list(REAL.iterdir()))
STEPS = 30 * (COUNT - 1)
MOST_PICTURE_BYTES = 90_000


@pytest.fixture(scope="module")
def real():
    return rlvr_sweeps.load(REAL)


@pytest.fixture
def copies(tmp_path):
    """Return a folder with copies of the real runs, to damage."""
    shutil.copytree(REAL, tmp_path / "runs")
    return tmp_path / "runs"


def notebook_module():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "bench" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores_of(samples):
    """Return accuracy and standard error by run, computed from the samples with pandas alone."""
    shares = samples.groupby(["run", "problem"], observed=True)["correct"].agg(["mean", "size"])
    terms = shares["mean"] * (1 - shares["mean"]) / (shares["size"] - 1)
    by_run = terms.groupby("run", observed=True)
    return pd.DataFrame({
        "avg": shares["mean"].groupby("run", observed=True).mean(), "se": by_run.sum() ** 0.5 / by_run.size(),
    })  # fmt: skip


def test_samples_give_the_numbers_of_the_report_and_of_the_table(real, tmp_path, capsys):
    rlvr(["report", str(REAL), "--out", str(tmp_path / "report.html")])
    with (tmp_path / "report.csv").open() as file:
        report = {row["run"]: row for row in csv.DictReader(file)}
    table = {}  # of each seed, so that a row is a run
    for seed in (42, 43):
        rlvr(["table", "real", "model=smollm2_135m", f"seed={seed}", f"runs_dir={REAL}", "--out", str(tmp_path)])
        rows = json.loads((tmp_path / "real.json").read_text())["rows"]
        table |= {row["runs"]: row for row in rows if row["runs_done"]}
    scores, runs = scores_of(real.samples), real.runs.set_index("run")
    assert set(report) == set(table) == set(scores.index) == set(runs.index) and len(runs) == COUNT
    for name, (avg, error) in scores.iterrows():
        assert float(report[name]["avg"]) == pytest.approx(avg) and float(report[name]["avg_se"]) == pytest.approx(error)
        assert table[name]["overall/avg"] == pytest.approx(100 * avg)
        assert table[name]["overall/avg_se"] == pytest.approx(100 * error)
        for column, text in report[name].items():  # every number of the CSV, to the last digit
            value = runs.loc[name].get(column, name)
            if column == "finished":
                assert value.timestamp() == pytest.approx(float(text), abs=1e-3)
            elif text == "":
                assert pd.isna(value) or (value == 0 and "/share_" in column) or column == "modules"  # newer than some runs
            else:
                assert (str(value) if isinstance(value, str) else float(value)) == (
                    text if isinstance(value, str) else float(text)
                )


@pytest.mark.slow
def test_a_sweep_of_seeds_has_the_numbers_of_its_report_and_table(launch, tmp_path, capsys):
    """Test a launched sweep of two methods with two seeds: means from the samples, and errors, are those of the table."""
    dials = ["model=tiny", "seed=1,2", "steps=2", "batch_size=16", "rollout.group_size=8", "rollout.max_tokens=14"]
    few = ["benchmark.tier1.k=2", "benchmark.tier2.k=2", *(f"~benchmark.tier{tier}" for tier in (3, 4, 5))]
    launch("-m", "sweep=seeds", "signal_check=off", *dials, *few)
    loaded = rlvr_sweeps.load(launch.runs, sweep="seeds")
    rlvr(["table", "seeds", *dials, *few, f"runs_dir={launch.runs}", "--out", str(tmp_path), "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    shares = loaded.with_settings(loaded.samples).groupby(["method", "seed", "benchmark"], observed=True)["correct"].mean()
    means = shares.groupby("method", observed=True).mean()
    table = loaded.cells.set_index("method")
    assert len(rows) == len(table) == 2 and set(table.seeds) == {2} and len(loaded.runs) == 4
    for row in rows:
        method = loaded.runs.set_index("run").loc[row["runs"].split()[0].strip(","), "method"]
        assert row["overall/avg"] == pytest.approx(100 * means[method]) == pytest.approx(100 * table.avg[method])
        assert row["overall/avg_se"] == pytest.approx(100 * table.avg_se[method])


def test_cells_are_the_rows_of_the_report(evaluated, tmp_path):
    for seed, right in ((1, 1), (2, 3), (3, 4)):
        evaluated("peft=lora", f"seed={seed}", right=right)
    evaluated("peft=dora")
    loaded = rlvr_sweeps.load(tmp_path / "runs")
    by_method = loaded.cells.set_index("method")
    for cell in cells(find_runs(tmp_path / "runs")):
        row = by_method.loc[cell.cfg["peft"]["title"]]
        assert row.seeds == len(cell.runs)
        for column in ("avg", "tier1/avg", "tier2/avg"):
            assert (row[column], row[f"{column}_se"]) == (cell.value(column), cell.error(column))
    averages = loaded.runs[loaded.runs.method == "LoRA"].avg
    assert by_method.avg["LoRA"] == pytest.approx(averages.mean()) and by_method.avg_se["LoRA"] == pytest.approx(averages.sem())


def test_steps_are_those_of_metrics_with_the_settings_of_the_run(real):
    name = "smollm2_135m-lora-dapo-3c6ff2e9"
    rows = [json.loads(line) for line in (REAL / name / "metrics.jsonl").read_text().splitlines()]
    steps = real.steps[real.steps.run == name]
    assert steps.step.tolist() == list(range(1, 31)) and steps.reward_mean.tolist() == [row["reward_mean"] for row in rows]
    assert set(steps.lr) == set(steps.step_lr) == {2e-4} and set(steps.method) == {"LoRA"}
    assert steps.share_no_answer.tolist() == [row.get("share_no_answer", 0) for row in rows]
    assert len(real.steps) == STEPS  # Base trains nothing


def test_dtypes_do_not_depend_on_missing_values(real):
    expected = {"run": "category", "rank": "Int64", "seed": "Int64", "lr": "float64", "method": "category", "avg": "float64",
                "reasoning_gym/n": "Int64", "evaluated": "bool", "error": "str"}  # fmt: skip
    assert {name: str(real.runs[name].dtype) for name in expected} == expected
    assert not {str(dtype) for table in (real.runs, real.steps, real.samples, real.rollouts) for dtype in table.dtypes} & {
        "object"
    }
    assert str(real.samples.correct.dtype) == "bool" and str(real.samples.tokens.dtype) == "int64"
    assert "text" not in real.samples and "text" not in real.rollouts
    assert real.read_samples(text=True).text.str.len().gt(0).any() and real.read_rollouts(text=True).prompt.notna().all()
    assert len(real.read_samples(benchmarks=["other"])) == 0


def test_an_empty_folder_has_tables_without_rows(tmp_path):
    loaded = rlvr_sweeps.load(tmp_path)
    assert {len(table) for table in (loaded.runs, loaded.cells, loaded.steps, loaded.samples, loaded.rollouts)} == {0}
    assert {"run", "state", "lr", "avg"} <= set(loaded.runs) and {"run", "correct"} <= set(loaded.samples)
    with pytest.raises(Refused, match="not a folder"):
        rlvr_sweeps.load(tmp_path / "missing")


def test_a_setting_that_differs_becomes_a_column(prepared, tmp_path):
    prepared("peft=lora", "rollout.temperature=0.9", "sweep=rank", "rank=4")
    prepared("peft=lora", "sweep=lr", "rank=8")
    prepared("peft=none", "sweep=lr")
    runs = rlvr_sweeps.load(tmp_path / "runs").runs.set_index("peft")
    assert sorted(runs["rollout.temperature"].dropna())[0] == 0.9 and pd.isna(runs.loc["none", "rollout.temperature"])
    assert not [name for name in runs if name.startswith(("peft.", "model.", "cluster."))]  # they follow from name and dials
    assert len(rlvr_sweeps.load(tmp_path / "runs", sweep="lr").runs) == 2
    with pytest.raises(Refused, match="Labels: lr, rank"):
        rlvr_sweeps.load(tmp_path / "runs", sweep="typo")


@pytest.mark.parametrize(
    ("name", "table"),
    [("summary.json", "runs"), ("config.yaml", "runs"), ("metrics.jsonl", "steps"), ("eval/reasoning_gym.jsonl", "samples")],
)
def test_a_damaged_run_is_a_row_with_its_error_and_nothing_else(copies, name, table):
    run = copies / "smollm2_135m-lora-dapo-3c6ff2e9"
    loaded = rlvr_sweeps.load(copies)
    assert len(loaded.samples) == COUNT * 376 if table == "steps" else True  # read before the damage proves
    (run / name).write_bytes(b"\0\0\0\n" + (run / name).read_bytes()[40:])
    loaded = loaded if table == "steps" else rlvr_sweeps.load(copies)
    getattr(loaded, table)
    row = loaded.runs.set_index("run").loc[run.name]
    assert row.state in ("unreadable", "edited") and name in row.error and math.isnan(row.avg)
    assert (loaded.runs.state == "done").sum() == COUNT - 1
    for other in (loaded.steps, loaded.samples, loaded.rollouts):
        assert run.name not in set(other.run) and len(set(other.run)) >= 5


def test_verdicts_that_differ_from_the_tables_are_left_out(copies):
    path = copies / "smollm2_135m-lora-dapo-3c6ff2e9" / "eval" / "reasoning_gym.jsonl"
    path.write_text(path.read_text().replace('"correct": true', '"correct": false', 1))
    loaded = rlvr_sweeps.load(copies)
    assert loaded.samples.run.nunique() == COUNT - 1 and "right.json" in loaded.unreadable[0]


def test_values_of_another_type_do_not_hide_the_other_runs(copies):
    """Test a summary that is valid JSON, which no check can recognise as damaged."""
    path = copies / "smollm2_135m-lora-dapo-3c6ff2e9" / "summary.json"
    summary = json.loads(path.read_text())
    changed = {"finished": "soon", "avg": [0.1], "trainable": 1.5, "reasoning_gym/share_wrong": "most", "method": 7}
    path.write_text(json.dumps(summary | changed))
    loaded = rlvr_sweeps.load(copies)
    assert len(loaded.runs) == COUNT and loaded.runs.avg.notna().all() and len(loaded.steps) == STEPS


def test_a_run_that_is_not_evaluated_has_its_settings_and_steps(prepared, tmp_path):
    run, _ = prepared("peft=lora")
    run.metrics_path.write_text('{"step": 1, "reward_mean": 0.5}\n{"step": 2, "rewa')
    write_json(run.failure_path, {"stage": "train", "error": "ValueError: no"})
    loaded = rlvr_sweeps.load(tmp_path / "runs")
    (row,) = loaded.runs.itertuples()
    assert (row.state, row.error, row.evaluated, row.method) == ("failed", "ValueError: no", False, "LoRA")
    assert len(loaded.steps) == 1 and len(loaded.samples) == 0


def test_parquet_holds_the_same_tables(real, tmp_path, capsys):
    rlvr(["report", str(REAL), "--out", str(tmp_path / "new" / "report.html"), "--parquet", "--json"])
    paths = json.loads(capsys.readouterr().out)["parquet"]
    assert list(paths) == ["runs", "steps", "samples"]
    for name, path in paths.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), getattr(real, name), check_categorical=False)
    rlvr(["report", str(REAL), "--out", str(tmp_path / "new" / "report.html"), "--parquet"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3:] == [f"{name}: {path}" for name, path in paths.items()]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.csv", "report.html", "runs.parquet", "samples.parquet", "steps.parquet",
    ]  # fmt: skip


def test_every_column_is_documented(real):
    documented = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "analysis.md").read_text()))
    tables = (real.runs, real.cells, real.steps, real.read_samples(text=True), real.read_rollouts(text=True))
    names = {re.sub(r"^.*/", "NAME/", column) for table in tables for column in table}
    names = {re.sub(r"share_(?!REASON).*", "share_REASON", name) for name in names}
    assert names - documented == set()


def test_the_notebook_runs_and_its_stored_outputs_are_those_of_the_execution():
    module = notebook_module()
    stored = module.read()
    executed = module.execute(stored)
    assert module.text_of(stored) == module.text_of(executed), "docs/analysis.ipynb is stale. Execute it again: make notebook"
    assert 0 < sum(map(len, module.pictures_of(stored))) < MOST_PICTURE_BYTES
    assert len(module.pictures_of(stored)) == len(module.pictures_of(executed)) == 2
    text = json.dumps([cell.get("outputs") for cell in stored["cells"]])
    assert str(ROOT) not in text and "/home" not in text and "/tmp" not in text


def test_an_error_in_a_cell_names_the_cell(tmp_path):
    cell = {"cell_type": "code", "source": ["1 / 0\n"], "outputs": []}
    with pytest.raises(RuntimeError, match=r"Cell 1 fails:\n1 / 0"):
        notebook_module().execute({"cells": [cell]}, tmp_path)
