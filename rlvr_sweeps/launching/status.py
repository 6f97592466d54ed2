"""`rlvr status`: the state of every run of a folder, from its files and, where Slurm is installed, from its queue."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live as LiveDisplay

from rlvr_sweeps.config.identity import science
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, modules_of
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.files import Row, read_rows
from rlvr_sweeps.launching.slurm import next_round, queue, records
from rlvr_sweeps.launching.slurm.manage import unstarted_job_log
from rlvr_sweeps.launching.status_table import counts, table
from rlvr_sweeps.planning.plan import dials
from rlvr_sweeps.runs.directory import Job, Live, NoAnswer, Run
from rlvr_sweeps.runs.reading import RunStatus, failed_canary, find_runs, last_rows, no_signal

SLURM_KEYS = ("job", "node", "tries", "requeues", "heartbeat_s", "clock_differs")  # of a row; None where nothing was submitted
CANCELLED = "cancelled by rlvr cancel"  # says more than Slurm's CANCELLED
CLOCK_TOLERANCE_S = 60.0  # a heartbeat further in the future, or older than its own job, comes from a clock that differs
PROMPT_LINES = 2  # of a terminal: the command above the table, and the shell's prompt below it
REFRESHES_PER_PAGE = 4  # of --watch, where there are more runs than lines


def rows(runs_dir: Path, sweep: str | None = None) -> list[Row]:
    """Return one row per run, as `--json` prints them; `sweep`: only runs with this label."""
    return rows_of(runs_dir, sweep, queue.active_jobs_if_reachable())


def rows_of(runs_dir: Path, sweep: str | None, active: Live | None) -> list[Row]:
    """Return the rows for the jobs that Slurm lists."""
    statuses = find_runs(runs_dir, active)
    id_counts = Counter(status.run.id for status in statuses)
    chosen = [status for status in statuses if sweep is None or (status.cfg and status.cfg["sweep"] == sweep)]
    result = [readable_row(status, active or {}) for status in chosen]
    for entry in result:
        if id_counts[entry["id"]] > 1:  # copies of a run: only their names tell them apart
            entry["id"] = entry["run"]
    add_distinguishing_settings([status.cfg for status in chosen], result)
    lost = {entry["job"]: entry for entry in result if entry["state"] == "lost" and entry["job"]}
    for job, state in ({} if active is None or isinstance(active, NoAnswer) else queue.final_states(lost)).items():
        if job in lost and lost[job]["error"] != CANCELLED:
            lost[job]["error"] = f"Slurm job {job} ended as {state}{unstarted(runs_dir / lost[job]['run'])}"
    return result


def readable_row(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return one run's row; for a run with a damaged file a row without numbers, with the file's name as its error."""
    if status.state != "unreadable":
        try:
            return row(status, active)
        except Damaged as damage:
            status = status.unreadable(damage)
    facts = {"settings": settings_of(status.cfg), "sweep": status.cfg["sweep"]} if status.cfg else {}
    return empty_row(status.run) | facts | {"state": status.state, "error": status.error}


def empty_row(run: Run) -> Row:
    """Return the row of a run of which nothing but its name is known."""
    unknown = dict.fromkeys(("sweep", "state", "step", "steps", "reward", "avg", "avg_se", "no_signal"))
    return {"run": run.name, "id": run.id, "settings": {}, **unknown, "error": "", **dict.fromkeys(SLURM_KEYS)}


