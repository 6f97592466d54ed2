"""Test the W&B mirror with the real SDK: its records offline and on a server, a resumed run, servers that refuse or hang."""

import json
import os
import subprocess
import sys
import time

import pytest

from rlvr_sweeps.config.identity import run_id
from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.files import read_json, read_rows, write_text
from rlvr_sweeps.launching.stages import is_leader
from rlvr_sweeps.reporting.differences.compare import compare
from rlvr_sweeps.reporting.page.report import as_csv
from rlvr_sweeps.reporting.rows import cells, reward_curves
from rlvr_sweeps.reporting.tracking.names import CURVES
from rlvr_sweeps.reporting.tracking.stage import Task, command, mirrored
from rlvr_sweeps.reporting.tracking.views import SHOWN_CURVES
from rlvr_sweeps.runs.reading import find_runs
from tests.reporting.wandb_files import read
from tests.reporting.wandb_server import Server

KEY = "0123456789" * 4
QUICK = ("tracking=wandb", "tracking.init_timeout_s=3", "tracking.finish_timeout_s=6")


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.close()


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def write_steps(run, steps, start=0.25):
    """Write metrics.jsonl as training does in `steps` steps: every column, with one missing number."""
    columns = dict.fromkeys(CURVES, start)
    rows = [columns | {"step": step, "reward_mean": start + 0.01 * step, "entropy": None} for step in range(1, steps + 1)]
    write_text(run.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))


def mirror(run):
    process = subprocess.run(
        command(Task(str(run.path), run.config()["tracking"], 0, 0, 0)), capture_output=True, text=True, timeout=120
    )
    return process.stdout


def rlvr(*arguments, expect=0):
    """Run `rlvr wandb` in its own process, since the SDK keeps its session in the process; return its output."""
    command = [sys.executable, "-m", "rlvr_sweeps.cli", "wandb", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert process.returncode == expect, process.stdout + process.stderr
    return process.stdout + process.stderr


def curve(history):
    """Return W&B's rows under the names of metrics.jsonl."""
    names = {name: column for column, name in CURVES.items()} | {"step": "step"}
    names |= {key: f"share_{key.removeprefix('reasons/')}" for row in history for key in row if key.startswith("reasons/")}
    return [{names[key]: value for key, value in row.items() if key in names} for row in history if "policy/loss" in row]


def written_rows(run):
    """Return the rows of metrics.jsonl without their missing numbers."""
    return [{key: value for key, value in row.items() if value is not None} for row in read_rows(run.metrics_path)]


def test_offline_files_hold_the_rows_the_summary_and_the_table(evaluated, no_key):
    run = evaluated(*QUICK)
    write_steps(run, 70)
    assert mirror(run) == ""
    history, summary, record = read(run.wandb_path)
    assert curve(history) == written_rows(run)
    assert {key: summary[key] for key in read_json(run.summary_path)} == read_json(run.summary_path)
    assert (record.run_id, record.display_name, record.project, record.resume) == (run.id, run.name, "rlvr_sweeps", True)
    assert {"peft=lora", "algo=dapo", "rank=8", "lr=0.001", "seed=42"} <= set(record.tags)
    (table,) = run.wandb_path.glob("offline-run-*/files/media/table/table/*.json")
    rows = read_json(table)
    assert [row[0] for row in rows["data"]] == ["tier1", "tier2", "overall"]
    assert [row[rows["columns"].index("avg")] for row in rows["data"]] == [1.0, 0.5, 0.75]


@pytest.mark.slow
def test_offline_a_resumed_run_is_complete_in_one_folder(evaluated, no_key):
    run = evaluated(*QUICK)
    for steps in (3, 8):
        write_steps(run, steps)
        mirror(run)
    history, *_ = read(run.wandb_path)  # raises unless there is exactly one folder
    assert [row["step"] for row in curve(history)] == list(range(1, 9))


@pytest.mark.slow
def test_online_a_requeued_run_continues_its_curve_with_repeated_steps(evaluated, server):
    run = evaluated(*QUICK, "tracking.project=mine", "sweep=lr")
    write_steps(run, 5)
    mirror(run)
    write_steps(run, 9)  # as from a checkpoint at step 3, with steps 4 and 5 repeated
    assert mirror(run) == ""
    stored = server.runs[run.id]
    assert stored.project == "mine" and stored.fields["groupName"] == "lr" and stored.exit_code == 0
    assert curve(stored.history) == written_rows(run)
    assert {key: stored.summary.get(key) for key in read_json(run.summary_path)} == read_json(run.summary_path)
    assert stored.files[f"{run.name}/summary.json"] == run.summary_path.read_bytes()
    note = read_json(run.mirror_path)
    assert note["sent"]["step"] == 9 and note["confirmed"]


def ended(run):
    """Return the mirror's file once the mirror has ended, which may be after its stage."""
    deadline = time.monotonic() + 90
    while not (note := read_json(run.mirror_path) or {}).get("ended") and time.monotonic() < deadline:
        time.sleep(0.2)
    return note


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [401, 429, "hang"])  # an invalid key, a rate limit, no answer
def test_a_server_that_refuses_the_login_leaves_the_run_offline_with_one_line(evaluated, server, refusal, capfd):
    run = evaluated(*QUICK)
    run.summary_path.unlink()
    server.refuse = refusal
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        write_steps(run, 6)
    assert ended(run)["mode"] == "offline"
    assert capfd.readouterr().out.count("W&B: ") == 1
    history, *_ = read(run.wandb_path)
    assert [row["step"] for row in curve(history)] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [403, "hang"])  # a full quota, no answer
