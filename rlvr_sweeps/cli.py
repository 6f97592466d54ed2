"""The `rlvr` command, which reads and manages runs. launch.py starts them."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

INTERRUPTED = 130  # exit code after Ctrl-C, as in a shell

try:  # these imports take half a second, and longer from a shared disk: Ctrl-C may come meanwhile
    from rich.console import Console

    from rlvr_sweeps.config.compose import offline_composer
    from rlvr_sweeps.config.settings import site_runs_dir
    from rlvr_sweeps.config.sweeps import main_model
    from rlvr_sweeps.errors import Refused
    from rlvr_sweeps.paths import conf_dir
    from rlvr_sweeps.runs.directory import STAGES, Run
    from rlvr_sweeps.runs.reading import named_run, tail
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)

if TYPE_CHECKING:
    from rlvr_sweeps.assets.transfer import Source

RUN_HELP = "name, id or directory of a run"
PIPE_WIDTH = 10_000  # of a table whose lines another program reads: every column, and no error wrapped


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one `rlvr` command; print the message of a Refused and exit with code 1, or with INTERRUPTED after Ctrl-C."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        parsed = parse(arguments)
        COMMANDS[parsed.command](parsed, console)
    except Refused as refusal:
        sys.exit(str(refusal))
    except KeyboardInterrupt:
        print("\ninterrupted" if sys.stderr.isatty() else "interrupted", file=sys.stderr)  # a terminal has shown ^C
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_table(arguments: argparse.Namespace, console: Console) -> None:
    """Write a table of the paper or of a sweep as .md, .tex, .csv and .json, and print it or, with --json, the .json file."""
    from rlvr_sweeps.reporting.tables import render

    name = f"table{arguments.name}" if arguments.name.isdigit() else arguments.name
    paths = render.render(name, arguments.overrides, arguments.out, Console(quiet=True) if arguments.json else console)
    if arguments.json:
        print(next(path for path in paths if path.suffix == ".json").read_text())


def show_claims(arguments: argparse.Namespace, console: Console) -> None:
    """Print the verdicts on the claim cards; with --json as JSON, with --out also into files."""
    from rlvr_sweeps.reporting.claims import table, verdicts
    from rlvr_sweeps.reporting.tables import formats

    named = [text for text in arguments.overrides if "=" not in text]
    results = verdicts.read_claims(named, [text for text in arguments.overrides if "=" in text])
    sheet = table.sheet(results)
    if arguments.json:
        print(json.dumps([verdicts.as_record(result) for result in results], indent=1, ensure_ascii=False))
    else:
        formats.show(sheet, console)
    if arguments.out:
        paths = formats.write(sheet, arguments.out)
        print(f"written: {paths[0].parent}/{sheet.name} .md .tex .csv .json", file=sys.stderr if arguments.json else sys.stdout)


def draw_figure(arguments: argparse.Namespace, console: Console) -> None:
    """Draw a figure into files, and print their paths and the caption."""
    from rlvr_sweeps.reporting.figures import catalogue

    model, plot = catalogue.make_figure(arguments.name, arguments.overrides)
    paths = catalogue.write_figure(plot, arguments.name, arguments.out or Path("results") / model)
    if arguments.json:
        print(
            json.dumps(
                {"figure": arguments.name, "model": model, "files": [str(path) for path in paths], "caption": plot.caption}
            )
        )
        return
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False)
    console.print(plot.caption, style="dim")


def show_status(arguments: argparse.Namespace, console: Console) -> None:
    """Print the state of every run of a folder; with --watch, print it again every two seconds."""
    from rlvr_sweeps.launching import status

    folder = existing(arguments.runs_dir, "status")
    console = console if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    if arguments.json:
        print(status.as_json(folder, arguments.sweep))
    elif arguments.watch:
        status.watch(folder, console, every_s=2.0, sweep=arguments.sweep)
    else:
        status.show(folder, console, arguments.sweep, arguments.all)


def show_report(arguments: argparse.Namespace, console: Console) -> None:
    """Print a table of the finished runs, write it as CSV and as an HTML page, and print the paths of all written files.

    With --parquet, runs, steps and samples are written beside the page too.
    """
    from rlvr_sweeps.reporting.page import main_table, report

    folder = existing(arguments.runs_dir, "report")
    page, table, rows, unreadable = report.write_report(folder, arguments.out or folder / "report.html")
    parquet: dict[str, Path] = {}
    if arguments.parquet:
        from rlvr_sweeps.reporting.frames.loading import load

        loaded = load(folder)
        parquet = loaded.write_parquet(page.parent)
        unreadable = list(dict.fromkeys([*unreadable, *loaded.unreadable]))
    if arguments.json:
        summaries = [summary for row in rows for summary in row.summaries]
        files: dict[str, Any] = {"page": str(page.absolute()), "table": str(table.absolute())}
        if parquet:
            files["parquet"] = {name: str(path.absolute()) for name, path in parquet.items()}
        print(json.dumps({**files, "runs": summaries, "unreadable": unreadable}, indent=1))
        return
    main_table.show(rows, console)
    for sentence in unreadable:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    console.print(f"report: {page.absolute()}\ntable:  {table.absolute()}", soft_wrap=True, highlight=False)
    for name, path in parquet.items():
        console.print(f"{name}: {path.absolute()}", soft_wrap=True, highlight=False)


def show_comparison(arguments: argparse.Namespace, console: Console) -> None:
    """Print paired differences to the first run, with confidence intervals; raise Refused for fewer than two runs."""
    from rlvr_sweeps.reporting.differences import compare

    if len(arguments.runs) < 2:
        raise Refused("A comparison needs two runs: rlvr compare A B. Join the seeds of one row with commas: A1,A2 B1,B2.")
    runs, unreadable = compare.readable(arguments.runs, arguments.runs_dir)
    for sentence in unreadable:
        print(sentence, file=sys.stderr)
    rows = compare.compare(runs, arguments.runs_dir)
    if arguments.json:
        print(compare.as_json(rows))
    else:
        compare.show(rows, console)


def show_regrading(arguments: argparse.Namespace, console: Console) -> None:
    """Grade the stored samples of runs again, store the new verdicts unless told not to, and print the changes."""
    from rlvr_sweeps.config.settings import rules_of
    from rlvr_sweeps.evaluation import regrade

    rules = rules_of(offline_composer().point([f"answers={arguments.answers}"]).cfg) if arguments.answers else None
    for run in [named_run(name, arguments.runs_dir) for name in arguments.runs]:
        changes, before, after = regrade.regrade(run, arguments.dry_run, rules)
        if arguments.json:  # one line of JSON per run
            print(json.dumps(regrade.as_facts(run, changes, before, after)))
            continue
        regrade.show(run, changes, before, after, console)


def show_audit(arguments: argparse.Namespace, console: Console) -> None:
    """Compare the verdicts of a sample of answers with an independent reader; print the counts and the disagreements."""
    from rlvr_sweeps.evaluation import audit

    runs = [named_run(name, arguments.runs_dir) for name in arguments.runs]
    rows, total = audit.audit(runs, arguments.sample, arguments.seed)
    if arguments.json:
        print(audit.as_json(rows))
    else:
        audit.show(rows, total, console)


def try_verifier(arguments: argparse.Namespace, console: Console) -> None:
    """Try a verifier on gold answers and corrupted ones, and print the result; exit with code 1 if gold answers are refused."""
    from hydra.errors import HydraException

    from rlvr_sweeps.evaluation import verify

    try:
        cfg = offline_composer().point(arguments.overrides).cfg
    except Refused:
        raise
    except HydraException as error:
        raise Refused(f"The overrides cannot work: {str(error).splitlines()[0]}") from error
    trial = verify.verify(cfg, arguments.count, arguments.seed, arguments.completion)
    if arguments.json:
        print(verify.as_json(trial))
    else:
        verify.show(trial, console)
    if trial.refused:
        sys.exit(1)


def show_logs(arguments: argparse.Namespace, _: Console) -> None:
    """Print the last lines of a run's log; with --follow, also the lines added until the run is neither queued nor running."""
    from rlvr_sweeps.launching.slurm import manage

    run = named_run(arguments.run, arguments.runs_dir)
    if arguments.json:
        path = manage.newest_log(run, arguments.stage)
        print(json.dumps({"run": run.name, "log": str(path), "lines": tail(path, arguments.lines).splitlines()}, indent=1))
    else:
        manage.print_logs(run, arguments.stage, arguments.lines, arguments.follow)


