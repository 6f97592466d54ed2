"""Test damaged files: every file of a run × every kind of damage, for every command that reads runs, and their repair.

One real launch makes the runs, one for each kind of damage and two that stay whole. Each test damages one file in six of them,
each in another way, and calls the commands once: a command that reads the file must name it for each run, and show the whole
runs.
"""

import contextlib
import io
import json
import random
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_json, read_object, read_rows, write_json
from rlvr_sweeps.launching import local, status
from rlvr_sweeps.launching.slurm.manage import state_after_repair
from rlvr_sweeps.planning.plan import make_plan
from rlvr_sweeps.reporting.differences import compare
from rlvr_sweeps.reporting.figures.catalogue import make_figure
from rlvr_sweeps.reporting.page.report import write_report
from rlvr_sweeps.reporting.rows import from_files
from rlvr_sweeps.reporting.tables.render import render
from rlvr_sweeps.reporting.tracking import sync
from rlvr_sweeps.runs import examination
from rlvr_sweeps.runs.checksums import write_checksums
from rlvr_sweeps.runs.directory import Run, all_runs
from tests.conftest import ROOT

SHORT = ("model=tiny", "steps=2", "training.save_every=1", "batch_size=16", "rollout.group_size=8", "rollout.max_tokens=14",
         "signal_check=off", "benchmark.tier1.k=2", "~benchmark.tier2", "~benchmark.tier3", "~benchmark.tier4",
         "~benchmark.tier5")  # fmt: skip


