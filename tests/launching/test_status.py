"""Test what rlvr status shows: one line per run at every width and height of the terminal, and Slurm's facts of a run."""

import fcntl
import io
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching import status
from rlvr_sweeps.launching.slurm import queue, records
from rlvr_sweeps.launching.status_table import age, table
from rlvr_sweeps.runs.directory import Run
from tests.conftest import ROOT

FAILURE = {"stage": "train", "error": "ValueError: no", "traceback": "", "time": 0.0}


def on_terminal(runs_dir, width, height, **options):
    """Return the lines that `rlvr status` prints on a terminal of this size."""
    text = io.StringIO()
    console = Console(file=text, width=width, height=height, force_terminal=True, color_system=None)
    status.show(runs_dir, console, **options)
    return text.getvalue().splitlines()


@pytest.fixture
def new_runs(point):
    """Return a function that makes the directories of runs that were never started, one per seed."""

    def make(count):
        runs = []
        for seed in range(count):
            cfg = point("peft=lora", f"seed={seed}")
            runs.append(Run.of(cfg))
            runs[-1].prepare(cfg)
        return runs

    return make


@pytest.mark.parametrize("width", [60, 80, 140])
def test_one_line_per_run(evaluated, tmp_path, squeue, width):
    squeue("true")
    done, failed, lost = evaluated("peft=lora"), evaluated("peft=dora"), evaluated("peft=pissa")
    write_json(failed.failure_path, FAILURE)
    for run in (failed, lost):
        run.stage_path("train").unlink()
    write_json(lost.submission_path, {"stages": {"train": {"job": "17"}, "evaluate": {"job": "18"}}})
    node = "a-node-with-a-long-name.of.a.cluster.somewhere.in.the.basement"
    lost.log_event("start", stage="train", job="17", node_name=node)
    text = io.StringIO()
    status.show(tmp_path / "runs", Console(file=text, width=width))
    header, *lines = text.getvalue().splitlines()
    assert all(len(line) <= width for line in [header, *lines])
    typed = [run.name if width == 140 else run.id for run in (failed, lost, done)]
    assert [line.split()[0] for line in lines[:3]] == typed
    assert header.split()[0] == ("run" if width == 140 else "id")
    assert ("method" in header) == (width != 140)  # a name contains the method
    states = [line.split()[header.split().index("state")] for line in lines[:3]]
    assert states == ["failed", "lost", "done"]
    assert any(line == f"{typed[0]}: ValueError: no" for line in lines)
    assert lines[-1] == "3 runs: 1 failed, 1 lost, 1 done"


def test_columns_for_what_varies(evaluated, point, tmp_path):
    runs = [evaluated("peft=lora", f"lr={lr}", f"seed={seed}") for lr in (1e-3, 2e-3) for seed in (1, 2)]
    header, *lines = on_terminal(tmp_path / "runs", 140, 40)
    assert header.split()[:4] == ["run", "lr", "seed", "state"]  # the rank, the batch and the data do not vary
    by_name = {line.split()[0]: line.split()[1:3] for line in lines[:4]}
    assert [by_name[run.name] for run in runs] == [["0.001", "1"], ["0.001", "2"], ["0.002", "1"], ["0.002", "2"]]
    evaluated("peft=none")
    assert on_terminal(tmp_path / "runs", 140, 40)[0].split()[:4] == ["run", "lr", "seed", "state"]
    hotter = evaluated("peft=lora", "lr=1e-3", "seed=1", "rollout.temperature=0.7")
    header, *lines = on_terminal(tmp_path / "runs", 140, 40)
    assert header.split()[:5] == ["run", "lr", "seed", "temperature", "state"]
    assert next(line.split()[3] for line in lines if line.startswith(hotter.name)) == "0.7"


def test_the_name_is_typed_where_runs_share_an_id(new_runs, tmp_path):
    (run,) = new_runs(1)
    shutil.copytree(run.path, run.path.with_name(f"copy-{run.id}"))
    lines = on_terminal(tmp_path / "runs", 30, 24)
    assert [line.split()[0] for line in lines[1:3]] == [f"copy-{run.id}", run.name]


def test_more_runs_than_lines_show_odd_runs_and_count_the_others(new_runs, tmp_path):
    runs = new_runs(40)
    for run in runs[5:7]:
        write_json(run.failure_path, FAILURE | {"error": f"FileNotFoundError: {run.path}/data"})
    lines = on_terminal(tmp_path / "runs", 80, 24)
    assert len(lines) <= 22
    assert [line.split()[0] for line in lines[1:3]] == sorted(run.name for run in runs[5:7])
    shown = sum(line.split()[2:3] == ["new"] for line in lines)
    assert any(line.startswith(f"… {38 - shown} more: {38 - shown} new (--all") for line in lines) and shown > 5
    assert sum("FileNotFoundError" in line for line in lines) == 1 and any(line.startswith("2 runs (") for line in lines)
    everything = on_terminal(tmp_path / "runs", 80, 24, all_runs=True)
    assert {run.name for run in runs} <= {line.split()[0] for line in everything}
    piped = io.StringIO()
    status.show(tmp_path / "runs", Console(file=piped, width=80, height=24))
    assert {run.name for run in runs} <= {line.split()[0] for line in piped.getvalue().splitlines()}


