"""`rlvr wandb sync` and `rlvr wandb pull`: runs to W&B where their own mirror could not, and from W&B as directories again."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr_sweeps.config.schema import TrackingConf
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_json
from rlvr_sweeps.reporting.tracking.stage import Task, command
from rlvr_sweeps.runs.directory import Run, all_runs

ASK_S = 30  # for one answer of W&B's server


def behind(runs_dir: Path) -> list[Run]:
    """The runs with tracking=wandb of which W&B does not have all that is in their files."""
    return [run for run in all_runs(runs_dir) if run.config()["tracking"]["name"] == "wandb" and not is_level(run)]


def is_level(run: Run) -> bool:
    """Whether the server has confirmed the run as it is now."""
    if not (read_json(run.mirror_path) or {}).get("confirmed"):
        return False
    mirrored_at = run.mirror_path.stat().st_mtime
    return all(path.stat().st_mtime <= mirrored_at for path in run.small_files)


def sync(runs: Sequence[Run], where: dict[str, str], console: Console) -> None:
    """Send each run what W&B lacks of it; `where`: another entity or project. Refused in the end where one did not arrive."""
    require_key()
    failed = []
    for run in runs:
        tracking = asdict(TrackingConf(name="wandb")) | run.config()["tracking"] | where | {"mode": "online"}
        if run.is_claimed():
            console.print(f"{run.name} is at work, and its own mirror with it", highlight=False, soft_wrap=True)
            continue
        subprocess.run(command(Task(str(run.path), tracking, 0, 0, 0)), stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        note = read_json(run.mirror_path) or {}
        if note.get("confirmed"):
            console.print(f"{run.name}  {note['url']}", highlight=False, soft_wrap=True)
        else:
            failed.append(run.name)
    if failed:
        raise Refused(f"{len(failed)} of {len(runs)} runs did not arrive: {', '.join(failed)}. The same command tries again.")


def require_key() -> None:
    """Refused without a key that the server accepts."""
    import wandb

    try:
        found = wandb.login(prompt=False, verify=True)
    except wandb.errors.AuthenticationError as error:
        raise Refused(f"W&B does not accept the key: {' '.join(str(error).split())}") from None
    if not found:
        raise Refused("There is no W&B key here: `wandb login`, or WANDB_API_KEY in the environment.")


def pull(project: str, folder: Path, console: Console) -> list[Run]:
    """Fetch every run of `entity/project` into `folder`: the files that states, tables, figures and comparisons read.

    They are the run's own files, bit for bit, so what is made from them is what is made where the run was computed. Weights and
    samples are not among them. Refused where a configuration is not what its run's name says.
    """
    require_key()
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        remotes = list(wandb.Api(timeout=ASK_S).runs(project, per_page=100))
        return [run for remote in remotes if (run := pull_run(remote, folder, console))]
    except (wandb.errors.CommError, WandbApiFailedError, ValueError) as error:
        raise Refused(f"W&B does not give {project}: {' '.join(str(error).split())[:300]}") from None


def pull_run(remote: Any, folder: Path, console: Console) -> Run | None:
    """One run; None where W&B has no files of it yet."""
    ours = re.compile(rf"([\w.-]+-{re.escape(remote.id)})/(?:[\w-]+/)?[\w-]+\.(?:yaml|json|jsonl)")
    found = {file: match.group(1) for file in remote.files(per_page=100) if (match := ours.fullmatch(file.name))}
    if not found:
        console.print(f"{remote.name}: no files yet", highlight=False, soft_wrap=True)
        return None
    for file in found:
        file.download(root=str(folder), replace=True)
    run = Run((folder / next(iter(found.values()))).absolute())
    run.config()  # Refused where it is not what its name says
    console.print(f"{run.name}  {run.state()}", highlight=False, soft_wrap=True)
    return run