def flip_a_bit(path):
    """Flip the highest bit of the byte in the middle; a digit with its lowest bit flipped would be another valid file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)


def write_zeros(path):
    """Overwrite a part in the middle with zeros, at most 512 bytes."""
    content = path.read_bytes()
    start, length = len(content) // 3, min(512, max(1, len(content) // 3))
    path.write_bytes(content[:start] + bytes(length) + content[start + length :])


def tear(path):
    """Leave the second half of a row out, in the middle of a .jsonl file; of another file, the second half."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    middle = len(lines) // 2
    if path.suffix == ".jsonl":
        lines[middle] = lines[middle][: len(lines[middle]) // 2] + b"\n"
    path.write_bytes(b"".join(lines) if path.suffix == ".jsonl" else content[: len(content) // 2])


def write_other_encoding(path):
    """Write a byte in the middle that UTF-8 does not have."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0xFF
    path.write_bytes(content)


def empty(path):
    """Leave no byte."""
    path.write_bytes(b"")


def replace_by_folder(path):
    """Put a folder in the place of the file."""
    path.unlink()
    path.mkdir()


DAMAGES = [flip_a_bit, write_zeros, tear, write_other_encoding, empty, replace_by_folder]
# An empty .jsonl file is also what a writer leaves that was killed before its first row, and a flipped bit may give another
# valid file: neither is promised to be told.
PROMISED = {damage: damage not in (flip_a_bit,) for damage in DAMAGES}

STATE = {"status", "plan", "launch", "report", "table", "figure", "sync"}
pytestmark = pytest.mark.xdist_group("damage")  # one worker computes the runs that are damaged
READERS = {  # each file, and the commands that read it
    "config.yaml": STATE | {"compare"},
    ".config.json": set(),
    "summary.json": STATE | {"compare"},
    "train.json": STATE,
    "stages/train.json": STATE,
    "stages/evaluate.json": STATE,
    "stages/analyse.json": STATE,
    "analysis.json": STATE,
    "submission.json": {"status", "report", "sync"},
    "attempts.jsonl": {"status", "report", "sync"},
    "metrics.jsonl": {"report", "figure", "sync"},
    "rollouts.jsonl": {"report", "sync"},
    "reach.jsonl": {"sync"},
    "phase.json": set(),
    "eval/right.json": {"report", "table", "figure", "compare", "sync"},
    "eval/questions.json": {"report", "sync"},
    "eval/request.json": set(),
    "eval/tier1.jsonl": {"report"},
    "merged/config.json": set(),
    "merged/model.safetensors": set(),
    "adapter/adapter_model.safetensors": set(),
    "logs/train.txt": set(),
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Compute eight runs that differ in their seed, once; return their folder."""
    folder = tmp_path_factory.mktemp("computed")
    command = [sys.executable, "launch.py", "-m", "peft=lora", *SHORT, f"seed={','.join(map(str, SEEDS))}"]
    process = subprocess.run(
        [*command, f"runs_dir={folder}/runs", f"hydra.sweep.dir={folder}/launches/1"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    for run in all_runs(folder / "runs"):
        (run.path / "submission.json").write_text(
            json.dumps({"stages": {"train": {"job": "1"}}, "code": "", "launch": f"{folder}/launches/1"})
        )
    return folder / "runs"


SEEDS = tuple(range(1, len(DAMAGES) + 3))


@pytest.fixture
def runs_dir(computed, tmp_path):
    """Copy the computed runs into this test's folder."""
    return shutil.copytree(computed, tmp_path / "runs", symlinks=True)


@pytest.fixture
def by_seed(composer, runs_dir):
    """Return the copied runs, in the order of SEEDS."""
    return [Run.of(cfg) for cfg in configurations(composer, runs_dir)]


def configurations(composer, runs_dir, *overrides):
    """Return the configurations of the runs, composed as by their launch."""
    return [
        composer.point(["peft=lora", *SHORT, f"seed={seed}", f"runs_dir={runs_dir}", *overrides]).cfg for seed in SEEDS
    ]  # fmt: skip


def outputs(composer, runs_dir, by_seed, tmp_path, capsys):
    """Call every command on the folder, in this process; return what each printed or wrote."""
    results = {}

    def printed(call):
        text = io.StringIO()
        call(Console(file=text, width=400))
        return text.getvalue()

    base = [*SHORT, f"runs_dir={runs_dir}", f"seed={','.join(map(str, SEEDS))}"]
    results["status"] = printed(lambda console: status.show(runs_dir, console))
    for command, overrides in (("plan", ["plan=true"]), ("launch", [])):
        points = [composer.point(["peft=lora", *SHORT, f"seed={seed}", f"runs_dir={runs_dir}", *overrides]) for seed in SEEDS]
        if command == "launch" and "nothing to do" not in results["plan"]:
            continue  # a flipped bit may make a stage stale, which another test computes again
        results[command] = printed(lambda console, points=points: local.execute(points, console=console))
    report = write_report(runs_dir, tmp_path / "report.html")
    results["report"] = report.page.read_text() + report.table.read_text() + "\n".join(report.unreadable)
    results["table"] = printed(lambda console: render("fig3", base, tmp_path / "tables", console))
    results["figure"] = make_figure("3", base)[1].caption
    capsys.readouterr()
    rlvr(["compare", *(run.name for run in reversed(by_seed)), "--runs-dir", str(runs_dir)])
    captured = capsys.readouterr()
    results["compare"] = captured.out + captured.err
    return results


def sent_by_sync(run):
    """Return what `rlvr wandb sync` prints on a run that it does not send; None where it would send it."""
    if not examination.small_damages(run):
        return None
    text = io.StringIO()
    with pytest.raises(Refused, match=run.name):
        sync.sync([run], {}, Console(file=text, width=400))
    return text.getvalue()


def is_named(path, run, text):
    """Return whether a text names the damaged file of a run; runs with equal damage may share a line."""
    return path in text or (path.replace(run.name, "…") in text and run.id in text)


IN_CI = (  # one file of each format and of each group of readers; make test-all damages every file
    "config.yaml", "summary.json", "submission.json", "attempts.jsonl", "metrics.jsonl", "eval/right.json", "eval/tier1.jsonl",
    "merged/model.safetensors",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.exhaustive) for name in READERS]
)
def test_a_damaged_file_is_named_and_its_run_alone_is_unreadable(name, composer, runs_dir, by_seed, tmp_path, capsys):
    whole = by_seed[len(DAMAGES) :]
    accuracies = {run.name: f"{100 * read_json(run.summary_path)['avg']:.1f}" for run in by_seed}
    for damage, run in zip(DAMAGES, by_seed, strict=False):
        damage(run.path / name)
    texts = outputs(composer, runs_dir, by_seed, tmp_path, capsys)
    sync.not_uploaded(runs_dir)
    for damage, run in zip(DAMAGES, by_seed, strict=False):
        path, is_empty_log = str(run.path / name), damage is empty and name.endswith(".jsonl")
        if PROMISED[damage] and not is_empty_log:
            for command in READERS[name] & texts.keys():
                assert is_named(path, run, texts[command]), (damage.__name__, command, texts[command][:4000])
            if "sync" in READERS[name]:
                assert path in (sent_by_sync(run) or ""), damage.__name__
        if PROMISED[damage] and "status" in READERS[name] and not is_empty_log:
            (line,) = [line for line in texts["status"].splitlines() if line.startswith(f"{run.name} ")]
            assert "unreadable" in line and accuracies[run.name] not in line
        verdicts = {verdict.file: verdict for verdict in examination.damaged(examination.examine(run))}
        if PROMISED[damage] and not is_empty_log and not name.startswith("logs/"):
            folder = name.split("/")[0]
            assert name in verdicts or f"{folder}/" in verdicts, (damage.__name__, verdicts)
        elif damage is flip_a_bit and name.startswith(("merged/", "adapter/")):
            assert f"{name.split('/')[0]}/" in verdicts
    for run in whole:
        assert f"{run.name} " in texts["status"] and f" {accuracies[run.name]} ±" in texts["status"]
        assert run.name in texts["report"]
        assert not examination.damaged(examination.examine(run))
    assert " tier1 " in texts["compare"] and "left alone" in texts["plan"]
    assert "LoRA" in texts["table"] and "± " in texts["table"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith((".json", ".jsonl", ".yaml"))])
def test_no_flipped_bit_ends_in_a_traceback(name, composer, runs_dir, by_seed, tmp_path):
    """Test random bits of a file: a command shows the run, or names a file of it, but never fails in another way."""
    flipped, whole = by_seed[:2]
    for run in by_seed[2:]:
        shutil.rmtree(run.path)
    points = [composer.point(["peft=lora", *SHORT, f"seed={seed}", f"runs_dir={runs_dir}"]) for seed in SEEDS[:2]]
    path, draw = flipped.path / name, random.Random(name)
    content = path.read_bytes()
    for index in range(100):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        shown = {entry["run"]: entry for entry in status.rows(runs_dir)}
        assert shown[whole.name]["state"] == "done" and flipped.name in shown
        make_plan(points, retry=False)
        with contextlib.suppress(Damaged):
            from_files(flipped, points[0].cfg)
        with contextlib.suppress(Refused):  # where the run's evaluation has another request now
            compare.compare(compare.readable([whole.name, flipped.name], runs_dir)[0], runs_dir)
        examination.advice(flipped, examination.examine(flipped, weights=False))
        if index < 5:
            assert whole.name in write_report(runs_dir, tmp_path / "report.html").page.read_text()


@pytest.mark.slow
def test_a_launch_leaves_a_damaged_run_alone_and_runs_the_others(composer, runs_dir, by_seed):
    damaged, stale = by_seed[:2]
    write_zeros(damaged.summary_path)
    before = {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()}
    summary = read_json(stale.summary_path)
    stale.stage_path("evaluate").unlink()
    points = [composer.point(["peft=lora", *SHORT, f"seed={seed}", f"runs_dir={runs_dir}"]) for seed in SEEDS[:2]]
    text = io.StringIO()
    local.execute(points, console=Console(file=text, width=400))
    assert "2 runs: 1 stale, 1 unreadable; 1 to do." in text.getvalue()
    assert f"{damaged.name}: {damaged.summary_path} is damaged: " in text.getvalue()
    assert stale.state() == "done" and read_json(stale.summary_path)["avg"] == summary["avg"]
    assert {path: path.read_bytes() for path in damaged.path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_repair_recomputes_what_was_lost_and_the_results_are_the_same(composer, runs_dir, by_seed):
    """Test that repaired runs end with the same samples and summaries; a whole run is not touched."""
    damages = [("eval/tier1.jsonl", tear), ("summary.json", empty), ("stages/evaluate.json", write_zeros),
               ("stages/train.json", tear), ("eval/right.json", replace_by_folder), ("analysis.json", write_other_encoding),
               ("config.yaml", write_zeros), ("metrics.jsonl", tear)]  # fmt: skip
    before = [(run.samples_path("tier1").read_bytes(), read_json(run.summary_path)) for run in by_seed]
    for run, (name, damage) in zip(by_seed, damages, strict=True):
        damage(run.path / name)
        with pytest.raises(SystemExit):
            rlvr(["doctor", str(run.path)])
        damaged_content = (run.path / name).read_bytes() if (run.path / name).is_file() else None
        rlvr(["doctor", str(run.path), "--repair"])
        kept = [path for path in (run.path / "old").rglob(name.split("/")[-1]) if path.is_file()]
        assert damaged_content is None or [path.read_bytes() for path in kept] == [damaged_content]
    points = [composer.point(["peft=lora", *SHORT, f"seed={seed}", f"runs_dir={runs_dir}"]) for seed in SEEDS]
    text = io.StringIO()
    local.execute(points, console=Console(file=text, width=200))
    for run, (name, _), (samples, summary) in zip(by_seed, damages, before, strict=True):
        assert run.state() == "done", (name, text.getvalue())
        assert run.samples_path("tier1").read_bytes() == samples, name
        same = {"finished", "reward_first", "reward_last"} if name == "metrics.jsonl" else {"finished"}
        after = read_json(run.summary_path)
        assert {key: value for key, value in after.items() if key not in same} == {
            key: value for key, value in summary.items() if key not in same
        }, name
    assert [row["step"] for row in read_rows(by_seed[-1].metrics_path)] == [1]


@pytest.mark.slow
def test_a_damaged_model_is_not_evaluated(composer, runs_dir, by_seed, capsys):
    """Test a run whose evaluation was never done, with zeros in merged/: it fails with the file's name and without numbers."""
    run = by_seed[0]
    for path in (run.summary_path, run.stage_path("evaluate"), run.path / "eval", run.analysis_path, run.stage_path("analyse")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_zeros(run.merged_path / "model.safetensors")
    point = composer.point(["peft=lora", *SHORT, f"seed={SEEDS[0]}", f"runs_dir={runs_dir}"])
    with pytest.raises(Refused, match=r"merged/model\.safetensors is damaged: its SHA-256 differs"):
        local.execute([point], console=Console(file=io.StringIO()))
    assert run.state() == "failed" and not run.summary_path.exists() and not list((run.path / "eval").glob("*.jsonl.*"))
    with pytest.raises(SystemExit):
        rlvr(["doctor", run.name, "--runs-dir", str(runs_dir)])
    assert "must be trained again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="must be trained again"):
        rlvr(["doctor", run.name, "--runs-dir", str(runs_dir), "--repair"])
    rlvr(["doctor", run.name, "--runs-dir", str(runs_dir), "--repair", "--train-again"])
    assert not run.merged_path.exists() and [path.name for path in (run.path / "old").glob("*/merged")] == ["merged"]


def test_a_retry_repairs_what_needs_no_new_training_and_refuses_the_rest(evaluated):
    repairable, lost = evaluated("peft=lora"), evaluated("peft=dora")
    empty(repairable.summary_path)
    assert state_after_repair(repairable, {}) == "lost" and not repairable.stage_path("evaluate").exists()
    assert [path.read_bytes() for path in repairable.path.glob("old/*/summary.json")] == [b""]
    tear(lost.record_path)
    with pytest.raises(Refused, match=r"must be trained again: train\.json cannot be recovered.*--repair --train-again"):
        state_after_repair(lost, {})
    failed = evaluated("peft=pissa")
    for stage in ("train", "evaluate"):
        failed.stage_path(stage).unlink()
    failed.metrics_path.write_text('{"step": 1, "reward_mean": 0.5}\n{"st\n{"step": 3, "reward_mean": 0.5}\n')
    write_json(
        failed.failure_path, {"stage": "train", "error": f"Damaged: {failed.metrics_path} is damaged: line 2 is not JSON"}
    )
    assert state_after_repair(failed, {}) == "failed"
    assert [row["step"] for row in read_rows(failed.metrics_path)] == [1, 3]


def test_samples_that_differ_from_their_counts_are_damage(evaluated):
    run = evaluated("peft=lora")
    assert not examination.damaged(examination.examine(run))
    path = run.samples_path("tier1")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    (verdict,) = examination.damaged(examination.examine(run))
    assert (verdict.file, verdict.why) == ("eval/tier1.jsonl", "it holds 11 of 12 samples")
    path.write_text("".join(lines).replace('"correct": true', '"correct": false', 1))
    (verdict,) = examination.damaged(examination.examine(run))
    assert verdict.why == "its verdicts differ from those in right.json"


def test_a_damaged_model_matters_only_where_a_stage_must_still_load_it(evaluated):
    run = evaluated("peft=lora")
    (run.merged_path / "model.safetensors").write_bytes(b"weights")
    write_checksums(run.merged_path)
    flip_a_bit(run.merged_path / "model.safetensors")
    (verdict,) = examination.damaged(examination.examine(run))
    assert (verdict.file, verdict.cure) == ("merged/", "nothing") and run.state() == "done"
    empty(run.summary_path)  # made again from the samples, without the model
    assert [verdict.cure for verdict in examination.damaged(examination.examine(run))] == ["move", "nothing"]
    tear(run.samples_path("tier2"))
    assert "train" in [verdict.cure for verdict in examination.damaged(examination.examine(run))]


def test_a_running_run_is_not_repaired(evaluated):
    run = evaluated("peft=lora")
    empty(run.summary_path)
    with run.claim(), pytest.raises(Refused, match="is running"):
        examination.repair(run, examination.examine(run))
    assert run.summary_path.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.jsonl", b'{"step": 1}\n{"st\n{"step": 3}\n', "line 2 is not JSON"),
        ("rows.jsonl", b'{"step": 1}\n\xff\xfe\n', "line 2 is not UTF-8 text"),
        ("rows.jsonl", b'{"step": 1}\n[1]\n', "line 2 holds no object"),
        ("rows.jsonl", b'{"step": 1}\n{"spep": 2}\n', "line 2 has no 'step'"),
        ("rows.jsonl", b'{"step": 1}\n\0\0\0\n', "line 2 is not JSON"),
        ("value.json", b"", "it is empty"),
        ("value.json", b'{\n "step": 1,\n', "line 3 is not JSON"),
        ("value.json", b"\xff{}", "byte 0 is not UTF-8 text"),
        ("value.json", b"[]", "it holds no object"),
        ("value.json", b"null", "it holds no object"),
        ("value.json", b"{}", "it has no 'step'"),
        ("rows.jsonl", None, "a folder is in its place"),
        ("value.json", None, "a folder is in its place"),
    ],
)
def test_content_that_no_killed_writer_leaves_is_damage(tmp_path, name, content, why):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(Damaged) as raised:
        read_rows(path, "step") if path.suffix == ".jsonl" else read_object(path, "step")
    assert why in str(raised.value) and str(path) in str(raised.value)


def test_what_a_killed_writer_leaves_is_no_damage(tmp_path):
    for content, rows in ((b"", []), (b'{"step": 1}\n{"st', [1]), (b'{"step": 1}\n\0\0\0', [1])):
        (tmp_path / "rows.jsonl").write_bytes(content)
        assert [row["step"] for row in read_rows(tmp_path / "rows.jsonl", "step")] == rows
