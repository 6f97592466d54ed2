"""The `rlvr` command: what reads run directories. Launching is launch.py's."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from rlvr_sweeps.assets.transfer import Source, export_sets, import_sets
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.sweeps import main_model
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.runs.directory import STAGES
from rlvr_sweeps.runs.reading import log_files, named_run, tail


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
    from rlvr_sweeps.reporting.tables import render

    name = f"table{asked.name}" if asked.name.isdigit() else asked.name
    paths = render.render(name, asked.overrides, asked.out, Console(quiet=True) if asked.json else console)
    if asked.json:
        print(next(path for path in paths if path.suffix == ".json").read_text())


def draw_figure(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.reporting.figures import catalogue

    model, plot = catalogue.make_figure(asked.name, asked.overrides)
    paths = catalogue.write_figure(plot, asked.name, asked.out or Path("results") / model)
    if asked.json:
        print(
            json.dumps({"figure": asked.name, "model": model, "files": [str(path) for path in paths], "caption": plot.caption})
        )
        return
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False)
    console.print(plot.caption, style="dim")


def show_status(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.launching import status

    folder = existing(asked.runs_dir, "status")
    if asked.json:
        print(status.as_json(folder, asked.sweep))
    elif asked.watch:
        status.watch(folder, console, every_s=2.0, sweep=asked.sweep)
    else:
        status.show(folder, console, asked.sweep)


def show_report(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.reporting.page import main_table, report

    folder = existing(asked.runs_dir, "report")
    page, table, rows = report.write_report(folder, asked.out or folder / "report.html")
    if asked.json:
        found = [summary for row in rows for summary in row.summaries]
        print(json.dumps({"page": str(page.absolute()), "table": str(table.absolute()), "runs": found}, indent=1))
        return
    main_table.show(rows, console)
    console.print(f"report: {page.absolute()}\ntable:  {table.absolute()}", soft_wrap=True, highlight=False)


def show_comparison(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.reporting.differences import compare

    if len(asked.runs) < 2:
        raise Refused("A comparison needs two runs: rlvr compare A B. Seeds of one row go together with commas: A1,A2 B1,B2.")
    rows = compare.compare(asked.runs, asked.runs_dir)
    if asked.json:
        print(compare.as_json(rows))
    else:
        compare.show(rows, console)


def show_regrading(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.evaluation import regrade

    for run in [named_run(name, asked.runs_dir) for name in asked.runs]:
        changes, before, after = regrade.regrade(run, asked.dry_run)
        if asked.json:  # a line per run
            print(json.dumps(regrade.as_facts(run, changes, before, after)))
            continue
        regrade.show(run, changes, before, after, asked.dry_run, console)


def show_audit(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.evaluation import audit

    runs = [named_run(name, asked.runs_dir) for name in asked.runs]
    rows, total = audit.audit(runs, asked.sample, asked.seed)
    if asked.json:
        print(audit.as_json(rows))
    else:
        audit.show(rows, total, console)


def show_logs(asked: argparse.Namespace, _: Console) -> None:
    from rlvr_sweeps.launching.slurm import manage

    run = named_run(asked.run, asked.runs_dir)
    if asked.json:
        path = log_files(run, asked.stage)[-1]
        print(json.dumps({"run": run.name, "log": str(path), "lines": tail(path, asked.lines).splitlines()}, indent=1))
    else:
        manage.print_logs(run, asked.stage, asked.lines, asked.follow)


def show_profile(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.planning import profile

    found = profile.profile(named_run(asked.run, asked.runs_dir))
    print(json.dumps(profile.as_dict(found), indent=1)) if asked.json else profile.show(found, console)


def cancel_runs(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.launching.slurm import manage

    jobs = manage.cancel([named_run(name, asked.runs_dir) for name in asked.runs])
    if asked.json:
        print(json.dumps(jobs, indent=1))
        return
    for name, of_run in jobs.items():
        console.print(f"{name}: cancelled {', '.join(of_run)}", highlight=False, soft_wrap=True)


def retry_runs(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.launching.slurm import manage

    jobs = manage.retry([named_run(name, asked.runs_dir) for name in asked.runs])
    print(json.dumps(jobs)) if asked.json else console.print(f"submitted as jobs {', '.join(jobs)}", highlight=False)


def examine(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.launching import doctor

    findings = list(doctor.examine(asked.runs_dir.absolute(), asked.job))
    if asked.json:
        print(json.dumps(doctor.as_rows(findings), indent=1))
    else:
        doctor.show(findings, console)
    if any(finding.verdict == "bad" for finding in findings):
        sys.exit(1)


def move_data(asked: argparse.Namespace, console: Console) -> None:

    run(asked, console)


def exchange_with_wandb(asked: argparse.Namespace, console: Console) -> None:
    from rlvr_sweeps.reporting.tracking import sync

    if asked.way == "pull":
        sync.pull(asked.project, asked.folder, console)
        return
    where = {key: value for key in ("entity", "project") if (value := getattr(asked, key))}
    if asked.way == "sync":
        named = [named_run(name, asked.runs_dir) for name in asked.runs]
        sync.sync(named or sync.behind(existing(asked.runs_dir, "wandb sync")), where, console)
        return
    from rlvr_sweeps.reporting.tracking import views

    views.save(asked.way, asked.sweep, asked.model or main_model(), where, console)


def existing(folder: Path, command: str) -> Path:
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder. Give the runs folder: rlvr {command} /path/to/runs.")
    return folder


ANSWER: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "status": show_status, "report": show_report, "table": show_table, "figure": draw_figure, "compare": show_comparison,
    "regrade": show_regrading, "audit": show_audit, "data": move_data, "logs": show_logs, "profile": show_profile,
    "cancel": cancel_runs, "retry": retry_runs, "doctor": examine, "wandb": exchange_with_wandb,
}  # fmt: skip


def sources(model: str) -> dict[str, Source]:
    """The problem sets of a model's world, by name: its benchmarks and its training data."""
    cfg = offline_composer().point([f"model={model}", "rollout=hf"]).cfg
    return {**cfg["benchmark"], cfg["data"]["name"]: cfg["data"]}