def test_pages_show_every_run_and_keep_the_running_ones(tmp_path):
    def entry(number, state):
        return status.empty_row(Run(tmp_path / f"run-{number:08x}")) | {"state": state}

    entries = [entry(number, "queued") for number in range(50)] + [entry(number, "running") for number in range(90, 93)]
    pages = [str(table(entries, None, 80, 24, page)).splitlines() for page in range(4)]
    seen = set()
    for lines in pages:
        assert len(lines) <= 24 and lines[-1] == "53 runs: 3 running, 50 queued"
        assert [line.split()[0] for line in lines[1:4]] == [f"run-{number:08x}" for number in range(90, 93)]
        seen |= {line.split()[0] for line in lines[1:] if line.startswith("run-")}
    assert seen == {entry["run"] for entry in entries}
    pages = [str(table(entries[:50], None, 60, 10, page)).splitlines() for page in range(20)]
    assert all(len(lines) <= 10 for lines in pages)


def test_a_state_that_this_module_does_not_know_is_among_the_odd_ones(tmp_path):
    states = ("done", "haunted", "running", "lost", "failed")
    entries = [status.empty_row(Run(tmp_path / f"{state}-1")) | {"state": state} for state in states]
    lines = str(table(entries)).splitlines()
    assert [line.split()[1] for line in lines[1:6]] == ["failed", "haunted", "lost", "running", "done"]
    assert lines[-1] == "5 runs: 1 failed, 1 haunted, 1 lost, 1 running, 1 done"


def test_a_folder_without_runs(tmp_path):
    assert on_terminal(tmp_path, 80, 24) == ["no runs"]


def test_damaged_files_of_one_run_hide_no_other_run(evaluated, tmp_path):
    whole, no_stage, torn = evaluated("peft=lora"), evaluated("peft=dora"), evaluated("peft=pissa")
    write_json(no_stage.submission_path, {"stages": {}})
    write_json(torn.submission_path, {"stages": {"train": {"job": "17"}}})
    torn.attempts_path.write_text("{half\n")
    lines = on_terminal(tmp_path / "runs", 140, 40)
    by_name = {line.split()[0]: line.split()[1] for line in lines[1:4]}
    assert by_name == {torn.name: "unreadable", whole.name: "done", no_stage.name: "done"}


def test_tries_and_requeues_since_the_last_submission(evaluated):
    run = evaluated("peft=lora")
    write_json(run.submission_path, {"stages": {"train": {"job": "20_1"}, "evaluate": {"job": "21_1"}}})
    earlier = [{"event": "start", "stage": "train", "job": "10_1", "restarts": 0}] * 3
    undisturbed = [
        {"event": "start", "stage": "train", "job": "20_1", "restarts": 0},
        {"event": "done", "stage": "train", "job": "20_1"},
        {"event": "start", "stage": "evaluate", "job": "21_1", "restarts": 0},
        {"event": "start", "stage": "analyse", "job": "21_1", "restarts": 0},
    ]
    assert status.tries_and_requeues(earlier + undisturbed, {"20_1", "21_1"}) == (1, 0)
    assert status.tries_and_requeues(earlier, {"20_1", "21_1"}) == (0, 0)
    by_slurm = [undisturbed[0], *(undisturbed[0] | {"restarts": count} for count in (1, 2, 12)), *undisturbed[1:]]
    assert status.tries_and_requeues(earlier + by_slurm, {"20_1", "21_1"}) == (4, 12)
    requested = [undisturbed[0], {"event": "requeue", "stage": "train", "job": "20_1"}]
    assert status.tries_and_requeues(requested, {"20_1", "21_1"}) == (1, 1)
    assert status.tries_and_requeues([*requested, undisturbed[0] | {"restarts": 1}], {"20_1", "21_1"}) == (2, 1)
    again = [undisturbed[0], {"event": "again", "stage": "train", "why": "SIGKILL"}]
    assert status.tries_and_requeues(again, {"20_1", "21_1"}) == (2, 0)


def test_the_age_of_a_heartbeat(evaluated, squeue, tmp_path):
    run, now = evaluated("peft=lora"), time.time()
    run.stage_path("train").unlink()
    write_json(run.submission_path, {"stages": {"train": {"job": "17", "submitted": now - 1000}}})
    run.log_event("start", stage="train", job="17", restarts=0)
    run.heartbeat_path.write_text("17")
    squeue("echo '17|RUNNING|None|node1'")

    def cell(age_s):
        os.utime(run.heartbeat_path, (now, time.time() - age_s))
        header, line, *_ = on_terminal(tmp_path / "runs", 140, 40)
        assert header.endswith("  heartbeat") or "heartbeat" in header
        return re.split("  +", line)[-1]

    assert cell(-30) == "0 s" and cell(600) == "10 min"
    assert cell(-259195) == cell(259195) == "clock differs"
    assert [age(seconds) for seconds in (None, 0.0, 119.0, 121.0, 7300.0, 259195.0)] == [
        "-",
        "0 s",
        "119 s",
        "2 min",
        "2 h",
        "3 d",
    ]


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Return a function that puts a squeue with the given shell commands in front of the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(commands):
        (folder / "squeue").write_text(f"#!/bin/bash\n{commands}\n")
        (folder / "squeue").chmod(0o755)

    return write


