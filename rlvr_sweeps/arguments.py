"""What the `rlvr` command can be asked."""

import argparse
from pathlib import Path

from rlvr_sweeps.run import STAGES


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
    moved.add_argument("--model", default="r1_qwen_1_5b", help="whose benchmarks and training data; r1_qwen_1_5b")
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
        made.add_argument("--model", default="r1_qwen_1_5b", help="r1_qwen_1_5b")
    for where in ways.choices.values():
        if where is not pull:
            where.add_argument("--entity", help="instead of what the runs state")
            where.add_argument("--project", help="instead of what the runs state")
