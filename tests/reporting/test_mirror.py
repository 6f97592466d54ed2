"""The W&B mirror, by the real SDK: what it says offline and to a server, a run that goes on, servers that refuse or hang."""

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
from rlvr_sweeps.reporting.tracking.views import SHOWN
from rlvr_sweeps.runs.reading import find_runs
from tests.reporting.wandb_files import read
from tests.reporting.wandb_server import Server

KEY = "0123456789" * 4
QUICK = ("tracking=wandb", "tracking.init_timeout_s=3", "tracking.finish_timeout_s=6")


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield made
    made.close()


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def write_steps(run, steps, start=0.25):
    """metrics.jsonl as training leaves it after so many steps: every column, and one number that is missing."""
    columns = dict.fromkeys(CURVES, start)
    rows = [columns | {"step": step, "reward_mean": start + 0.01 * step, "entropy": None} for step in range(1, steps + 1)]
    write_text(run.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))


def mirror(run):
    done = subprocess.run(
        command(Task(str(run.path), run.config()["tracking"], 0, 0, 0)), capture_output=True, text=True, timeout=120
    )
    return done.stdout


def rlvr(*arguments, expect=0):
    """The real command, in a process of its own: the SDK keeps its session in the process."""
    command = [sys.executable, "-m", "rlvr_sweeps.cli", "wandb", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def curve(history):
    """W&B's rows back under the names of metrics.jsonl."""
    names = {name: column for column, name in CURVES.items()} | {"step": "step"}
    return [{names[key]: value for key, value in row.items() if key in names} for row in history if "policy/loss" in row]


def told(run):
    return [{key: value for key, value in row.items() if value is not None} for row in read_rows(run.metrics_path)]


def test_offline_files_hold_the_rows_the_summary_and_the_table(evaluated, no_key):
    run = evaluated(*QUICK)
    write_steps(run, 70)
    assert mirror(run) == ""
    history, summary, about = read(run.wandb_path)
    assert curve(history) == told(run)
    assert {key: summary[key] for key in read_json(run.summary_path)} == read_json(run.summary_path)
    assert (about.run_id, about.display_name, about.project, about.resume) == (run.id, run.name, "rlvr_sweeps", True)
    assert {"peft=lora", "algo=dapo", "rank=8", "lr=0.001", "seed=42"} <= set(about.tags)
    (table,) = run.wandb_path.glob("offline-run-*/files/media/table/table/*.json")
    rows = read_json(table)
    assert [row[0] for row in rows["data"]] == ["tier1", "tier2", "overall"]
    assert [row[rows["columns"].index("avg")] for row in rows["data"]] == [1.0, 0.5, 0.75]


def test_offline_a_run_that_went_on_is_whole_in_one_folder(evaluated, no_key):
    run = evaluated(*QUICK)
    for steps in (3, 8):
        write_steps(run, steps)
        mirror(run)
    history, *_ = read(run.wandb_path)  # which wants exactly one
    assert [row["step"] for row in curve(history)] == list(range(1, 9))


def test_online_a_requeued_run_goes_on_in_its_curve_though_steps_were_computed_again(evaluated, server):
    run = evaluated(*QUICK, "tracking.project=mine", "sweep=lr")
    write_steps(run, 5)
    mirror(run)
    write_steps(run, 9)  # from a checkpoint at step 3, say: 4 and 5 again
    assert mirror(run) == ""
    kept = server.runs[run.id]
    assert kept.project == "mine" and kept.stated["groupName"] == "lr" and kept.exit_code == 0
    assert curve(kept.history) == told(run)
    assert {key: kept.summary.get(key) for key in read_json(run.summary_path)} == read_json(run.summary_path)
    assert kept.files[f"{run.name}/summary.json"] == run.summary_path.read_bytes()
    note = read_json(run.mirror_path)
    assert note["sent"]["step"] == 9 and note["confirmed"]


def ended(run):
    """The mirror's note once it has ended: the stage may have left before."""
    deadline = time.monotonic() + 90
    while not (note := read_json(run.mirror_path) or {}).get("ended") and time.monotonic() < deadline:
        time.sleep(0.2)
    return note


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [401, 429, "hang"])  # a key that is none, a rate limit, silence
def test_a_server_that_lets_nobody_in_leaves_the_run_offline_with_one_line(evaluated, server, refusal, capfd):
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
@pytest.mark.parametrize("refusal", [403, "hang"])  # a full quota, silence
def test_a_server_that_takes_no_more_rows_is_noticed_and_sent_the_rest_later(evaluated, server, refusal, capfd):
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
    assert curve(server.runs[run.id].history) == told(run)
    assert read_json(run.mirror_path)["confirmed"]


