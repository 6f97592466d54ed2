"""Examine every file of a run, say what a damaged one loses, and repair what can be computed again.

A repair deletes nothing: it moves a damaged file to old/<time>/, writes the rows of it that can be read, or a copy that other
files hold, and sets the record of a stage aside that must be repeated. The next launch, or `rlvr retry`, then computes exactly
what is missing.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlvr_sweeps.errors import Damaged, Edited, Refused
from rlvr_sweeps.files import Row, as_json_lines, as_yaml, parse_row, read_bytes, read_object, read_rows, write_text
from rlvr_sweeps.runs import checkpoints, checksums
from rlvr_sweeps.runs.directory import STAGES, Run, stored_id

# move: to old/; the file is made again, or nothing depends on it.   rows: keep the rows that can be read.
# write: other files of the run hold its content.   train: nothing but a new training makes it again.
# nothing: the results do not need it, and it cannot be made again without a new training.
Cure = Literal["move", "rows", "write", "train", "nothing"]
CHEAP: tuple[Cure, ...] = ("move", "rows", "write")


@dataclass(frozen=True)
class Format:
    """The content of one of a run's files: its keys (of each row, for .jsonl), and what follows where it is damaged."""

    keys: tuple[str, ...]
    follows: str
    cure: Cure = "move"
    again: str | None = None  # the stage that makes it again


SAMPLES = Format(
    ("problem", "sample", "text", "answer", "gold", "correct", "reason", "tokens", "truncated"),
    "samples that can be read are kept; the others are decoded again", "rows", "evaluate",
)  # fmt: skip
FORMATS = {  # the small files; weights have checksums, and config.yaml, train.json and stages/ have functions below
    ".config.json": Format(("of", "config"), "a copy of config.yaml; nothing depends on it"),
    "metrics.jsonl": Format(
        ("step", "reward_mean"), "the rows that can be read are kept; other steps cannot be recovered", "rows"
    ),
    "rollouts.jsonl": Format(("step", "prompt", "text"), "the rows that can be read are kept; no result depends on it", "rows"),
    "reach.jsonl": Format(("step", "reach", "frozen_tensors_changed"), "the rows that can be read are kept", "rows"),
    "spectra.jsonl": Format(("step", "spectra"), "the rows that can be read are kept; only figures show it", "rows"),
    "attempts.jsonl": Format(
        ("event", "time"), "the rows that can be read are kept; hours and attempts are understated", "rows"
    ),
    "signal.json": Format((), "no result depends on it"),
    "phase.json": Format(("phase",), "nothing depends on it"),
    "stopped_early.json": Format(("step", "why"), "the reason of the early stop is lost"),
    "per_device.json": Format(("asked", "fits"), "the configured per-device batch is tried again"),
    "summary.json": Format(("run", "evaluation"), "made again from the stored samples", again="evaluate"),
    "eval/right.json": Format((), "made again from the stored samples", again="evaluate"),
    "eval/questions.json": Format((), "made again from the problems", again="evaluate"),
    "eval/request.json": Format(("evaluation", "trained", "engine"), "written again from the evaluation's record", "write"),
    "analysis.json": Format(("spectra",), "made again from merged/", again="analyse"),
    "submission.json": Format(("stages",), "its Slurm jobs are not known any more: look for them with squeue first"),
    "attempt.json": Format(("attempt",), "attempts are counted from 1 again"),
    "saved.json": Format((), "nothing depends on it between attempts"),
    "failure.json": Format(("error",), "the error of the last attempt is lost; its log may show it"),
    "wandb/mirror.json": Format((), "rlvr wandb sync sends the run again"),
    "tensorboard/mirror.json": Format((), "the summary is written again; the steps are in the event files"),
    "trackio/mirror.json": Format((), "the summary is written again; the steps are in Trackio's database"),
}
# Files on which no state and no number depends once a stage has ended.
NOT_SHOWN = (
    ".config.json", "phase.json", "signal.json", "saved.json", "attempt.json", "per_device.json", "eval/request.json",
    "tensorboard/mirror.json", "trackio/mirror.json",
)  # fmt: skip
PLAIN = ("heartbeat", "stop", ".room")  # files without a content that is read; a folder may be in their place