def test_rows_that_a_server_refused_are_reported_and_sent_by_sync(evaluated, server, refusal, capfd):
    run = evaluated(*QUICK)
    write_steps(run, 3)
    server.refuse, server.only = refusal, "file_stream"
    with mirrored(run, run.config(), is_leader()):
        write_steps(run, 6)
    assert ended(run)["confirmed"] is False
    assert "W&B: it has step 0 of 6" in capfd.readouterr().out
    server.refuse = None
    server.released.set()
    rlvr("sync", "--runs-dir", run.path.parent)
    assert curve(server.runs[run.id].history) == written_rows(run)
    assert read_json(run.mirror_path)["confirmed"]


def test_an_interrupted_stage_does_not_wait(evaluated, server):
    run = evaluated(*QUICK, "tracking.finish_timeout_s=3000")
    server.refuse = "hang"
    with pytest.raises(Stopped), mirrored(run, run.config(), is_leader()):
        raise Stopped


def test_the_key_is_in_no_file(evaluated, server, tmp_path):
    run = evaluated(*QUICK)
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        pass
    assert server.runs[run.id].exit_code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run.mirror_path in files and not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in json.dumps(server.runs[run.id].config) and KEY not in os.environ.get("PYTHONPATH", "")


@pytest.mark.slow
def test_pulled_runs_give_the_same_rows_as_the_directories(evaluated, server, tmp_path):
    runs = [evaluated(*QUICK, *row, right=right) for row, right in ((("seed=1",), 1), (("seed=2",), 3), (("lr=2e-3",), 0))]
    for run in runs:
        write_steps(run, 20)
        mirror(run)
    name = runs[0].name
    server.runs[runs[0].id].files |= {f"../../{name}/summary.json": b"{}", f"{name}/../../away.json": b"{}"}  # files of no run
    rlvr("pull", "people/rlvr_sweeps", tmp_path / "deep" / "pulled")
    assert sorted(path.name for path in (tmp_path / "deep" / "pulled").iterdir()) == sorted(run.name for run in runs)
    assert not list(tmp_path.rglob("away.json"))
    local, pulled = find_runs(tmp_path / "runs"), find_runs(tmp_path / "deep" / "pulled")
    assert [status.state for status in pulled] == ["done"] * 3
    assert as_csv(pulled) == as_csv(local)
    for local_cell, pulled_cell in zip(cells(local), cells(pulled), strict=True):
        assert (local_cell.cfg, local_cell.summaries) == (pulled_cell.cfg, pulled_cell.summaries)
        assert reward_curves(local_cell) == reward_curves(pulled_cell)
    names = [f"{runs[0].name},{runs[1].name}", runs[2].name]
    assert compare(names, tmp_path / "runs") == compare(names, tmp_path / "deep" / "pulled")


def test_wandb_sync_reads_the_offline_folder(evaluated, server, tmp_path):
    run = evaluated(*QUICK, "tracking.mode=offline")
    write_steps(run, 12)
    mirror(run)
    assert not server.runs
    (folder,) = run.wandb_path.glob("offline-run-*")
    subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(folder)], check=True, timeout=120, capture_output=True, cwd=tmp_path
    )
    assert curve(server.runs[run.id].history) == written_rows(run)
    assert server.runs[run.id].summary["avg"] == read_json(run.summary_path)["avg"]


def test_a_refused_key_stops_sync_before_rows_are_sent(evaluated, server):
    run = evaluated(*QUICK)
    server.refuse = 401
    assert "does not accept the key" in rlvr("sync", "--runs-dir", run.path.parent, expect=1)
    assert not run.mirror_path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_a_view_of_a_sweep_selects_its_runs(server, composer, kind):
    output = rlvr(kind, "rank", "--model", "tiny")
    (view,) = server.views
    assert view["displayName"] == "Rank on tiny" and f"{server.url}/people/rlvr_sweeps" in output
    text = json.dumps(view["spec"])
    ids = [run_id(composer.point(["model=tiny", "peft=lora", f"rank={rank}"]).cfg) for rank in (1, 2, 4, 8)]
    assert json.dumps(sorted(ids)) in text
    curves = [panel for panel in mappings_under(view["spec"], "config") if panel.get("groupBy") == "rank.value"]
    assert {tuple(panel["metrics"]) for panel in curves} == {(name,) for name in SHOWN_CURVES} and set(SHOWN_CURVES) <= set(
        CURVES.values()
    )
    assert {panel["xAxis"] for panel in curves} == {"step"}
    assert "summary:avg_se" in text and "summary_metrics.tier1/avg" in text
    assert (kind == "workspace") != ("table/benchmarks" in text)


def mappings_under(tree, key):
    """Return every mapping that is a value of `key` in the tree, at any depth."""
    if isinstance(tree, list):
        return [mapping for item in tree for mapping in mappings_under(item, key)]
    if not isinstance(tree, dict):
        return []
    values = [tree[key]] if isinstance(tree.get(key), dict) else []
    return values + [mapping for item in tree.values() for mapping in mappings_under(item, key)]