def show_samples(arguments: argparse.Namespace, console: Console) -> None:
    """Print completions of the training: those of one step, or of the last; with --wrong only the wrong ones."""
    from rlvr_sweeps.reporting import rollouts

    run = named_run(arguments.run, arguments.runs_dir)
    rows = rollouts.select(run, arguments.step, arguments.wrong)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        rollouts.show(rows, console)


def show_profile(arguments: argparse.Namespace, console: Console) -> None:
    """Print the seconds of a run's training step by phase, and their share of the machine's peak."""
    from rlvr_sweeps.planning import profile

    measured = profile.profile(named_run(arguments.run, arguments.runs_dir))
    if arguments.json:
        print(json.dumps(profile.as_dict(measured), indent=1))
    else:
        profile.show(measured, console)


def cancel_runs(arguments: argparse.Namespace, console: Console) -> None:
    """Cancel the Slurm jobs of runs, of a sweep or of all runs, and print the ids of the cancelled jobs."""
    from rlvr_sweeps.launching.slurm import manage

    if sum((bool(arguments.runs), arguments.sweep is not None, arguments.all)) != 1:
        raise Refused("Say what to cancel: rlvr cancel RUN…, or rlvr cancel --sweep LABEL, or rlvr cancel --all.")
    if arguments.runs:
        jobs = manage.cancel([named_run(name, arguments.runs_dir) for name in arguments.runs])
    else:
        jobs = manage.cancel_all(existing(arguments.runs_dir, "cancel --runs-dir"), arguments.sweep)
    if arguments.json:
        print(json.dumps(jobs, indent=1))
        return
    for name, job_ids in jobs.items():
        console.print(f"{name}: cancelled {', '.join(job_ids)}", highlight=False, soft_wrap=True)