@dataclass(frozen=True)
class Verdict:
    """The result for one file, or one folder of weights; the fields are the keys of `rlvr doctor RUN --json`."""

    file: str
    verdict: Literal["whole", "damaged", "missing", "incomplete"]
    why: str = ""
    follows: str = ""
    cure: Cure | None = None  # of a damaged file


def small_damages(run: Run) -> list[Damaged]:
    """Return the damages of the small files that states, tables, figures and W&B are made from: no samples, no weights."""
    checks: list[Callable[[], object]] = [run.config, partial(read_object, run.record_path)]
    checks += [partial(run.marker, stage) for stage in STAGES]
    checks += [run.right_samples]
    checks += [partial(check, run.path / name, form) for name, form in FORMATS.items() if name not in NOT_SHOWN]
    damages = []
    for examine_file in checks:
        try:
            examine_file()
        except Damaged as damage:
            damages.append(damage)
    return damages


def check(path: Path, form: Format) -> None:
    """Raise Damaged where a file exists and has another form; saved.json is a number, all others are objects or rows."""
    if path.suffix == ".jsonl":
        read_rows(path, *form.keys)
    elif path.name == "saved.json":
        read_bytes(path)
    else:
        read_object(path, *form.keys)


def examine(run: Run, weights: bool = True) -> list[Verdict]:
    """Return a verdict on every file of a run; `weights`: also read checkpoints and models, gigabytes of a large run."""
    verdicts = [config_verdict(run)]
    verdicts += [file_verdict(run, run.path / name, form) for name, form in FORMATS.items() if (run.path / name).exists()]
    verdicts += [plain_verdict(run, run.path / name) for name in PLAIN if (run.path / name).is_dir()]
    for path in sorted([*(run.path / "eval").glob("*.jsonl"), *(run.path / "eval" / "shards").glob("*.jsonl")]):
        verdicts.append(file_verdict(run, path, SAMPLES))
    verdicts += [record_verdict(run)] if run.record_path.exists() else []
    verdicts += [stage_verdict(run, stage) for stage in STAGES if run.stage_path(stage).exists()]
    return [*verdicts, *(weight_verdicts(run, needs_model(run, verdicts)) if weights else ())]


def name_of(run: Run, path: Path) -> str:
    return path.relative_to(run.path).as_posix()


def file_verdict(run: Run, path: Path, form: Format) -> Verdict:
    """Return the verdict on one small file."""
    try:
        check(path, form)
        if path == run.right_path:
            run.right_samples()
    except Damaged as damage:
        cure = form.cure
        if cure == "rows" and not path.is_file():
            cure = "move"
        if path.name == "request.json" and request_of(run) is None:
            return Verdict(name_of(run, path), "damaged", damage.why, "all samples are decoded again", "move")
        return Verdict(name_of(run, path), "damaged", damage.why, form.follows, cure)
    if form is SAMPLES and (why := difference_to_counts(run, path)):
        return Verdict(name_of(run, path), "damaged", why, form.follows, form.cure)
    return Verdict(name_of(run, path), "whole", missing_steps(path) if path == run.metrics_path else "")


def difference_to_counts(run: Run, path: Path) -> str | None:
    """Return how the readable samples of an evaluated benchmark differ from right.json; None where they agree, or cannot."""
    try:
        counted = (run.right_samples() or {}).get(path.stem) if run.marker("evaluate") else None
    except Damaged:
        return None
    if counted is None or path.parent.name == "shards":
        return None
    rows, expected = read_rows(path), counted["k"] * len(counted["right"])
    if len(rows) != expected:
        return f"it holds {len(rows):,} of {expected:,} samples"
    right = Counter(row["problem"] for row in rows if row["correct"])
    return None if right == Counter(counted["right"]) else "its verdicts differ from those in right.json"


def missing_steps(path: Path) -> str:
    """Return `2 steps are missing` for a metrics.jsonl with a gap, else nothing."""
    steps = [row["step"] for row in read_rows(path)]
    count = max(steps, default=0) - len(set(steps))
    return f"{count} step{'s are' if count > 1 else ' is'} missing, lost with damaged rows" if count > 0 else ""