def run(asked: argparse.Namespace, console: Console) -> None:
    known = sources(asked.model or main_model())
    if unknown := sorted(set(asked.sets) - set(known)):
        raise Refused(f"There is no set {', '.join(unknown)}. There are: {', '.join(known)}.")
    chosen = {name: source for name, source in known.items() if not asked.sets or name in asked.sets}
    entries = (
        export_sets(asked.folder, chosen)
        if asked.way == "export"
        else import_sets(asked.folder, chosen if asked.sets else known)
    )
    if asked.json:
        print(json.dumps({"folder": str(asked.folder.absolute()), "sets": entries}, indent=1))
        return
    for name, entry in entries.items():
        console.print(f"{name:16} {entry['rows']:>6} rows  sha256 {entry['sha256'][:16]}", highlight=False)
    done = f"written to {asked.folder.absolute()}" if asked.way == "export" else "checked, and used from now on on this machine"
    console.print(done, highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="rlvr", description="Look at runs. To start them: python launch.py --help")
    commands = whole.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="where every run stands")
    report = commands.add_parser("report", help="a table, a CSV and an HTML page of the finished runs")
    for folder in (status, report):
        folder.add_argument("runs_dir", nargs="?", type=Path, default=Path("runs"))
    report.add_argument("--out", type=Path, help="the page; RUNS_DIR/report.html by default")
    table = commands.add_parser("table", help="a table of the paper")
    table.add_argument("name", metavar="TABLE", help="3 4 5 6, or any sweep: released, lr_fair, seeds, …")
    table.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for launch.py: model=tiny seed=42,43,44 runs_dir=…")
    table.add_argument("--out", type=Path, help="where .md .tex .csv .json go; results/<model> by default")
    figure = commands.add_parser("figure", help="a figure of the paper, and those it lacks: PDF, PNG, SVG, a page")
    figure.add_argument("name", help="1 3 4 5 as in the paper; lr reach forest cost spectra")
    figure.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for launch.py: model=tiny seed=42,43,44 runs_dir=…"
    )
    figure.add_argument("--out", type=Path, help="the folder; results/<model> by default")
    compare = commands.add_parser("compare", help="paired differences to the first run, with intervals")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run, or its seeds as RUN1,RUN2,RUN3; two or more of these")
    regrade = commands.add_parser("regrade", help="new verdicts from stored samples, and what they change")
    regrade.add_argument("runs", nargs="+", metavar="RUN")
    regrade.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    audit = commands.add_parser("audit", help="a second opinion on a sample of verdicts")
    audit.add_argument("runs", nargs="+", metavar="RUN")
    audit.add_argument("--sample", type=int, default=200, help="how many distinct answers; 200")
    audit.add_argument("--seed", type=int, default=0)
    status.add_argument("--sweep", metavar="LABEL", help="only the runs that a sweep of this label asked for last")
    status.add_argument("--watch", action="store_true", help="draw it again until all is at rest")
    logs = commands.add_parser("logs", help="what a run printed")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("--stage", choices=STAGES, help="the latest by default")
    logs.add_argument("--lines", type=int, default=40, help="how many from the end, 0 for all; 40")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the run is at rest")
    profile = commands.add_parser("profile", help="where a training step's time goes, and its share of the machine's peak")
    profile.add_argument("run", metavar="RUN")
    cancel = commands.add_parser("cancel", help="take runs out of Slurm; what they have done stays")
    retry = commands.add_parser("retry", help="submit failed and lost runs again, as they were")
    for several in (cancel, retry):
        several.add_argument("runs", nargs="+", metavar="RUN")
    for named in (compare, regrade, audit, logs, profile, cancel, retry):
        named.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are named; runs")
    moved = commands.add_parser("data", help="problem sets for machines without the hub: export, import")
    moved.add_argument("way", choices=["export", "import"], help="export: write them into a folder; import: check and use them")
    moved.add_argument("folder", type=Path)
    moved.add_argument("sets", nargs="*", metavar="SET", help="aime24 aime25 …; all of the model's by default")
    moved.add_argument("--model", help="model whose benchmarks and training data are meant; by default the paper's main model")
    doctor = commands.add_parser("doctor", help="what of this site would stop a sweep")
    doctor.add_argument("runs_dir", nargs="?", type=Path, default=Path("runs"))
    doctor.add_argument("--job", action="store_true", help="start a job of a minute, and look from its node too")
    for printed in (status, report, table, figure, compare, regrade, audit, logs, profile, cancel, retry, moved, doctor):
        printed.add_argument("--json", action="store_true", help="machine-readable")
    add_wandb(commands.add_parser("wandb", help="the mirror on Weights & Biases: sync, pull, workspace, report"))
    return whole


def add_wandb(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(dest="way", required=True)
    sync = ways.add_parser("sync", help="send what W&B does not have: after an outage, or from a cluster without a network")
    sync.add_argument("runs", nargs="*", metavar="RUN", help="those with tracking=wandb that are behind, by default")
    sync.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are named; runs")
    pull = ways.add_parser("pull", help="fetch runs as directories that status, report and compare read")
    pull.add_argument("project", metavar="ENTITY/PROJECT")
    pull.add_argument("folder", type=Path)
    for name, what in (("workspace", "curves of a sweep's runs, by axis"), ("report", "the same as a report with its table")):
        made = ways.add_parser(name, help=what)
        made.add_argument("sweep", metavar="SWEEP", help="a file of conf/sweep, such as rank")
        made.add_argument("--model", help="by default the paper's main model")
    for where in ways.choices.values():
        if where is not pull:
            where.add_argument("--entity", help="instead of what the runs state")
            where.add_argument("--project", help="instead of what the runs state")


if __name__ == "__main__":
    main()
