"""The W&B mirror, by the real SDK: what it says offline and to a server, a run that goes on, servers that refuse or hang."""

import json
import os
import subprocess
import time

import pytest

from rlvr_sweeps.curves import CURVES
from rlvr_sweeps.errors import Stopped
from rlvr_sweeps.files import read_json, read_rows, write_text
from rlvr_sweeps.pipeline import is_leader
from rlvr_sweeps.tracking import Task, command, mirrored
from tests.wandb_files import read
from tests.wandb_server import Server

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


def mirror(run, mode="auto"):
    done = subprocess.run(command(Task(str(run.path), mode, 0, 0, 0)), capture_output=True, text=True, timeout=120)
    return done.stdout


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
    assert read_json(run.mirror_path)["sent"]["step"] == 9


@pytest.mark.parametrize("refusal", [401, 403, 429, 500, "hang"])
@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_server_that_refuses_or_hangs_stops_no_stage(evaluated, server, refusal, when, capfd):
    run = evaluated(*QUICK)
    run.summary_path.unlink()
    write_steps(run, 3)
    server.refuse, server.only = refusal, "" if when == "at the start" else "file_stream"
    start = time.monotonic()
    with mirrored(run, run.config(), is_leader()):
        begun = time.monotonic() - start
        write_steps(run, 6)
    assert begun < 5  # a process is started; nothing is waited for
    assert time.monotonic() - start < 30  # finish_timeout_s and a busy machine
    said = capfd.readouterr()
    if when == "at the start":
        deadline = time.monotonic() + 60
        while "done" not in str(read_json(run.mirror_path)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (said.out + capfd.readouterr().out).count("W&B: ") == 1
        history, *_ = read(run.wandb_path)
        assert [row["step"] for row in curve(history)] == list(range(1, 7))


def test_a_stage_that_must_leave_waits_for_nothing(evaluated, server):
    run = evaluated(*QUICK)
    server.refuse = "hang"
    start = time.monotonic()
    with pytest.raises(Stopped), mirrored(run, run.config(), is_leader()):
        raise Stopped
    assert time.monotonic() - start < 5


def test_the_key_is_in_no_file(evaluated, server, tmp_path):
    run = evaluated(*QUICK)
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        pass
    assert server.runs[run.id].exit_code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run.mirror_path in files and not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in json.dumps(server.runs[run.id].config) and KEY not in os.environ.get("PYTHONPATH", "")