def plain_verdict(run: Run, path: Path) -> Verdict:
    """Return the verdict on a file without content in whose place a folder is."""
    return Verdict(name_of(run, path), "damaged", "a folder is in its place", "nothing depends on its content", "move")


def config_verdict(run: Run) -> Verdict:
    """Return the verdict on config.yaml, which .config.json can replace."""
    name = name_of(run, run.config_path)
    try:
        run.config()
    except Damaged as damage:
        why = damage.why + (": edited, or damaged" if isinstance(damage, Edited) else "")
        if copied_config(run):
            return Verdict(name, "damaged", why, "written again from .config.json, which is whole", "write")
        return Verdict(name, "damaged", why, "the launch command of the run writes it again", "move")
    return Verdict(name, "whole")


def copied_config(run: Run) -> dict[str, Any] | None:
    """Return the configuration in .config.json where it is whole and has the run's id, else None."""
    cfg = (run.parsed_config() or {}).get("config")
    return cfg if isinstance(cfg, dict) and stored_id(cfg) == run.id else None


def record_verdict(run: Run) -> Verdict:
    """Return the verdict on train.json: a training that goes on writes it again, a finished one does not."""
    name = name_of(run, run.record_path)
    try:
        read_object(run.record_path)
    except Damaged as damage:
        if run.stage_path("train").exists():
            return Verdict(name, "damaged", damage.why, "the record of the built trainer is lost", "train")
        return Verdict(name, "damaged", damage.why, "the training writes it again when it goes on", "move")
    return Verdict(name, "whole")


def stage_verdict(run: Run, stage: str) -> Verdict:
    """Return the verdict on the record of a finished stage."""
    path = run.stage_path(stage)
    try:
        run.marker(stage)
    except Damaged as damage:
        if stage != "train":
            follows = "the stored samples are graded and counted again" if stage == "evaluate" else "the analysis is repeated"
            return Verdict(name_of(run, path), "damaged", damage.why, follows, "move")
        if train_marker(run):
            return Verdict(name_of(run, path), "damaged", damage.why, "written again from the run's other files", "write")
        return Verdict(name_of(run, path), "damaged", damage.why, "it is not known whether merged/ is whole", "train")
    return Verdict(name_of(run, path), "whole")


def train_marker(run: Run) -> dict[str, Any] | None:
    """Return the record of a finished training, from what later stages recorded, or where merged/ verifies; else None."""
    finished: list[Any] = []
    for stage in ("evaluate", "analyse"):
        with contextlib.suppress(Damaged):
            finished.append(((run.marker(stage) or {}).get("spec") or {}).get("trained"))
    with contextlib.suppress(Damaged):
        finished.append((read_object(run.path / "eval" / "request.json") or {}).get("trained"))
    with contextlib.suppress(Damaged):
        if checksums.verify(run.merged_path) and read_object(run.record_path):
            finished.append(time.time())
    known = [end for end in finished if isinstance(end, float)]
    return {"spec": {"run": run.id}, "finished": known[0], "seconds": seconds_of_training(run)} if known else None


def seconds_of_training(run: Run) -> float | None:
    """Return the seconds of the training from summary.json; None where it does not have them."""
    try:
        return (read_object(run.summary_path) or {}).get("train_seconds")
    except Damaged:
        return None


def request_of(run: Run) -> dict[str, Any] | None:
    """Return the content of eval/request.json from the evaluation's record and summary; None where these are not whole."""
    try:
        marker, summary = run.marker("evaluate"), read_object(run.summary_path)
    except Damaged:
        return None
    if not marker or not summary or "engine" not in summary or "evaluation" not in marker["spec"]:
        return None
    return {key: marker["spec"].get(key) for key in ("evaluation", "trained")} | {"engine": summary["engine"]}