def retry_runs(arguments: argparse.Namespace, console: Console) -> None:
    """Submit failed and lost runs to Slurm again, and print the ids of the new jobs."""
    from rlvr_sweeps.launching.slurm import manage

    jobs = manage.retry([named_run(name, arguments.runs_dir) for name in arguments.runs])
    if arguments.json:
        print(json.dumps(jobs))
    else:
        console.print(f"submitted as jobs {', '.join(jobs)}", highlight=False)


def examine(arguments: argparse.Namespace, console: Console) -> None:
    """Print what this site has and lacks for a sweep, or the verdict on a run's files; exit with code 1 if one is bad."""
    from rlvr_sweeps.launching import doctor

    target = arguments.target
    is_path = target is not None and ("/" in target or Path(target).is_dir())  # a folder of runs need not exist yet
    if target is not None and not arguments.job and (not is_path or is_run_folder(Path(target))):
        examine_run(arguments, console)
        return
    if arguments.repair or arguments.train_again:
        raise Refused("--repair and --train-again need a run: rlvr doctor RUN --repair.")
    findings = list(doctor.examine(Path(target or arguments.runs_dir).absolute(), arguments.job))
    if arguments.json:
        print(json.dumps(doctor.as_rows(findings), indent=1))
    else:
        doctor.show(findings, console)
    if any(finding.verdict == "bad" for finding in findings):
        sys.exit(1)


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is that of a run, also of one that has lost its config.yaml."""
    return (folder / "config.yaml").exists() or (folder / ".config.json").exists()


def examine_run(arguments: argparse.Namespace, console: Console) -> None:
    """Print a verdict on each file of a run and what can be saved; with --repair, repair it and print what was done."""
    from rlvr_sweeps.launching import doctor
    from rlvr_sweeps.runs import examination

    folder = Path(arguments.target)
    run = Run(folder.absolute()) if is_run_folder(folder) else named_run(arguments.target, arguments.runs_dir)
    verdicts = examination.examine(run)
    bad = examination.damaged(verdicts)
    can_be_repaired = any(verdict.cure != "nothing" for verdict in bad)
    done = examination.repair(run, verdicts, arguments.train_again) if arguments.repair and can_be_repaired else []
    advice = f"Repaired. Next: {examination.launch_again(run)}." if done else examination.advice(run, verdicts)
    if arguments.json:
        files = [asdict(verdict) for verdict in verdicts]
        print(json.dumps({"run": run.name, "files": files, "repaired": done, "advice": advice}, indent=1))
    else:
        doctor.show_run(verdicts, console)
        for sentence in (*done, advice):
            console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    if bad and not done:
        sys.exit(1)


def export_run(arguments: argparse.Namespace, console: Console) -> None:
    """Write a finished run as a folder for the hub, and print the files and what the model card lacks."""
    from rlvr_sweeps.reporting.hub import folder

    run = named_run(arguments.run, arguments.runs_dir)
    exported = folder.export(run, arguments.folder, arguments.adapter, arguments.force)
    if arguments.json:
        print(folder.as_json(exported))
        return
    for sentence in exported.notes:
        console.print(sentence, style="yellow", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{exported.folder}: {', '.join(exported.files)}", highlight=False, soft_wrap=True)
    console.print("To publish it: hf upload OWNER/NAME " + str(exported.folder), style="dim", highlight=False, soft_wrap=True)


def exchange_with_wandb(arguments: argparse.Namespace, console: Console) -> None:
    """Send missing rows to Weights & Biases (sync), fetch runs (pull), or save a workspace or report; print what was done."""
    from rlvr_sweeps.reporting.tracking import sync

    if arguments.action == "pull":
        sync.pull(arguments.project, arguments.folder, console)
        return
    target = {key: value for key in ("entity", "project") if (value := getattr(arguments, key))}
    if arguments.action == "sync":
        runs = [named_run(name, arguments.runs_dir) for name in arguments.runs]
        sync.sync(runs or sync.not_uploaded(existing(arguments.runs_dir, "wandb sync")), target, console)
        return
    from rlvr_sweeps.reporting.tracking import views

    views.save(arguments.action, arguments.sweep, arguments.model or main_model(), target, console)


def existing(folder: Path, command: str) -> Path:
    """Return the folder; raise Refused if it does not exist."""
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder. Give the folder of the runs: rlvr {command} /path/to/runs.")
    return folder


def sources(model: str) -> "dict[str, Source]":
    """Return the sources of a model's problem sets by name: its benchmarks and its training data."""
    cfg = offline_composer().point([f"model={model}", "rollout=hf"]).cfg
    return {**cfg["benchmark"], cfg["data"]["name"]: cfg["data"]}


