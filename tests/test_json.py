"""Test that with --json standard output contains one JSON value and nothing else."""

import json

from rlvr_sweeps.cli import main as rlvr


def json_output(capsys, *arguments):
    """Return the value that `rlvr ... --json` prints."""
    rlvr([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_report_table_and_regrade_print_one_json_value(evaluated, tmp_path, capsys):
    run = evaluated("peft=lora", right=3)
    report = json_output(capsys, "report", tmp_path / "runs")
    assert [row["avg"] for row in report["runs"]] == [0.875] and report["page"].endswith("report.html")
    options = (f"runs_dir={tmp_path}/runs", "--out", tmp_path / "out")
    table = json_output(capsys, "table", "batch_size", *options)
    other_order = json_output(capsys, "table", "batch_size", "--out", tmp_path / "out", f"runs_dir={tmp_path}/runs")
    assert table["name"] == "batch_size" and table == other_order == json.loads(
        (tmp_path / "out" / "batch_size.json").read_text()
    )
    regraded = json_output(capsys, "regrade", run.name, "--runs-dir", tmp_path / "runs", "--dry-run")
    assert (regraded["run"], regraded["avg_before"], regraded["changes"]) == (run.name, 0.875, [])


def test_data_export_prints_one_json_value(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exported = json_output(capsys, "data", "export", tmp_path / "sets", "tier1", "--model", "tiny")
    assert exported["sets"]["tier1"]["rows"] == 40 and exported["folder"] == str(tmp_path / "sets")