def test_a_stage_that_must_leave_waits_for_nothing(evaluated, server):
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
def test_what_is_pulled_from_wandb_gives_the_same_rows_as_the_directories(evaluated, server, tmp_path):
    runs = [evaluated(*QUICK, *row, right=right) for row, right in ((("seed=1",), 1), (("seed=2",), 3), (("lr=2e-3",), 0))]
    for run in runs:
        write_steps(run, 20)
        mirror(run)
    name = runs[0].name
    server.runs[runs[0].id].files |= {f"../../{name}/summary.json": b"{}", f"{name}/../../away.json": b"{}"}  # no run's files
    rlvr("pull", "people/rlvr_sweeps", tmp_path / "deep" / "pulled")
    assert sorted(path.name for path in (tmp_path / "deep" / "pulled").iterdir()) == sorted(run.name for run in runs)
    assert not list(tmp_path.rglob("away.json"))
    here, there = find_runs(tmp_path / "runs"), find_runs(tmp_path / "deep" / "pulled")
    assert [item.state for item in there] == ["done"] * 3
    assert as_csv(there) == as_csv(here)
    for mine, theirs in zip(cells(here), cells(there), strict=True):
        assert (mine.cfg, mine.summaries) == (theirs.cfg, theirs.summaries)
        assert reward_curves(mine) == reward_curves(theirs)
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
    assert curve(server.runs[run.id].history) == told(run)
    assert server.runs[run.id].summary["avg"] == read_json(run.summary_path)["avg"]


def test_a_refused_key_stops_sync_before_anything_is_sent(evaluated, server):
    run = evaluated(*QUICK)
    server.refuse = 401
    assert "does not accept the key" in rlvr("sync", "--runs-dir", run.path.parent, expect=1)
    assert not run.mirror_path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["workspace", "report"])
def test_a_sweep_becomes_a_view_of_exactly_its_runs(server, composer, way):
    said = rlvr(way, "rank", "--model", "tiny")
    (view,) = server.views
    assert view["displayName"] == "Rank on tiny" and f"{server.url}/people/rlvr_sweeps" in said
    text = json.dumps(view["spec"])
    ids = [run_id(composer.point(["model=tiny", "peft=lora", f"rank={rank}"]).cfg) for rank in (1, 2, 4, 8)]
    assert json.dumps(sorted(ids)) in text
    curves = [panel for panel in found_in(view["spec"], "config") if panel.get("groupBy") == "rank.value"]
    assert {tuple(panel["metrics"]) for panel in curves} == {(name,) for name in SHOWN} and set(SHOWN) <= set(CURVES.values())
    assert {panel["xAxis"] for panel in curves} == {"step"}
    assert "summary:avg_se" in text and "summary_metrics.tier1/avg" in text
    assert (way == "workspace") != ("table/benchmarks" in text)


def found_in(tree, key):
    """Every mapping that stands under `key`, however deep."""
    if isinstance(tree, list):
        return [found for item in tree for found in found_in(item, key)]
    if not isinstance(tree, dict):
        return []
    here = [tree[key]] if isinstance(tree.get(key), dict) else []
    return here + [found for item in tree.values() for found in found_in(item, key)]
