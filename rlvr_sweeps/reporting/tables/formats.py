"""Write a table in every format: terminal, Markdown, LaTeX (booktabs), CSV, JSON. This module reads no runs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlvr_sweeps.files import write_text

DASH = "-"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\~{}",
    "^": r"\^{}", "±": r"$\pm$", "Δ": r"$\Delta$", "α": r"$\alpha$", "λ": r"$\lambda$", "×": r"$\times$", "√": r"$\surd$",
    "→": r"$\to$", "≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$", "–": "--", "*": r"\textsuperscript{*}", "<": "$<$", ">": "$>$",
}  # fmt: skip
WIDE = 9  # columns that fit a page's width; more are scaled to it


@dataclass(frozen=True)
class Column:
    """One column: its key in CSV and JSON, its title, and the title over it and its neighbours of the same group."""

    key: str
    title: str
    group: str = ""
    align: Literal["left", "right"] = "right"
    form: str = ".1f"  # of its numbers
    detail: bool = False  # left out in the terminal, where width is limited


@dataclass(frozen=True)
class Entry:
    """One entry of a table. A missing number is None: shown as a dash, empty in CSV, null in JSON."""

    value: float | str | None
    error: float | None = None  # standard error
    best: bool = False  # bold
    star: bool = False


@dataclass(frozen=True)
class Line:
    """One row: the entries by column key, and facts that only CSV and JSON hold."""

    entries: Mapping[str, Entry]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A table before it is written: `blocks` are its panels, by title."""

    name: str
    title: str
    columns: Sequence[Column]
    blocks: Mapping[str, Sequence[Line]]
    notes: Sequence[str]


def text_of(entry: Entry, column: Column) -> str:
    """Return an entry as text, with its standard error and star; a dash for a missing number."""
    if entry.value is None:
        return DASH
    if isinstance(entry.value, str):
        return entry.value
    error = "" if entry.error is None else f" ± {entry.error:{column.form.lstrip('+')}}"
    return f"{entry.value:{column.form}}{error}{'*' * entry.star}"


def cells(line: Line, columns: Sequence[Column]) -> list[tuple[str, bool]]:
    """Return (text, bold) for every column of a line."""
    entries = [(line.entries.get(column.key, Entry(None)), column) for column in columns]
    return [(text_of(entry, column), entry.best) for entry, column in entries]


def heading(column: Column) -> str:
    """Return a column's title with that of its group."""
    return f"{column.group} {column.title}".strip()


def show(sheet: Sheet, console: Console) -> None:
    """Print the table in the terminal; each of several panels is below its title."""
    table = Table(title=sheet.title, title_justify="left", box=None, header_style="dim", pad_edge=False, padding=(0, 1))
    columns = [column for column in sheet.columns if not column.detail]
    for column in columns:
        table.add_column(f"{column.group}\n{column.title}" if column.group else f"\n{column.title}", justify=column.align)
    for title, lines in sheet.blocks.items():
        if len(sheet.blocks) > 1:
            table.add_row(Text(title, "italic dim"))
        for line in lines:
            table.add_row(*(Text(text, "bold" if bold else "") for text, bold in cells(line, columns)))
    console.print(table)
    for note in sheet.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def as_markdown(sheet: Sheet) -> str:
    """Return a Markdown table per panel, followed by the notes."""
    lines = [f"# {sheet.title}", ""]
    for title, rows in sheet.blocks.items():
        lines += [f"## {title}", ""] if len(sheet.blocks) > 1 else []
        lines.append("| " + " | ".join(heading(column) for column in sheet.columns) + " |")
        lines.append("|" + "|".join(":--" if column.align == "left" else "--:" for column in sheet.columns) + "|")
        for row in rows:
            shown = [(text.replace("*", r"\*"), bold) for text, bold in cells(row, sheet.columns)]
            lines.append("| " + " | ".join(f"**{text}**" if bold else text for text, bold in shown) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"{note}\n" for note in sheet.notes)])


def latex(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def as_latex(sheet: Sheet) -> str:
    """Return a LaTeX table environment; its document needs booktabs, and graphicx for wide tables."""
    count = len(sheet.columns)
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}", r"\begin{table}[t]", r"\centering", r"\small",
        rf"\caption{{{latex(sheet.title.partition(': ')[2] or sheet.title)}}}", rf"\label{{tab:{sheet.name}}}", r"\vspace{4pt}",
        *([r"\resizebox{\textwidth}{!}{%"] if count > WIDE else []),
        rf"\begin{{tabular}}{{{''.join(column.align[0] for column in sheet.columns)}}}", r"\toprule",
    ]  # fmt: skip
    groups = spans(sheet.columns)
    if any(title for title, _, _ in groups):
        group_titles = [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{latex(title)}}}" for title, first, last in groups]
        lines.append(" & ".join(group_titles) + r" \\")
        lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for title, first, last in groups if title))
    lines += [" & ".join(latex(column.title) for column in sheet.columns) + r" \\", r"\midrule"]
    for block, (title, rows) in enumerate(sheet.blocks.items()):
        if len(sheet.blocks) > 1:
            lines += [r"\addlinespace"] * (block > 0) + [rf"\multicolumn{{{count}}}{{l}}{{\textit{{{latex(title)}}}}} \\"]
        for row in rows:
            shown = [rf"\textbf{{{latex(text)}}}" if bold else latex(text) for text, bold in cells(row, sheet.columns)]
            lines.append(" & ".join("--" if text == DASH else text for text in shown) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}" + "}" * (count > WIDE), "", r"\smallskip"]
    notes = " ".join(latex(note) for note in sheet.notes)
    return "\n".join([*lines, rf"\parbox{{\textwidth}}{{\footnotesize {notes}}}", r"\end{table}", ""])


def spans(columns: Sequence[Column]) -> list[tuple[str, int, int]]:
    """Return (group, first, last) of neighbouring columns under one title, counted from 1."""
    groups: list[tuple[str, int, int]] = []
    for index, column in enumerate(columns, start=1):
        if groups and column.group and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1], index)
        else:
            groups.append((column.group, index, index))
    return groups


def records(sheet: Sheet) -> list[dict[str, Any]]:
    """Return a flat row per line, with unrounded numbers and `<key>_se` for each standard error."""
    rows = []
    for title, lines in sheet.blocks.items():
        for line in lines:
            row: dict[str, Any] = {"section": title}
            for column in sheet.columns:
                entry = line.entries.get(column.key, Entry(None))
                row[column.key] = entry.value
                if entry.error is not None:
                    row[f"{column.key}_se"] = entry.error
            rows.append(row | dict(line.facts))
    return rows


def as_csv(sheet: Sheet) -> str:
    """Return the table as CSV."""
    return rows_as_csv(records(sheet))


def rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with every column that any row has, in the order of first appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(sheet: Sheet) -> str:
    """Return the table as JSON, with its notes."""
    table = {"name": sheet.name, "title": sheet.title, "unit": "percent, differences in points", "rows": records(sheet)}
    return json.dumps(table | {"notes": list(sheet.notes)}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write(sheet: Sheet, folder: Path) -> list[Path]:
    """Write NAME.md, .tex, .csv and .json into a folder and return their paths."""
    formats = {".md": as_markdown, ".tex": as_latex, ".csv": as_csv, ".json": as_json}
    paths = []
    for ending, make in formats.items():
        paths.append(folder / f"{sheet.name}{ending}")
        write_text(paths[-1], make(sheet))
    return paths