def row(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return one run's row: its state, steps, reward (the mean of the last steps) and accuracy, its error, its Slurm job.

    Raises Damaged where a file of the run cannot be read.
    """
    summary = status.summary if status.state == "done" else {}
    cfg = status.cfg
    steps = cfg["steps"] if cfg and is_trained(cfg) else None
    recent = [] if status.state == "done" else last_rows(status.run)
    reward = sum(step["reward_mean"] for step in recent) / len(recent) if recent else summary.get("reward_last")
    facts = {
        "sweep": cfg["sweep"] if cfg else None,
        "settings": settings_of(cfg) if cfg else {},
        "state": status.state,
        "step": summary.get("steps_done", steps) if summary else (recent[-1]["step"] if recent else None),
        "steps": steps,
        "reward": reward,
        "avg": summary.get("avg"),
        "avg_se": summary.get("avg_se"),
        "no_signal": no_signal(recent) if status.state in ("running", "lost", "failed") else None,
        "error": status.error or (reason_of_loss(status.run) if status.state == "lost" else ""),
    }
    return empty_row(status.run) | facts | slurm_facts(status, active)


def settings_of(cfg: Resolved) -> Row:
    """Return the settings that a sweep usually varies, by the name of their column; the steps have a column of their own."""
    trained = is_trained(cfg)
    return {
        "model": cfg["model"]["name"],
        "method": cfg["peft"]["name"],
        "algo": cfg["algo"]["name"] if trained else None,
        "data": cfg["data"]["name"] if trained else None,
        "modules": modules_of(cfg) if trained else None,
        **{column: value for column, value in dials(cfg).items() if column != "steps"},
    }


def add_distinguishing_settings(configurations: Sequence[Resolved | None], entries: Sequence[Row]) -> None:
    """Add further settings to the rows where they alone tell runs apart, such as `temperature` in a sweep of it."""
    runs = [(cfg, entry) for cfg, entry in zip(configurations, entries, strict=True) if cfg]

    def groups(keys: Sequence[str]) -> list[list[Resolved]]:
        """Return the configurations, those together that have equal settings and equal values of `keys`."""
        by_settings: dict[str, list[Resolved]] = {}
        for cfg, entry in runs:
            shown = [entry["steps"], entry["settings"], *(setting(cfg, key) for key in keys)]
            by_settings.setdefault(repr(shown), []).append(cfg)
        return list(by_settings.values())

    different: dict[str, None] = {}
    for group in [group for group in groups([]) if len(group) > 1]:
        known = [science(cfg) for cfg in group]
        for key in sorted({key for leaves in known for key in leaves}):
            if len({repr(leaves.get(key, "the default")) for leaves in known}) > 1:
                different[key] = None
    keys: list[str] = []
    for key in different:
        if len(groups([*keys, key])) > len(groups(keys)):  # else it follows from those before it
            keys.append(key)
    for cfg, entry in runs if keys else ():
        entry["settings"] |= {column_of(key, entry): setting(cfg, key) for key in keys}


def column_of(key: str, entry: Row) -> str:
    """Return the name of a setting's column: the last part of its key, or the whole key where a column has that name."""
    name = key.rpartition(".")[2]
    return key if name in entry or name in entry["settings"] else name


def setting(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where the configuration has no such key."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def reason_of_loss(run: Run) -> str:
    """Return how a lost run ended, from the last event in its attempts.jsonl."""
    last = (read_rows(run.attempts_path, "event") or [{"event": "none"}])[-1]
    reasons = {"stopped": f"ended by {last.get('signal') or 'a request to stop'}", "cancelled": CANCELLED}
    if last["event"] not in reasons and (before_start := unstarted(run.path)):
        return f"its Slurm job ended{before_start}"
    return reasons.get(last["event"], "ended without an error message: it was killed, or its node was lost")


def unstarted(folder: Path) -> str:
    """Return how to read the output of a run's Slurm job that ended before it started the run; "" where it did, or has none."""
    return " before it started the run. Its output: rlvr logs RUN" if unstarted_job_log(Run(folder)) else ""


def slurm_facts(status: RunStatus, active: Mapping[str, Job]) -> Row:
    """Return the row's Slurm columns; all None for a run that was not submitted.

    `job` is the run's active job, else that of its first stage that is not done, else its last one. `node` is the job's node,
    or Slurm's reason why the job waits.
    """
    run = status.run
    submission = run.submission()
    if not submission:
        return {}
    jobs = run.jobs()
    own = [(name, active[name]) for name in jobs.values() if name in active]
    name, job = next((pair for pair in own if not pair[1].is_pending), own[0] if own else ("", None))
    ended = next((job for stage, job in jobs.items() if not run.stage_path(stage).exists()), None)
    events = read_rows(run.attempts_path, "event")
    starts = [event for event in events if event["event"] == "start"]
    tries, requeues = tries_and_requeues(events, set(jobs.values()))
    return {
        "job": name or ended or next(reversed(jobs.values()), None),
        "node": (job.node or job.reason) if job else (starts[-1].get("node_name") if starts else None),
        "tries": tries,
        "requeues": requeues,
        **(heartbeat_facts(run, submission) if status.state == "running" else {}),
    }


def tries_and_requeues(events: Sequence[Row], jobs: set[str]) -> tuple[int, int]:
    """Return the largest number of tries of one stage since the run's last submission, and the number of its requeues.

    A try is a start of the stage's job, or of the stage within its job. Slurm counts a job's requeues in `restarts`, also those
    that the supervisor did not request; a requeue that it did request is an event before the job starts again.
    """
    first = next((index for index, event in enumerate(events) if event.get("job") in jobs), len(events))
    since = events[first:]
    tries = Counter(event.get("stage") for event in since if event["event"] in ("start", "again"))
    requested = Counter(event.get("job") for event in since if event["event"] == "requeue")
    restarts = {job: max((event.get("restarts") or 0 for event in since if event.get("job") == job), default=0) for job in jobs}
    return max(tries.values(), default=0), sum(max(restarts[job], requested[job]) for job in jobs)


def heartbeat_facts(run: Run, submission: Row) -> Row:
    """Return the age of the heartbeat of a running job, or that the clock which wrote it differs from this machine's."""
    try:
        written, job = run.heartbeat_path.stat().st_mtime, run.heartbeat_path.read_text()
    except OSError:
        return {}
    submitted = [stage.get("submitted") or 0.0 for stage in submission["stages"].values() if stage.get("job") == job]
    age_s = time.time() - written
    clock_differs = age_s < -CLOCK_TOLERANCE_S or written < max(submitted, default=0.0) - CLOCK_TOLERANCE_S
    return {"clock_differs": clock_differs, "heartbeat_s": None if clock_differs else max(0.0, round(age_s, 1))}


def show(runs_dir: Path, console: Console, sweep: str | None = None, all_runs: bool = False) -> None:
    """Print the table once; on a terminal no more lines than it has, unless `all_runs`."""
    active = queue.active_jobs_if_reachable()
    entries = rows_of(runs_dir, sweep, active)
    height = console.height - PROMPT_LINES if console.is_terminal and not all_runs else None
    print_table(entries, console, height, queue_warning(runs_dir, entries, active))


def print_table(entries: Sequence[Row], console: Console, height: int | None, warning: str | None) -> None:
    """Print the table in at most `height` lines, or (None) with all runs."""
    text = table(entries, warning, console.width, height)
    console.print(text, soft_wrap=height is None and not console.is_terminal, no_wrap=True, crop=False)


def queue_warning(runs_dir: Path, entries: Sequence[Row], active: Live | None) -> str | None:
    """Return what is wrong with the queue: a failed canary, no answer of Slurm, unknown jobs, a round not launched."""
    canary = None if all(entry["state"] == "done" for entry in entries) else failed_canary(runs_dir, active)
    if not isinstance(active, NoAnswer):
        unknown = records.warning(runs_dir, active) if active else None
        return canary or unknown or next_round.warning(runs_dir, active)
    is_unknown = any(entry["state"] == "unknown" for entry in entries)
    return f"Slurm does not answer: {' '.join(active.reason.split())}" if is_unknown else canary


def watch(runs_dir: Path, console: Console, every_s: float, sweep: str | None = None) -> None:
    """Show the table until Ctrl-C, or until no run is queued, running or, while Slurm does not answer, unknown.

    A terminal shows one page of it at a time, in its alternate screen, so that nothing scrolls away; the last table is
    printed at the end. Elsewhere one line is printed whenever the number of runs in a state changes.
    """
    is_screen = console.is_terminal and not console.is_dumb_terminal
    entries: list[Row] = []
    active: Live | None = None
    display = LiveDisplay(console=console, screen=True, auto_refresh=False) if is_screen else None
    last_line, refreshes = "", 0
    try:
        if display:
            display.start()
        while True:
            active = queue.active_jobs_if_reachable()
            entries = rows_of(runs_dir, sweep, active)
            if display:
                page = refreshes // REFRESHES_PER_PAGE
                display.update(
                    table(entries, queue_warning(runs_dir, entries, active), console.width, console.height, page), refresh=True
                )
            elif (line := summary_line(entries, queue_warning(runs_dir, entries, active))) != last_line:
                console.print(f"{time.strftime('%H:%M:%S')}  {line}", highlight=False, soft_wrap=True)
                console.file.flush()
                last_line = line
            refreshes += 1
            if not any(entry["state"] in ("queued", "running", "unknown") for entry in entries):
                break
            time.sleep(every_s)
    except KeyboardInterrupt:
        pass
    finally:
        if display:
            display.stop()
    if display:
        print_table(entries, console, console.height - PROMPT_LINES, queue_warning(runs_dir, entries, active))


def summary_line(entries: Sequence[Row], warning: str | None) -> str:
    """Return the number of runs in each state, and the warning if there is one, on one line."""
    return counts(entries) + (f"; {warning}" if warning else "")


def as_json(runs_dir: Path, sweep: str | None = None) -> str:
    """Return the rows as JSON."""
    return json.dumps(rows(runs_dir, sweep), indent=1)
