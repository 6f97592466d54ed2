"""Test TensorBoard and Trackio with their real packages: what they show, a resumed run, several at once, trackers that fail."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("tensorboard", reason="SKIPPED: tensorboard is not installed: pip install '.[tensorboard]'")
pytest.importorskip("trackio", reason="SKIPPED: trackio is not installed: pip install '.[trackio]'")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from rlvr_sweeps.config.identity import run_id
from rlvr_sweeps.config.settings import trackers_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.launching.stages import is_leader
from rlvr_sweeps.planning import preflight
from rlvr_sweeps.reporting.tracking.names import name_of
from rlvr_sweeps.reporting.tracking.stage import Task, command, mirrored
from rlvr_sweeps.runs.directory import all_runs
from tests.conftest import ROOT
from tests.launching.test_launch import SHORT, have_equal_results
from tests.reporting.test_mirror import write_steps
from tests.reporting.wandb_files import read

TOKEN = "secret-token-of-the-test"
QUICK = ("tracking.init_timeout_s=3", "tracking.finish_timeout_s=20")
SERVE_TRACKIO = """
import sys, time
import trackio
trackio.show(open_browser=False, block_thread=False, server_port=int(sys.argv[1]), share=False)
print("ready", flush=True)
time.sleep(600)
"""
READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
import trackio
project, name = sys.argv[1:]
(run,) = [run for run in trackio.Api().runs(project) if run.name == name]
print(json.dumps({"logs": SQLiteStorage.get_logs(project, name), "config": run.config}, default=str))
"""


@pytest.fixture(autouse=True)
def trackio_folder(tmp_path, monkeypatch):
    """Set TRACKIO_DIR to a folder of this test, and return it."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "trackio"


def mirror(run, tracker):
    """Send the run to a tracker as `rlvr` does after its end; return what the mirror prints."""
    task = Task(str(run.path), run.config()["tracking"], 0, 0, 0, tracker)
    return subprocess.run(command(task), capture_output=True, text=True, timeout=120).stdout


def events(run):
    """Return TensorBoard's own reader of the run's event files, with every value."""
    accumulator = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(run, tag):
    """Return [(step, value)] of a curve in TensorBoard."""
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def stored_by_trackio(run, project="rlvr_sweeps", folder=None):
    """Return (rows, configuration) of the run in Trackio; in a process of its own, as the SDK reads TRACKIO_DIR once."""
    environment = os.environ | ({"TRACKIO_DIR": str(folder)} if folder else {})
    process = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO, project, run.name], capture_output=True, text=True, check=True, timeout=60,
        env=environment,
    )  # fmt: skip
    stored = json.loads(process.stdout)
    return stored["logs"], stored["config"]


def curve_of(logs, name):
    """Return [(step, value)] of a curve in Trackio's rows."""
    return [(row["step"], row[name]) for row in logs if name in row]


def expected(run, column):
    """Return [(step, value)] of a column of metrics.jsonl."""
    return [(row["step"], row[column]) for row in read_rows(run.metrics_path) if row[column] is not None]


def in_float32(curve):
    """Return the curve with the values that TensorBoard stores."""
    return [(step, float(np.float32(value))) for step, value in curve]


def test_tensorboard_has_the_rows_the_settings_the_summary_and_the_table(evaluated):
    run = evaluated("tracking=tensorboard", *QUICK)
    write_steps(run, 70)
    assert mirror(run, "tensorboard") == ""
    assert scalars(run, "reward/accuracy") == in_float32(expected(run, "reward_mean"))
    assert "policy/entropy" not in events(run).Tags()["scalars"]  # it is missing in every row
    assert scalars(run, "summary/avg") == [(70, 0.75)]
    metadata = events(run).summary_metadata["_hparams_/session_start_info"]
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    hparams = content.session_start_info.hparams
    assert hparams["peft"].string_value == "lora" and hparams["lr"].number_value == 0.001 and hparams["rank"].number_value == 8
    (table,) = events(run).Tensors("table/benchmarks")
    assert "| overall |" in table.tensor_proto.string_val[0].decode()
    assert read_json(run.tracker_record_path("tensorboard"))["confirmed"]


