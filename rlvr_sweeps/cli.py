"""The `rlvr` command: what reads run directories. Launching is launch.py's."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from rlvr_sweeps.arguments import parser
from rlvr_sweeps.collect import named_run
from rlvr_sweeps.errors import Refused


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        ANSWER[asked.command](asked, console)
    except Refused as refusal:
        sys.exit(str(refusal))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_table(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import tables

    name = f"table{asked.name}" if asked.name.isdigit() else asked.name
    paths = tables.render(name, asked.overrides, asked.out, Console(quiet=True) if asked.json else console)
    if asked.json:
        print(next(path for path in paths if path.suffix == ".json").read_text())


def draw_figure(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import figures

    model, plot = figures.make_figure(asked.name, asked.overrides)
    paths = figures.write_figure(plot, asked.name, asked.out or Path("results") / model)
    if asked.json:
        print(
            json.dumps({"figure": asked.name, "model": model, "files": [str(path) for path in paths], "caption": plot.caption})
        )
        return
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False)
    console.print(plot.caption, style="dim")


def show_status(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import status

    folder = existing(asked.runs_dir, "status")
    if asked.json:
        print(status.as_json(folder, asked.sweep))
    elif asked.watch:
        status.watch(folder, console, every_s=2.0, sweep=asked.sweep)
    else:
        status.show(folder, console, asked.sweep)


def show_report(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import accuracy, report

    folder = existing(asked.runs_dir, "report")
    page, table, rows = report.write_report(folder, asked.out or folder / "report.html")
    if asked.json:
        found = [summary for row in rows for summary in row.summaries]
        print(json.dumps({"page": str(page.absolute()), "table": str(table.absolute()), "runs": found}, indent=1))
        return
    accuracy.show(rows, console)
    console.print(f"report: {page.absolute()}\ntable:  {table.absolute()}", soft_wrap=True, highlight=False)


def show_comparison(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import comparison

    if len(asked.runs) < 2:
        raise Refused("A comparison needs two runs: rlvr compare A B. Seeds of one row go together with commas: A1,A2 B1,B2.")
    rows = comparison.compare(asked.runs, asked.runs_dir)
    if asked.json:
        print(comparison.as_json(rows))
    else:
        comparison.show(rows, console)


def show_regrading(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import regrade

    for run in [named_run(name, asked.runs_dir) for name in asked.runs]:
        changes, before, after = regrade.regrade(run, asked.dry_run)
        if asked.json:  # a line per run
            print(json.dumps(regrade.as_facts(run, changes, before, after)))
            continue
        regrade.show(run, changes, before, after, asked.dry_run, console)


def show_audit(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import audit

    runs = [named_run(name, asked.runs_dir) for name in asked.runs]
    rows, total = audit.audit(runs, asked.sample, asked.seed)
    if asked.json:
        print(audit.as_json(rows))
    else:
        audit.show(rows, total, console)


def show_logs(asked: argparse.Namespace, _: Console) -> None:
    from rlvr_sweeps import control

    run = named_run(asked.run, asked.runs_dir)
    if asked.json:
        path = control.logs(run, asked.stage)[-1]
        print(json.dumps({"run": run.name, "log": str(path), "lines": control.tail(path, asked.lines).splitlines()}, indent=1))
    else:
        control.print_logs(run, asked.stage, asked.lines, asked.follow)


def show_profile(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import profile

    found = profile.profile(named_run(asked.run, asked.runs_dir))
    print(json.dumps(profile.as_facts(found), indent=1)) if asked.json else profile.show(found, console)


def cancel_runs(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import control

    jobs = control.cancel([named_run(name, asked.runs_dir) for name in asked.runs])
    if asked.json:
        print(json.dumps(jobs, indent=1))
        return
    for name, of_run in jobs.items():
        console.print(f"{name}: cancelled {', '.join(of_run)}", highlight=False, soft_wrap=True)


def retry_runs(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import control

    jobs = control.retry([named_run(name, asked.runs_dir) for name in asked.runs])
    print(json.dumps(jobs)) if asked.json else console.print(f"submitted as jobs {', '.join(jobs)}", highlight=False)


def examine(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import doctor

    findings = list(doctor.examine(asked.runs_dir.absolute(), asked.job))
    if asked.json:
        print(json.dumps(doctor.as_rows(findings), indent=1))
    else:
        doctor.show(findings, console)
    if any(finding.verdict == "bad" for finding in findings):
        sys.exit(1)


def move_data(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import transfer

    transfer.run(asked, console)


def exchange_with_wandb(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps import exchange

    if asked.way == "pull":
        exchange.pull(asked.project, asked.folder, console)
        return
    where = {key: value for key in ("entity", "project") if (value := getattr(asked, key))}
    if asked.way == "sync":
        named = [named_run(name, asked.runs_dir) for name in asked.runs]
        exchange.sync(named or exchange.behind(existing(asked.runs_dir, "wandb sync")), where, console)
        return
    from rlvr_sweeps import workspaces

    workspaces.save(asked.way, asked.sweep, asked.model, where, console)


def existing(folder: Path, command: str) -> Path:
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder. Give the runs folder: rlvr {command} /path/to/runs.")
    return folder


ANSWER: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "status": show_status, "report": show_report, "table": show_table, "figure": draw_figure, "compare": show_comparison,
    "regrade": show_regrading, "audit": show_audit, "data": move_data, "logs": show_logs, "profile": show_profile,
    "cancel": cancel_runs, "retry": retry_runs, "doctor": examine, "wandb": exchange_with_wandb,
}  # fmt: skip

if __name__ == "__main__":
    main()
