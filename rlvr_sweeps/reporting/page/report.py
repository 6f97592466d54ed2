"""Write the report of a folder's runs as one self-contained HTML page and a CSV (`rlvr report`)."""

import base64
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlvr_sweeps import __version__
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import write_text
from rlvr_sweeps.reporting.claims.page import claim_entries
from rlvr_sweeps.reporting.differences.baselines import Family, families
from rlvr_sweeps.reporting.figures.catalogue import figures_for_report
from rlvr_sweeps.reporting.labels import report_rows
from rlvr_sweeps.reporting.page.costs import cost_rows
from rlvr_sweeps.reporting.page.deviations import choices, deviations
from rlvr_sweeps.reporting.page.learning_rates import rate_entries
from rlvr_sweeps.reporting.page.main_table import DIALS, common_k, constant, entries, has_several_models, notes, varying
from rlvr_sweeps.reporting.page.manifest import launches, manifest
from rlvr_sweeps.reporting.page.samples import Packed, pack
from rlvr_sweeps.reporting.page.training_samples import training_samples
from rlvr_sweeps.reporting.rows import Cell, benchmarks, cells
from rlvr_sweeps.reporting.tables.formats import rows_as_csv
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.examination import small_damages
from rlvr_sweeps.runs.reading import RunStatus, find_runs, latest_step, log_files, tail

PAGE_BYTES = 4_900_000  # most bytes of a page; mail and issue trackers often accept five million
LAST_LINES = 15  # of a failed run's log


class Report(NamedTuple):
    """A written report: the page, the .csv, its rows, and a sentence for each run that was left out as unreadable."""

    page: Path
    table: Path
    rows: list[Cell]
    unreadable: list[str]


def write_report(runs_dir: Path, out: Path) -> Report:
    """Write `out` (HTML) and a .csv beside it; damaged runs are named and left out."""
    statuses, rows, text = readable_page(runs_dir)
    write_text(out, text)
    table = out.with_suffix(".csv")
    write_text(table, as_csv(statuses))
    damaged = [f"{status.run.name} is unreadable: {status.error}" for status in statuses if status.state == "unreadable"]
    return Report(out, table, rows, damaged)


def readable_page(runs_dir: Path) -> tuple[list[RunStatus], list[Cell], str]:
    """Return the states of a folder's runs, the rows, and the page, made from the runs of which every file can be read.

    Files are read once. Only where one proves damaged, all files of all runs are examined, and the page is made again.
    """
    statuses, is_examined = find_runs(runs_dir), False
    while True:
        try:
            rows = cells(statuses)
            return statuses, rows, page(runs_dir, statuses, rows)
        except Damaged as damage:
            marked = [status.unreadable(damage) if status.run.path == damage.run_path else status for status in statuses]
            if [status.state for status in marked] == [status.state for status in statuses]:
                raise  # the file belongs to no run, or its run is left out already
            statuses = marked if is_examined else [examined(status) for status in marked]
            is_examined = True


def examined(status: RunStatus) -> RunStatus:
    """Return the status of a run after a look at all of its small files: unreadable where one is damaged."""
    damages = [] if status.state == "unreadable" else small_damages(status.run)
    return status.unreadable(damages[0]) if damages else status