def weight_verdicts(run: Run, needed: bool) -> Iterator[Verdict]:
    """Yield the verdicts on checkpoints, merged/, adapter/ and start.safetensors; `needed`: a stage must still load merged/."""
    choice = checkpoints.choose(run.checkpoints_path)
    resume = choice.resume.name if choice.resume else "step 0"
    for folder in checkpoints.checkpoints(run.checkpoints_path):
        name = name_of(run, folder)
        if folder in choice.incomplete:
            yield Verdict(name, "incomplete", "its writer was killed", "removed when the training goes on")
        elif folder in choice.damaged:
            damage = choice.damaged[folder]
            yield Verdict(name, "damaged", f"{damage.path.name}: {damage.why}", f"the training goes on from {resume}", "move")
        elif folder == choice.resume:
            yield Verdict(name, "whole", follows="the training goes on from here")
        else:
            yield older_checkpoint(run, folder)
    if run.merged_path.exists():
        yield model_verdict(run, needed)
    if run.adapter_path.exists():
        yield folder_verdict(run.adapter_path, "no result depends on it; merged/ holds the trained model", "nothing")
    if run.start_path.exists():
        try:
            checksums.refuse_other_length(run.start_path)
            yield Verdict(name_of(run, run.start_path), "whole")
        except Damaged as damage:
            follows = "no result depends on it; a training that goes on writes it again"
            yield Verdict(name_of(run, run.start_path), "damaged", damage.why, follows, "move")


def older_checkpoint(run: Run, folder: Path) -> Verdict:
    """Return the verdict on a checkpoint that stands behind the one from which the training goes on."""
    try:
        checkpoints.verify(folder)
    except Damaged as damage:
        why = f"{damage.path.name}: {damage.why}"
        return Verdict(name_of(run, folder), "damaged", why, "a newer one is whole", "move")
    return Verdict(name_of(run, folder), "whole")


def needs_model(run: Run, verdicts: Sequence[Verdict]) -> bool:
    """Return whether a stage must still load merged/: one that is not done, or whose samples or analysis are damaged."""
    names = {verdict.file for verdict in damaged(verdicts)}
    if any(FORMATS["analysis.json"] is format_of(name) or name == "stages/analyse.json" for name in names):
        return True
    if any(name.startswith("eval/") and name.endswith(".jsonl") for name in names):
        return True
    try:
        cfg = run.config()
    except Damaged:
        cfg = copied_config(run) or {}
    for stage in run.stages(cfg) if cfg else ("evaluate",):
        with contextlib.suppress(Damaged):  # its verdict is among those above
            if not (run.is_done(stage, cfg) if cfg else run.stage_path(stage).exists()):
                return True
    return False


def model_verdict(run: Run, needed: bool) -> Verdict:
    """Return the verdict on merged/, which only a stage that is still to be run needs."""
    if needed:
        return folder_verdict(run.merged_path, "nothing can be evaluated without a new training", "train")
    follows = "the results stand: the evaluation verified it before it decoded. The model itself needs a new training"
    if not (run.merged_path / checksums.NAME).exists():
        follows = "whether it was whole when it was evaluated is not known. The model itself needs a new training"
    return folder_verdict(run.merged_path, follows, "nothing")


def folder_verdict(folder: Path, follows: str, cure: Cure) -> Verdict:
    """Return the verdict on a folder with checksums; without them, only the lengths of its tensor files are known."""
    try:
        has_checksums = checksums.verify(folder)
    except Damaged as damage:
        return Verdict(f"{folder.name}/", "damaged", f"{damage.path.name}: {damage.why}", follows, cure)
    return Verdict(f"{folder.name}/", "whole", "" if has_checksums else "without checksums: only its length was compared")


