"""List the origin of a page's numbers: code, packages, models, data, decoding, grader and launch commands."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import grading_of, is_trained, rules_of
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import read_object
from rlvr_sweeps.reporting.rows import Cell
from rlvr_sweeps.runs.directory import Run

Facts = dict[tuple[str, str], str]  # (section, name) -> value
SECTIONS = ("Code", "Model", "Training", "Evaluation")
NOT_PACKAGES = ("commit", "host", "machine", "gpus", "device", "threads")  # not versions, in train.json's surroundings


@dataclass(frozen=True)
class Entry:
    """A fact about the runs: each of its values with the runs that have it."""

    section: str
    name: str
    values: list[tuple[str, list[str]]]


def manifest(rows: Sequence[Cell]) -> list[Entry]:
    """Return every fact of the finished runs, ordered by section."""
    runs_by_value: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in rows:
        for run, summary in zip(cell.runs, cell.summaries, strict=True):
            for key, value in facts(run, run.config(), summary).items():
                runs_by_value.setdefault(key, {}).setdefault(value, []).append(run.name)
    ordered = sorted(runs_by_value.items(), key=lambda item: SECTIONS.index(item[0][0]))
    return [Entry(section, name, list(values.items())) for (section, name), values in ordered]


def facts(run: Run, cfg: Resolved, summary: dict[str, Any]) -> Facts:
    """Return the facts of one run, from its configuration, train.json, right.json and summary."""
    record = read_object(run.record_path) or {}
    entries: Facts = {}
    if is_trained(cfg):
        surroundings = record.get("surroundings", {})
        entries["Code", "commit"] = surroundings.get("commit") or "not recorded"
        entries["Code", "packages"] = ", ".join(
            f"{name} {version}" for name, version in surroundings.items() if name not in NOT_PACKAGES
        )
        entries["Code", "device"] = surroundings.get("device") or surroundings.get("machine") or "not recorded"
        if surroundings.get("device") is None and "threads" in surroundings:
            entries["Code", "threads"] = str(surroundings["threads"])
        entries["Training", "data"] = source(cfg["data"])
        if data := record.get("data"):
            entries["Training", "prompts"] = f"{data['problems']:,}, {data.get('left_out_too_long', 0):,} left out as too long"
        entries["Training", "rollouts"] = decoding(cfg["rollout"]) + f", {cfg['rollout']['group_size']} a prompt"
        entries["Training", "requested and built settings"] = agreement(record)
    entries["Model", cfg["model"]["name"]] = source(cfg["model"])
    if "model_key" in record:
        entries["Model", f"{cfg['model']['name']}, hash of the weights"] = record["model_key"]
    entries["Evaluation", "decoding"] = decoding(cfg["evaluation"]) + f", seed {cfg['evaluation']['seed']}"
    entries["Evaluation", "engine"] = str(summary.get("engine", "not recorded"))
    answers = [grading_of(cfg), *(f"{rule} {value}" for rule, value in asdict(rules_of(cfg)).items())]
    entries["Evaluation", "answers"] = f"{', '.join(answers)}, grader version {summary.get('grader', 'not recorded')}"
    if "verifier" in summary:
        entries["Evaluation", "verifier"] = summary["verifier"]
    right = run.right_samples() or {}
    for name, benchmark in cfg["benchmark"].items():
        text = f"{source(benchmark)}, {summary.get(f'{name}/n', '-')} problems, k = {benchmark['k']}"
        entries["Evaluation", name] = text + (f", golds {right[name]['golds']}" if name in right else "")
    return entries


def source(stated: dict[str, Any]) -> str:
    """Return `path @ revision (subset, split)` of a model or data set."""
    parts = [str(stated[key]) for key in ("subset", "split") if stated.get(key)]
    text = stated["path"] + (f" @ {stated['revision']}" if stated.get("revision") else ", no revision pinned")
    return text + (f" ({', '.join(parts)})" if parts else "")


def decoding(stated: dict[str, Any]) -> str:
    """Return the engine and sampling settings as text."""
    engine = f"{stated['engine']}: " if stated["engine"] != "auto" else ""
    return f"{engine}temperature {stated['temperature']:g}, top-p {stated['top_p']:g}, {stated['max_tokens']:,} tokens at most"


def agreement(record: dict[str, Any]) -> str:
    """Return whether the built trainer matched its configuration, from train.json."""
    if "asked" not in record:
        return "not recorded"
    return "equal" if record["asked"] == record["built"] else "DIFFERENT, see train.json"


@dataclass(frozen=True)
class Launch:
    """A command that launched runs of this folder."""

    when: str
    command: str
    runs: int
    outcome: str


def launches(runs_dir: Path, runs: Sequence[Run]) -> list[Launch]:
    """Return the launches of these runs, oldest first."""
    names = {run.name for run in runs}
    dated_launches = []
    for folder in launch_folders(runs_dir, runs):
        try:
            record = launch_record(folder)
        except Damaged as damage:
            dated_launches.append((0.0, Launch("-", str(damage), 0, "unreadable")))
            continue
        if record is None:
            continue
        launched = {Path(point["run"]).name for point in record["points"] if Path(point["run"]).parent == runs_dir.absolute()}
        if launched & names:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"]))
            dated_launches.append(
                (
                    record["started"],
                    Launch(when, shell_command(record["command"]), len(launched), record.get("outcome", "open")),
                )
            )
    return [launch for _, launch in sorted(dated_launches, key=lambda pair: pair[0])]


def launch_folders(runs_dir: Path, runs: Sequence[Run]) -> set[Path]:
    """Return the folders of launches that may have these runs: launches/ beside `runs_dir`, and those of their submissions."""
    folders = {path.parent.resolve() for path in (runs_dir.absolute().parent / "launches").rglob("launch.json")}
    return folders | {Path(submitted["launch"]).resolve() for run in runs if (submitted := run.submission("launch"))}


def launch_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of a launch's launch.json; None where there is none. Raises Damaged."""
    return read_object(folder / "launch.json", "command", "started", "points")


def launch_records(runs_dir: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the readable records of launches that may have these runs, the newest first."""
    records = []
    for folder in launch_folders(runs_dir, runs):
        with contextlib.suppress(Damaged):
            if record := launch_record(folder):
                records.append(record)
    return sorted(records, key=lambda record: -float(record["started"]))


def shell_command(command: Sequence[str]) -> str:
    """Return the command as it can be typed in a shell."""
    return "python " + shlex.join([Path(command[0]).name, *command[1:]])