def shown(runs_dir):
    """Return what `rlvr status` prints."""
    text = io.StringIO()
    status.show(runs_dir, Console(file=text, width=140))
    return text.getvalue()


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exec sleep 60", "squeue did not answer within 0.5 s"),
    ],
)
def test_a_submitted_run_is_unknown_while_slurm_does_not_answer(evaluated, tmp_path, squeue, monkeypatch, commands, reason):
    monkeypatch.setattr(queue, "SHORT_TIMEOUT_S", 0.5)
    evaluated("peft=lora")
    submitted = evaluated("peft=dora")
    submitted.stage_path("train").unlink()
    write_json(submitted.submission_path, {"stages": {"train": {"job": "17"}, "evaluate": {"job": "18"}}})
    submitted.log_event("start")
    squeue(commands)
    printed = shown(tmp_path / "runs")
    assert "Slurm does not answer: squeue" in printed and reason in " ".join(printed.split())
    assert printed.splitlines()[-1] == "2 runs: 1 unknown, 1 done"
    squeue("echo '17|RUNNING|None|node1'")
    assert "1 running, 1 done" in shown(tmp_path / "runs")
    squeue("true")
    assert "1 lost, 1 done" in shown(tmp_path / "runs")


def test_jobs_that_no_run_knows_are_named(new_runs, tmp_path, squeue):
    (run,) = new_runs(1)
    record = records.begin(run.path.parent)
    record.write("cancelled")
    squeue(f"echo '17|PENDING|JobHeldUser||{record.token}'")
    assert "unknown to every run" in shown(tmp_path / "runs") and "scancel 17" in shown(tmp_path / "runs")
    squeue("true")
    assert shown(tmp_path / "runs").endswith("\n1 run: 1 new\n") and "scancel" not in shown(tmp_path / "runs")


def test_watching_goes_on_while_slurm_does_not_answer(evaluated, tmp_path, squeue):
    submitted = evaluated("peft=dora")
    submitted.stage_path("train").unlink()
    write_json(submitted.submission_path, {"stages": {"train": {"job": "17"}}})
    submitted.log_event("start")
    answers = tmp_path / "answers"
    answers.write_text("1\n1\n1\n0\n")  # the exit codes of four queries, the last without a job
    squeue(f"code=$(head -1 {answers}); sed -i 1d {answers}; exit $code")
    text = io.StringIO()
    status.watch(tmp_path / "runs", Console(file=text, width=140), 0.01)
    assert answers.read_text() == ""
    unknown, lost = text.getvalue().splitlines()  # one line per change of a number, without a terminal
    assert "1 run: 1 unknown; Slurm does not answer: squeue" in unknown and lost.endswith("1 run: 1 lost")


def test_watching_on_a_terminal_stays_within_it_until_ctrl_c(new_runs, tmp_path):
    runs = new_runs(40)
    with runs[3].claim() as claimed:
        assert claimed
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | {
                "TERM": "xterm"
            }
            command = [sys.executable, "-m", "rlvr_sweeps.cli", "status", str(tmp_path / "runs"), "--watch"]
            os.execvpe(command[0], command, environment)
        output = b""
        interrupted = False
        while select.select([terminal], [], [], 60.0)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:
                break
            if b"39 new" in output and not interrupted:
                os.kill(pid, signal.SIGINT)
                interrupted = True
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda code: "\f" if code[0] in ("\x1b[H", "\x1b[?1049l") else "", output.decode())
    assert "Traceback" not in text and "page 1 of" in text
    *frames, last_table = [frame.splitlines() for frame in text.replace("\r", "").split("\f")]
    assert len(frames) >= 2 and all(len(frame) <= 24 for frame in frames)
    assert all(len(line) <= 80 for frame in [*frames, last_table] for line in frame)
    assert all(frame[1].startswith(runs[3].name) for frame in [frames[-1], last_table])  # the running one is the first


def test_ctrl_c_ends_a_command_with_one_line(new_runs, tmp_path):
    (run,) = new_runs(1)
    log = run.log_path("train")
    log.parent.mkdir()
    log.write_text("one line\n")
    command = [sys.executable, "-m", "rlvr_sweeps.cli", "logs", "-f", run.id, "--runs-dir", str(tmp_path / "runs")]
    with run.claim():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == f"{log}\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_variables_of_squeue_do_not_change_the_query(tmp_path, squeue, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    squeue('echo "17|RUNNING|${SQUEUE_PARTITION:-None}|node1"')
    assert queue.active_jobs()["17"].reason == ""