def move_data(arguments: argparse.Namespace, console: Console) -> None:
    """Export problem sets to a folder, or check and import those of a folder; print rows and SHA-256 of each set."""
    from rlvr_sweeps.assets.transfer import export_sets, import_sets

    available = sources(arguments.model or main_model())
    if unknown := sorted(set(arguments.sets) - set(available)):
        raise Refused(f"There is no problem set {', '.join(unknown)}. Problem sets: {', '.join(available)}.")
    chosen = {name: source for name, source in available.items() if not arguments.sets or name in arguments.sets}
    entries = (
        export_sets(arguments.folder, chosen)
        if arguments.action == "export"
        else import_sets(arguments.folder, chosen if arguments.sets else available)
    )
    if arguments.json:
        print(json.dumps({"folder": str(arguments.folder.absolute()), "sets": entries}, indent=1))
        return
    for name, entry in entries.items():
        console.print(f"{name:16} {entry['rows']:>6} rows  sha256 {entry['sha256'][:16]}", highlight=False)
    result = (
        f"written to {arguments.folder.absolute()}" if arguments.action == "export" else "checked; this machine will use them"
    )
    console.print(result, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "status": show_status, "report": show_report, "table": show_table, "claims": show_claims,
    "figure": draw_figure, "compare": show_comparison,
    "regrade": show_regrading, "audit": show_audit, "verify": try_verifier, "data": move_data, "logs": show_logs,
    "samples": show_samples, "profile": show_profile,
    "cancel": cancel_runs, "retry": retry_runs, "doctor": examine, "export": export_run, "wandb": exchange_with_wandb,
}  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments; overrides (KEY=VALUE) may also follow options. Exit with code 2 for unknown arguments."""
    root = parser()
    parsed, remaining = root.parse_known_args(arguments)
    if remaining and not (hasattr(parsed, "overrides") and all("=" in text and not text.startswith("-") for text in remaining)):
        root.error(f"unrecognized arguments: {' '.join(remaining)}")
    if remaining:
        parsed.overrides += remaining
    return parsed


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command and its arguments."""
    root = argparse.ArgumentParser(prog="rlvr", description="Read and manage runs. To start runs: python launch.py --help")
    commands = root.add_subparsers(dest="command", required=True)
    runs_dir = site_runs_dir()
    status = commands.add_parser("status", help="print the state of every run")
    report = commands.add_parser("report", help="print a table of the finished runs; write a CSV and an HTML page")
    for command in (status, report):
        command.add_argument(
            "runs_dir", nargs="?", type=Path, default=runs_dir, help=f"folder of the runs; {runs_dir} by default"
        )
    report.add_argument("--out", type=Path, help="file of the page; RUNS_DIR/report.html by default")
    report.add_argument(
        "--parquet", action="store_true", help="also write runs.parquet, steps.parquet and samples.parquet beside the page"
    )
    table = commands.add_parser("table", help="print and write a table of the paper or of a sweep")
    table.add_argument("name", metavar="TABLE", help="3 4 5 6, or a sweep: released, lr_fair, seeds, …")
    table.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="overrides as for launch.py: model=tiny seed=42,43,44 runs_dir=…"
    )
    table.add_argument("--out", type=Path, help="folder for .md .tex .csv .json; results/<model> by default")
    claims = commands.add_parser("claims", help="print which published claims the runs support, refute or leave undecided")
    claims.add_argument(
        "overrides", nargs="*", metavar="CLAIM|OVERRIDE", help="names of conf/claim, all by default; overrides as for launch.py"
    )
    claims.add_argument("--out", type=Path, help="also write claims.md .tex .csv .json into this folder")
    figure = commands.add_parser("figure", help="draw a figure as PDF, PNG, SVG and an interactive page")
    figure.add_argument("name", metavar="FIGURE", help="1 3 4 5 of the paper, or lr reach forest cost spectra")
    figure.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="overrides as for launch.py: model=tiny seed=42,43,44 runs_dir=…"
    )
    figure.add_argument("--out", type=Path, help="folder for the files; results/<model> by default")
    compare = commands.add_parser("compare", help="print paired differences to the first run, with confidence intervals")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="name, id or directory of a run; the seeds of one row as RUN1,RUN2,RUN3; two or more",
    )
    regrade = commands.add_parser("regrade", help="grade stored samples again, and print what changes")
    regrade.add_argument("runs", nargs="+", metavar="RUN", help=RUN_HELP)
    regrade.add_argument("--dry-run", action="store_true", help="print what would change, and change nothing")
    regrade.add_argument(
        "--answers",
        choices=sorted(path.stem for path in (conf_dir() / "answers").glob("*.yaml")),
        help="print what these rules of conf/answers would change; change nothing",
    )
    audit = commands.add_parser("audit", help="compare a sample of verdicts with an independent reader")
    audit.add_argument("runs", nargs="+", metavar="RUN", help=RUN_HELP)
    audit.add_argument("--sample", type=int, default=200, help="number of distinct answers; 200 by default")
    audit.add_argument("--seed", type=int, default=0, help="seed of the sample; 0 by default")
    verify = commands.add_parser("verify", help="try a verifier on gold answers and on corrupted ones, before training with it")
    verify.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="overrides as for launch.py: verifier=custom data.path=…"
    )
    verify.add_argument("--count", type=int, default=20, help="gold answers, and as many corrupted ones; 20 by default")
    verify.add_argument("--seed", type=int, default=0, help="seed of the choice; 0 by default")
    verify.add_argument(
        "--completion",
        metavar="TEXT",
        help="a right completion, with {answer} for the answer; by default usual forms are tried",
    )
    status.add_argument("--sweep", metavar="LABEL", help="only runs whose last launch had this sweep label")
    status.add_argument("--watch", action="store_true", help="refresh until no run is queued or running")
    status.add_argument(
        "--all", action="store_true", help="every run and whole errors, also where the terminal has fewer lines"
    )
    logs = commands.add_parser("logs", help="print the log of a run")
    logs.add_argument("run", metavar="RUN", help=RUN_HELP)
    logs.add_argument("--stage", choices=STAGES, help="stage whose log to print; the latest by default")
    logs.add_argument("--lines", type=int, default=40, help="number of lines from the end, 0 for all; 40 by default")
    logs.add_argument("--follow", "-f", action="store_true", help="print new lines until the run is neither queued nor running")
    samples = commands.add_parser("samples", help="print completions of a run's training, with reward and reason")
    samples.add_argument("run", metavar="RUN", help=RUN_HELP)
    samples.add_argument("--step", type=int, help="optimizer step; the last by default")
    samples.add_argument("--wrong", action="store_true", help="only wrong completions")
    profile = commands.add_parser(
        "profile", help="print the seconds of a training step by phase, and their share of the machine's peak"
    )
    profile.add_argument("run", metavar="RUN", help=RUN_HELP)
    cancel = commands.add_parser("cancel", help="cancel the Slurm jobs of runs; their files stay")
    retry = commands.add_parser("retry", help="submit failed, lost and repairable runs again, unchanged")
    doctor = commands.add_parser("doctor", help="check this site for everything that would prevent a sweep, or a run's files")
    doctor.add_argument(
        "target", nargs="?", metavar="RUN|RUNS_DIR", help=f"a run to examine, or the folder of the runs; {runs_dir} by default"
    )
    doctor.add_argument("--job", action="store_true", help="also submit a job of one minute that checks its node")
    doctor.add_argument("--repair", action="store_true", help="repair the run: damaged files are moved to its old/")
    doctor.add_argument("--train-again", action="store_true", help="with --repair: give up a training that cannot be recovered")
    cancel.add_argument("runs", nargs="*", metavar="RUN", help=RUN_HELP)
    cancel.add_argument("--sweep", metavar="LABEL", help="every queued or running run whose last launch had this sweep label")
    cancel.add_argument("--all", action="store_true", help="every queued or running run of the folder")
    retry.add_argument("runs", nargs="+", metavar="RUN", help=RUN_HELP)
    export = commands.add_parser("export", help="write a finished run as a folder for the hub, with a model card")
    export.add_argument("run", metavar="RUN", help=RUN_HELP)
    export.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write; new or empty")
    export.add_argument("--adapter", action="store_true", help="the adapter in place of the merged model, where it is exact")
    export.add_argument("--force", action="store_true", help="also into a folder with files; replaces an earlier export")
    for command in (compare, regrade, audit, logs, samples, profile, cancel, retry, doctor, export):
        command.add_argument("--runs-dir", type=Path, default=runs_dir, help=f"folder of the runs; {runs_dir} by default")
    data = commands.add_parser("data", help="export problem sets to a folder, or import them on a machine without the hub")
    data.add_argument(
        "action",
        choices=["export", "import"],
        help="export: write the sets into FOLDER; import: check the sets in FOLDER and use them",
    )
    data.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the exported sets")
    data.add_argument("sets", nargs="*", metavar="SET", help="aime24 aime25 …; all sets of the model by default")
    data.add_argument("--model", help="model whose benchmarks and training data to use; by default the paper's main model")
    for command in (
        status,
        report,
        table,
        claims,
        figure,
        compare,
        regrade,
        audit,
        logs,
        samples,
        profile,
        cancel,
        retry,
        data,
        doctor,
        verify,
        export,
    ):
        command.add_argument("--json", action="store_true", help="print JSON")
    wandb = commands.add_parser("wandb", help="send runs to Weights & Biases, fetch them, or save views of a sweep there")
    add_wandb(wandb, runs_dir)
    return root