def page(runs_dir: Path, statuses: Sequence[RunStatus], rows: Sequence[Cell]) -> str:
    """Return the page; completions fill the bytes up to PAGE_BYTES that the other sections leave."""
    names, labels = benchmarks(rows), [row.label for row in report_rows(rows)]
    compared, left_out = families(rows)
    unit, costs = cost_rows(rows, labels)
    columns = [column for cell, label in zip(rows, labels, strict=True) for column in run_labels(cell, label)]
    script = asset("browser.js")
    environment = Environment(loader=PackageLoader("rlvr_sweeps.reporting.page"), autoescape=True, undefined=StrictUndefined)
    render = partial(
        environment.get_template("report.html.j2").render,
        rows=[entries(cell, names, varying(rows)) for cell in rows],
        dials=[DIALS[dial] for dial in varying(rows)],
        constant=constant(rows),
        several_models=has_several_models(rows),
        benchmarks=names,
        k=common_k(rows),
        notes=notes(rows),
        families=[against(family, labels) for family in compared],
        not_compared=left_out,
        one_seed=any(len(cell.runs) == 1 and is_trained(cell.cfg) for cell in rows),
        claims=claim_entries(runs_dir, statuses),
        rates=rate_entries(rows),
        figures=figures_for_report(rows, compared),
        training=training_samples(columns),
        unfinished=[unfinished(status) for status in statuses if status.state != "done"],
        without_result=sum(not status.evaluated for status in statuses),
        unit=unit,
        costs=costs,
        deviations=deviations(rows, labels),
        choices=choices(rows, labels),
        manifest=manifest(rows),
        launches=launches(runs_dir, [status.run for status in statuses if status.state != "unreadable"]),
        folder=runs_dir,
        created=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=Markup(asset("report.css")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sha256(script)}'; img-src data:",
    )
    if not columns:
        return render(samples=None)
    free_bytes = PAGE_BYTES - len(render(samples=Packed("", "")).encode())
    return render(samples=pack(columns, free_bytes) if free_bytes > 0 else None)


def asset(name: str) -> str:
    """Return the text of a file in templates/."""
    return (files("rlvr_sweeps.reporting.page") / "templates" / name).read_text()


def sha256(script: str) -> str:
    """Return the script's hash as base64, for the page's Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def run_labels(cell: Cell, label: str) -> list[tuple[Run, str]]:
    """Return the runs of a row that have a right.json, in order of seed, each with its label."""
    by_seed = sorted(zip(cell.runs, cell.summaries, strict=True), key=lambda pair: pair[1].get("seed") or 0)
    several = len(by_seed) > 1
    return [
        (run, f"{label} seed {summary['seed']}" if several else label) for run, summary in by_seed if run.right_path.exists()
    ]


def against(family: Family, labels: Sequence[str]) -> dict[str, Any]:
    """Return a family's differences to its baseline as text."""
    lines = []
    for index in family.compared:
        row = family.differences[index]
        overall = row["overall"]
        lines.append({
            "label": labels[index],
            "seeds": overall["seeds"],
            "star": overall["star"],
            "overall": points(overall),
            "p": "-" if overall["p_holm"] is None else f"{overall['p_holm']:.3f}",
            "benchmarks": [points(difference) for name, difference in row.items() if name != "overall"],
        })  # fmt: skip
    names = [name for name in family.differences[family.compared[0]] if name != "overall"]
    return {"baseline": labels[family.baseline], "benchmarks": names, "rows": lines}


def points(row: dict[str, Any]) -> tuple[str, str]:
    """Return (`+1.2`, `−0.3 to +2.7`): a difference and its interval in points."""
    value, low, high = (f"{100 * row[key]:+.1f}".replace("-", "−") for key in ("difference", "low", "high"))
    return value, f"{low} to {high}"


def unfinished(status: RunStatus) -> dict[str, str]:
    """Return the state of an unfinished run: its step or error, and the last lines of its log where it failed."""
    steps = status.cfg["steps"] if status.cfg and is_trained(status.cfg) else None
    progress = f"step {latest_step(status.run)} of {steps}" if steps and status.state in ("running", "lost", "failed") else ""
    progress = "evaluated (scores above), analysis missing" if status.evaluated else progress
    last_lines = ""
    if status.state in ("failed", "lost"):
        with suppress(Refused):
            path = log_files(status.run, None)[-1]
            last_lines = f"{path.name}:\n{tail(path, LAST_LINES)}"
    error = status.error.splitlines()[0] if status.error else ""
    return {"run": status.run.name, "state": status.state, "progress": progress, "error": error, "last_lines": last_lines}


def as_csv(statuses: Sequence[RunStatus]) -> str:
    """Return a CSV with one line per evaluated run and every column of its summary."""
    return rows_as_csv([status.summary for status in statuses if status.evaluated])
