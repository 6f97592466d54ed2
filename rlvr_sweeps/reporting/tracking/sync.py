"""Upload runs that their mirror could not send (`rlvr wandb sync`); download runs as directories (`rlvr wandb pull`)."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr_sweeps.config.schema import TrackingConf
from rlvr_sweeps.config.settings import trackers_of
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_object
from rlvr_sweeps.reporting.tracking.stage import Task, command
from rlvr_sweeps.runs.directory import Run, all_runs
from rlvr_sweeps.runs.examination import small_damages

REQUEST_S = 30  # time limit of a request to W&B's server


def not_uploaded(runs_dir: Path) -> list[Run]:
    """Return the runs tracked by W&B of which W&B has not confirmed all files, among them the unreadable ones."""
    return [run for run in all_runs(runs_dir) if not is_sent_elsewhere(run) and not is_uploaded(run)]


def is_sent_elsewhere(run: Run) -> bool:
    """Return whether W&B is none of a run's trackers; False where its configuration cannot be read, which `sync` then says."""
    try:
        return "wandb" not in trackers_of(run.config())
    except Damaged:
        return False


def is_uploaded(run: Run) -> bool:
    """Return whether the server has confirmed the current files of the run."""
    try:
        if not (read_object(run.mirror_path) or {}).get("confirmed"):
            return False
    except Damaged:
        return False
    mirrored_at = run.mirror_path.stat().st_mtime
    return all(path.stat().st_mtime <= mirrored_at for path in run.small_files)


def sync(runs: Sequence[Run], target: dict[str, str], console: Console) -> None:
    """Upload the rows and files of each run that W&B does not have; `target` may set the entity or project.

    A run with a damaged file is named and not sent. Raises Refused at the end if any run failed.
    """
    failed = []
    readable = []
    for run in runs:
        if damages := small_damages(run):
            failed.append(run.name)
            console.print(f"{run.name} is not sent: {damages[0]}", highlight=False, soft_wrap=True, markup=False)
        else:
            readable.append(run)
    if readable:
        require_key()
    for run in readable:
        tracking = asdict(TrackingConf(name="wandb")) | run.config()["tracking"] | target | {"mode": "online"}
        if run.is_claimed():
            console.print(f"{run.name} is running; its own mirror sends it", highlight=False, soft_wrap=True)
            continue
        subprocess.run(command(Task(str(run.path), tracking, 0, 0, 0)), stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        state = read_object(run.mirror_path) or {}
        if state.get("confirmed"):
            console.print(f"{run.name}  {state['url']}", highlight=False, soft_wrap=True)
        else:
            failed.append(run.name)
    if failed:
        raise Refused(
            f"{len(failed)} of {len(runs)} runs were not confirmed by W&B: {', '.join(failed)}. Run the command again."
        )


def require_key() -> None:
    """Raise Refused without a key that the server accepts."""
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=True)
    except wandb.errors.AuthenticationError as error:
        raise Refused(f"W&B does not accept the key: {' '.join(str(error).split())}") from None
    if not has_key:
        raise Refused("There is no W&B key here. Run `wandb login`, or set WANDB_API_KEY.")


def pull(project: str, folder: Path, console: Console) -> list[Run]:
    """Fetch every run of `entity/project` into `folder`: the files that states, tables, figures and comparisons read.

    The files are identical to those of the computed run, and so are its reports and figures. Weights and samples are left out.
    Raises Refused where W&B does not return the project, or a configuration does not match its run's name.
    """
    require_key()
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        remotes = list(wandb.Api(timeout=REQUEST_S).runs(project, per_page=100))
        return [run for remote in remotes if (run := pull_run(remote, folder, console))]
    except (wandb.errors.CommError, WandbApiFailedError, ValueError) as error:
        raise Refused(f"W&B did not return {project}: {' '.join(str(error).split())[:300]}") from None


def pull_run(remote: Any, folder: Path, console: Console) -> Run | None:
    """Download one run and return it; None where W&B has no files of it yet."""
    pattern = re.compile(rf"([\w.-]+-{re.escape(remote.id)})/(?:[\w-]+/)?[\w-]+\.(?:yaml|json|jsonl)")
    folder_by_file = {file: match.group(1) for file in remote.files(per_page=100) if (match := pattern.fullmatch(file.name))}
    if not folder_by_file:
        console.print(f"{remote.name}: no files yet", highlight=False, soft_wrap=True)
        return None
    for file in folder_by_file:
        file.download(root=str(folder), replace=True)
    run = Run((folder / next(iter(folder_by_file.values()))).absolute())
    run.config()  # raises Refused where it does not match the name
    console.print(f"{run.name}  {run.state()}", highlight=False, soft_wrap=True)
    return run