def test_trackio_has_the_rows_the_settings_the_summary_and_the_table(evaluated, trackio_folder):
    run = evaluated("tracking=trackio", "tracking.project=mine", "sweep=lr", *QUICK)
    write_steps(run, 70)
    assert mirror(run, "trackio") == ""
    logs, config = stored_by_trackio(run, "mine")
    assert curve_of(logs, "reward/accuracy") == expected(run, "reward_mean")
    assert curve_of(logs, "summary/avg") == [(70, 0.75)]
    ((_, table),) = curve_of(logs, "table/benchmarks")
    assert [row["benchmark"] for row in table["_value"]] == ["tier1", "tier2", "overall"]
    assert config["peft.name"] == "lora" and config["id"] == run.id and config["_Group"] == "lr"
    assert list(trackio_folder.glob("mine*.db")) and read_json(run.tracker_record_path("trackio"))["confirmed"]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_steps_are_complete_and_unique_after_a_resume(evaluated, tracker):
    run = evaluated(f"tracking={tracker}", *QUICK)
    for steps in (5, 9, 9):  # as from a checkpoint at step 3, with steps 4 and 5 repeated; then a stage without new rows
        write_steps(run, steps)
        mirror(run, tracker)
    curve = (
        scalars(run, "reward/accuracy") if tracker == "tensorboard" else curve_of(stored_by_trackio(run)[0], "reward/accuracy")
    )
    assert [step for step, _ in curve] == list(range(1, 10))
    summary = scalars(run, "summary/avg") if tracker == "tensorboard" else curve_of(stored_by_trackio(run)[0], "summary/avg")
    assert summary == [(5, 0.75)]  # an unchanged summary is sent once


@pytest.mark.parametrize("cut", [1, 7, 40, 300])
def test_an_event_file_with_a_torn_end_is_continued(evaluated, cut):
    run = evaluated("tracking=tensorboard", *QUICK)
    run.summary_path.unlink()
    write_steps(run, 5)
    mirror(run, "tensorboard")
    (path,) = (run.path / "tensorboard").glob("events.*")
    path.write_bytes(path.read_bytes()[:-cut])
    write_steps(run, 9)
    mirror(run, "tensorboard")
    assert scalars(run, "reward/accuracy") == in_float32(expected(run, "reward_mean"))


def test_trackers_are_no_part_of_the_run_id_and_unknown_ones_are_refused(point):
    plain = run_id(point())
    several = point("tracking=trackio", "tracking.also=[tensorboard,wandb,trackio]", "tracking.space_id=me/space")
    assert run_id(several) == plain and trackers_of(several) == ["trackio", "tensorboard", "wandb"]
    assert trackers_of(point("tracking.also=[tensorboard]")) == ["tensorboard"]
    with pytest.raises(Refused, match=r"tracking.also=\[mlflow\] is not possible"):
        point("tracking.also=[mlflow]")