def add_wandb(parser: argparse.ArgumentParser, runs_dir: Path) -> None:
    """Add the actions of `rlvr wandb` to its parser; `runs_dir`: the default folder of the runs."""
    actions = parser.add_subparsers(dest="action", required=True)
    sync = actions.add_parser("sync", help="send the rows that W&B lacks: after an outage, or from a cluster without a network")
    sync.add_argument("runs", nargs="*", metavar="RUN", help="by default all runs with tracking=wandb of which W&B lacks rows")
    sync.add_argument("--runs-dir", type=Path, default=runs_dir, help=f"folder of the runs; {runs_dir} by default")
    pull = actions.add_parser("pull", help="fetch runs as directories that status, report and compare can read")
    pull.add_argument("project", metavar="ENTITY/PROJECT", help="project to read from")
    pull.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write run directories into")
    for name, help_text in (
        ("workspace", "save a workspace with the curves of a sweep"),
        ("report", "save a report with its curves and table"),
    ):
        view = actions.add_parser(name, help=help_text)
        view.add_argument("sweep", metavar="SWEEP", help="name of a file in conf/sweep/, such as rank")
        view.add_argument("--model", help="model of the sweep; by default the paper's main model")
    for action in actions.choices.values():
        if action is not pull:
            action.add_argument("--entity", help="W&B entity, instead of that of the runs")
            action.add_argument("--project", help="W&B project, instead of that of the runs")


if __name__ == "__main__":
    main()