def damaged(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts on damaged files."""
    return [verdict for verdict in verdicts if verdict.verdict == "damaged"]


def advice(run: Run, verdicts: Sequence[Verdict]) -> str:
    """Return the sentence that says what can be saved, with the command to type."""
    bad = damaged(verdicts)
    if not bad:
        return f"No damage was found in {run.name}."
    command = f"rlvr doctor {run.path} --repair"
    again = f"then {launch_again(run)}"
    if lost := [verdict for verdict in bad if verdict.cure == "train"]:
        return (
            f"{run.name} must be trained again: {lost[0].file} cannot be recovered. {command} --train-again moves the results "
            f"of the training to old/; {again}."
        )
    if repairable := [verdict for verdict in bad if verdict.cure in CHEAP]:
        count = f"{len(repairable)} of {len(bad)} damaged files" if len(bad) > 1 else "The damaged file"
        return f"{count} can be repaired, with the losses stated above: {command}; {again}."
    return f"Nothing of {run.name} can be repaired, and no result needs it."


def launch_again(run: Run) -> str:
    """Return the command that computes what a repair has set aside."""
    has_jobs = run.submission_path.is_file()
    return f"rlvr retry {run.path}, or its launch command" if has_jobs else "its launch command, with retry=true if it failed"


def repair(run: Run, verdicts: Sequence[Verdict], train_again: bool = False) -> list[str]:
    """Repair what the verdicts say can be repaired, and return a sentence for each file.

    Raises Refused for a running run, and, without `train_again`, where nothing but a new training helps.
    """
    bad = damaged(verdicts)
    if any(verdict.cure == "train" for verdict in bad) and not train_again:
        raise Refused(advice(run, verdicts))
    if (lock := run.path / ".lock").is_dir():  # no process can hold it
        lock.rename(run.path / f"lock.{time.time():.0f}")
    with run.claim() as claimed:
        if not claimed:
            raise Refused(f"{run.name} is running. Repair it when it has ended.")
        return list(repair_files(run, bad, train_again))


def repair_files(run: Run, bad: Sequence[Verdict], train_again: bool) -> Iterator[str]:
    """Repair each damaged file of a claimed run; yield a sentence for each."""
    # Read before anything is moved.
    contents = {verdict.file: content_again(run, verdict) for verdict in bad if verdict.cure in ("rows", "write")}
    stages = sorted({form.again for verdict in bad if (form := format_of(verdict.file)) and form.again})
    paths = [run.path / verdict.file for verdict in bad if verdict.cure in CHEAP]
    paths += [run.stage_path(stage) for stage in stages]
    if train_again:
        paths += [run.stage_path("train"), run.record_path, run.merged_path, run.adapter_path]
    run.set_aside(list(dict.fromkeys(paths)), f"repaired: {', '.join(verdict.file for verdict in bad)}")
    for verdict in bad:
        if verdict.file in contents:
            text, note = contents[verdict.file]
            if verdict.file == "attempts.jsonl":  # the event of this repair is in it already
                text += run.attempts_path.read_text()
            write_text(run.path / verdict.file, text)
            yield f"{verdict.file}: {note}"
        elif verdict.cure == "move":
            yield f"{verdict.file}: moved to old/; {verdict.follows}"
        elif verdict.cure == "nothing":
            yield f"{verdict.file}: left as it is; {verdict.follows}"
    yield from (f"{stage}: is repeated by the next launch" for stage in [*stages, *(["train"] if train_again else [])])


def format_of(name: str) -> Format | None:
    """Return the format of a file by its name; None for weights and records of stages."""
    return FORMATS.get(name) or (SAMPLES if name.startswith("eval/") else None)


def content_again(run: Run, verdict: Verdict) -> tuple[str, str]:
    """Return (the text of a file as it can be recovered, what was recovered)."""
    path = run.path / verdict.file
    if verdict.cure == "rows":
        form = format_of(verdict.file)
        assert form
        rows, lost = readable_rows(path, form.keys)
        return as_json_lines(rows), f"{len(rows)} rows kept, {lost} lines lost; the damaged file is in old/"
    note = "written again from the run's other files; the damaged file is in old/"
    if verdict.file == "config.yaml":
        return as_yaml(copied_config(run) or {}), note
    value = request_of(run) if path.name == "request.json" else train_marker(run)
    return json.dumps(value, indent=1) + "\n", note


def readable_rows(path: Path, keys: Sequence[str]) -> tuple[list[Row], int]:
    """Return the rows of a damaged .jsonl file that can be read, and the number of lines that cannot."""
    rows, lost = [], 0
    for number, line in enumerate((read_bytes(path) or b"").split(b"\n"), 1):
        if line:
            try:
                rows.append(parse_row(path, number, line, keys))
            except Damaged:
                lost += 1
    return rows, lost