def test_a_missing_package_is_refused_with_the_pip_command(tmp_path):
    """Without site-packages no tracker is installed; the folder `trackio` in the working directory is no package."""
    (tmp_path / "trackio").mkdir()
    code = (
        "import importlib.metadata, sys\n"
        "from rlvr_sweeps.errors import Refused\n"
        "from rlvr_sweeps.planning.preflight import refuse_missing_trackers\n"
        "sys.path[:] = ['', *(path for path in sys.path if 'site-packages' not in path)]\n"
        "try:\n"
        "    refuse_missing_trackers([{'tracking': {'name': 'none', 'also': ['trackio']}}])\n"
        "except Refused as refusal:\n"
        "    print(refusal)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "tracking=trackio needs the package trackio" in process.stdout and "pip install '.[trackio]'" in process.stdout
    preflight.refuse_missing_trackers([{"tracking": {"name": "trackio", "also": ["tensorboard"]}}])


def ended(run, tracker):
    """Return the mirror's file once the mirror has ended, which may be after its stage."""
    deadline = time.monotonic() + 90
    while not ((note := read_json(run.tracker_record_path(tracker)) or {}).get("ended") or note.get("warning")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return note


@pytest.mark.slow
def test_several_trackers_at_once_each_have_everything(evaluated):
    run = evaluated("tracking=wandb", "tracking.also=[tensorboard,trackio]", "tracking.mode=offline", *QUICK)
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        write_steps(run, 8)
    for tracker in ("wandb", "tensorboard", "trackio"):
        assert ended(run, tracker)["sent"]["step"] == 8, tracker
    steps = list(range(1, 9))
    assert [step for step, _ in scalars(run, "reward/accuracy")] == steps
    assert [step for step, _ in curve_of(stored_by_trackio(run)[0], "reward/accuracy")] == steps
    assert [row["step"] for row in read(run.wandb_path)[0] if "policy/loss" in row] == steps


@pytest.mark.slow
def test_a_tracker_that_cannot_write_leaves_the_stage_and_the_other_tracker_alone(evaluated, trackio_folder, capfd):
    run = evaluated("tracking=tensorboard", "tracking.also=[trackio]", *QUICK)
    (run.path / "tensorboard").write_text("a file in the folder's place")
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        pass
    assert capfd.readouterr().out.count("TensorBoard: ") == 1
    assert [step for step, _ in curve_of(stored_by_trackio(run)[0], "reward/accuracy")] == [1, 2, 3]


@pytest.mark.slow
def test_a_trackio_folder_that_cannot_be_written_is_one_line(evaluated, trackio_folder, capfd):
    run = evaluated("tracking=trackio", "tracking.also=[tensorboard]", *QUICK)
    trackio_folder.write_text("a file in the folder's place")
    write_steps(run, 3)
    with mirrored(run, run.config(), is_leader()):
        pass
    note = ended(run, "trackio")
    assert capfd.readouterr().out.count("Trackio: ") == 1 and not note.get("confirmed")
    assert [step for step, _ in scalars(run, "reward/accuracy")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("stops", [False, True])
def test_a_trackio_server_that_does_not_answer_delays_a_stage_by_the_time_limit_at_most(evaluated, stops, monkeypatch):
    from rlvr_sweeps.errors import Stopped

    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts connections and never answers
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{server.getsockname()[1]}/")
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "token")
        run = evaluated("tracking=trackio", "tracking.also=[tensorboard]", *QUICK[:1], "tracking.finish_timeout_s=6")
        write_steps(run, 3)
        started = time.monotonic()
        with contextlib.suppress(Stopped), mirrored(run, run.config(), is_leader()):
            if stops:
                raise Stopped
        assert time.monotonic() - started < (3 if stops else 9)
        assert ended(run, "tensorboard")["sent"]["step"] == 3


@contextlib.contextmanager
def trackio_server(folder, port):
    """Run Trackio's own server on a port, with its database in a folder; TOKEN gives write access."""
    environment = os.environ | {"TRACKIO_DIR": str(folder), "TRACKIO_WRITE_TOKEN": TOKEN}
    environment.pop("TRACKIO_SERVER_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE_TRACKIO, str(port)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        text = ""
        while "ready" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        yield text
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_trackio_server_gets_the_rows_of_an_outage_later_and_the_token_is_in_no_file(evaluated, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, folder = f"http://127.0.0.1:{port}", tmp_path / "server"
    run = evaluated("tracking=trackio", *QUICK)
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{url}?write_token={TOKEN}")
    write_steps(run, 5)
    mirror(run, "trackio")  # no server listens yet
    write_steps(run, 9)
    with trackio_server(folder, port):
        mirror(run, "trackio")
        write_steps(run, 12)
        mirror(run, "trackio")
    logs, _ = stored_by_trackio(run, folder=folder)
    assert sorted(curve_of(logs, "reward/accuracy")) == expected(run, "reward_mean")
    record = read_json(run.tracker_record_path("trackio"))
    assert (record["mode"], record["url"], record["sent"]["step"]) == ("online", url, 12)
    assert not [path for path in run.path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_killed_and_resumed_training_is_one_curve_and_equals_a_run_without_trackers(launch, tmp_path):
    arguments = ("peft=lora", *SHORT)
    tracked = (*arguments, "tracking=tensorboard", "tracking.also=[trackio]")
    launch(*arguments, runs=tmp_path / "alone")
    process = subprocess.Popen(launch.command(*tracked), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not any(len(read_rows(run.metrics_path)) >= 3 for run in all_runs(launch.runs)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    launch(*tracked)
    (run,), (alone,) = all_runs(launch.runs), all_runs(tmp_path / "alone")
    assert have_equal_results(run, alone) and not (alone.path / "tensorboard").exists()
    logs, _ = stored_by_trackio(run)
    steps = [row["step"] for row in read_rows(run.metrics_path)]
    for column in ("reward_mean", "entropy", "completion_tokens_mean"):
        assert scalars(run, name_of(column)) == in_float32(expected(run, column)), column
        assert curve_of(logs, name_of(column)) == expected(run, column), column
    assert [step for step, _ in scalars(run, "policy/loss")] == [step for step, _ in curve_of(logs, "policy/loss")] == steps
    reach = [tag for tag in events(run).Tags()["scalars"] if tag.startswith("reach/")]
    assert reach and [step for step, _ in scalars(run, reach[0])] == [step for step, _ in curve_of(logs, reach[0])] == [2, 4]
    assert not [tag for tag in events(run).Tags()["scalars"] if tag.startswith("other/")]
    assert scalars(run, "summary/avg")[-1][1] == pytest.approx(read_json(run.summary_path)["avg"])
    for tracker in ("tensorboard", "trackio"):
        assert read_json(run.tracker_record_path(tracker))["confirmed"], tracker
