"""The page's samples: which problems each run solves, and as many of the completions as fit, packed for the browser.

Every problem of every run is in the matrix. Completions are let in under a budget: the richest of SHAPES that holds all
cells; where even the poorest does not, the problems on which runs disagree most, benchmark by benchmark in turn. The same
runs give the same bytes.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rlvr_sweeps.files import read_json
from rlvr_sweeps.reporting.differences.compare import right_of
from rlvr_sweeps.runs.directory import Run

SHAPES = ((32, 8000), (8, 6000), (4, 4000), (2, 3000), (2, 1500), (2, 800))  # completions per cell, characters of each
COMPRESSION = 4.0  # how much smaller gzip makes mathematics, about; what it comes to is measured
HEAD = 1 / 3  # share of a cut completion that is its beginning: the answer stands at the end
ANSWER = 200  # characters of an answer
MARGIN = 0.9
FULL = 0.8  # of the limit: more is not tried for
TRIES = 6  # of meeting the limit
TEXT = 6
Sample = list[Any]  # index, correct, answer, reason, tokens, truncated, text (or its ends and what is missing between), gold


@dataclass(frozen=True)
class Column:
    """A run of the matrix, and what is known of it."""

    run: Run
    label: str
    right: dict[str, dict[str, Any]]  # right.json


@dataclass
class Matrix:
    """One benchmark: its problems in order, and by run how many samples are right (None where it lacks the problem)."""

    name: str
    problems: list[str]
    k: list[int | None] = field(default_factory=list)
    right: list[list[int | None]] = field(default_factory=list)  # shape (problems, runs)

    def spread(self, place: int) -> float:
        """How far the runs' shares of right samples are apart on a problem."""
        shares = [count / k for count, k in zip(self.right[place], self.k, strict=True) if count is not None and k]
        return max(shares) - min(shares) if shares else 0.0


@dataclass(frozen=True)
class Packed:
    """Base64 of gzipped JSON for the page, and what is in it, in words."""

    text: str
    said: str


def pack(labelled: Sequence[tuple[Run, str]], limit_bytes: int) -> Packed:
    """The matrix, and completions until the page would grow by more than `limit_bytes`."""
    columns = [Column(run, label, right_of(run)) for run, label in labelled]
    matrices = matrices_of(columns)
    table = described(columns, matrices)
    budget = int(limit_bytes * 3 / 4 * COMPRESSION)
    best, last = Packed(zipped(table | {"samples": {}}), in_words(columns, matrices, {})), -1
    for _ in range(TRIES):
        samples = chosen(columns, matrices, budget)
        text = zipped(table | {"samples": samples})
        if len(text) <= limit_bytes:
            best = Packed(text, in_words(columns, matrices, samples))
        if not samples or len(text) == last or FULL * limit_bytes <= len(text) <= limit_bytes:
            break
        budget, last = int(budget * 0.95 * limit_bytes / len(text)), len(text)
    return best


def zipped(payload: dict[str, Any]) -> str:
    return base64.b64encode(gzip.compress(json.dumps(payload).encode(), 6, mtime=0)).decode()


def in_words(columns: Sequence[Column], matrices: Sequence[Matrix], samples: dict[str, list[Sample]]) -> str:
    """How much of the samples is in the page."""
    total = sum(entry["k"] * len(entry["right"]) for column in columns for entry in column.right.values())
    cells = sum(count is not None for matrix in matrices for row in matrix.right for count in row)
    shown = [sample for cell in samples.values() for sample in cell]
    cut = sum(isinstance(sample[TEXT], list) for sample in shown)
    said = f"{len(shown):,} of {total:,} samples can be read here"
    if len(samples) < cells:
        said += f", in {len(samples):,} of {cells:,} cells: where room is short, of the problems on which runs disagree most"
    if cut:
        said += f"; {cut:,} of them are cut in the middle"
    return said + ". All of them are in the runs' eval/ folders."


def matrices_of(columns: Sequence[Column]) -> list[Matrix]:
    found = []
    for name in dict.fromkeys(name for column in columns for name in column.right):
        counts = [column.right.get(name, {"k": None, "right": {}}) for column in columns]
        problems = list(dict.fromkeys(problem for count in counts for problem in count["right"]))
        right = [[count["right"].get(problem) for count in counts] for problem in problems]
        found.append(Matrix(name, problems, [count["k"] for count in counts], right))
    return found


def described(columns: Sequence[Column], matrices: Sequence[Matrix]) -> dict[str, Any]:
    """All of the payload but the completions."""
    asked: dict[str, dict[str, list[str]]] = {}
    for column in columns:
        for name, questions in (read_json(column.run.questions_path) or {}).items():
            asked.setdefault(name, {}).update(questions)
    return {
        "runs": [{"name": column.run.name, "label": column.label} for column in columns],
        "benchmarks": [
            {
                "name": matrix.name,
                "k": matrix.k,
                "problems": [[problem, *asked.get(matrix.name, {}).get(problem, [None, None])] for problem in matrix.problems],
                "right": matrix.right,
            }
            for matrix in matrices
        ],
    }


def chosen(columns: Sequence[Column], matrices: Sequence[Matrix], budget: int) -> dict[str, list[Sample]]:
    """By cell (`benchmark.problem.run`, places in the matrix) its completions, of at most `budget` characters together."""
    for most, characters in SHAPES:
        samples, held = take(columns, matrices, most, characters, budget)
        if held == 1:
            return samples
    order = by_disagreement(matrices)
    kept = int(len(order) * MARGIN * held)
    while kept:
        samples, held = take(columns, matrices, most, characters, budget, set(order[:kept]))
        if held == 1:
            return samples
        kept = int(kept * MARGIN * held)
    return {}


def by_disagreement(matrices: Sequence[Matrix]) -> list[tuple[int, int]]:
    """(benchmark, problem) places, most disagreement first within a benchmark, benchmarks in turn."""
    turns = []
    for place, matrix in enumerate(matrices):
        spreads = sorted((-matrix.spread(problem), problem) for problem in range(len(matrix.problems)))
        turns += [(turn, spread, place, problem) for turn, (spread, problem) in enumerate(spreads)]
    return [(place, problem) for _, _, place, problem in sorted(turns)]


def take(
    columns: Sequence[Column],
    matrices: Sequence[Matrix],
    most: int,
    characters: int,
    budget: int,
    only: set[tuple[int, int]] | None = None,
) -> tuple[dict[str, list[Sample]], float]:
    """(completions by cell, 1); where they exceed the budget, none, and what share of the cells fitted."""
    samples: dict[str, list[Sample]] = {}
    spent = 0
    cells = len(columns) * (len(only) if only is not None else sum(len(matrix.problems) for matrix in matrices))
    for run_place, column in enumerate(columns):
        for place, matrix in enumerate(matrices):
            if matrix.name not in column.right:
                continue
            where = {problem: index for index, problem in enumerate(matrix.problems)}
            wanted = None if only is None else {matrix.problems[index] for of, index in only if of == place}
            for problem, rows in picked(column, matrix.name, most, wanted):
                cell = [shortened(row, characters) for row in rows]
                spent += sum(len(json.dumps(sample)) for sample in cell)
                if spent > budget:
                    return {}, len(samples) / cells  # below 1: this cell is not among them
                samples[f"{place}.{where[problem]}.{run_place}"] = cell
    return samples, 1.0


def picked(column: Column, benchmark: str, most: int, wanted: set[str] | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(problem, at most `most` of its rows, one of each verdict first); lines that nobody asked for are not parsed."""
    entry, path = column.right[benchmark], column.run.samples_path(benchmark)
    if not path.exists():  # summaries outlive gigabytes of samples
        return
    with path.open("rb") as file:
        for problem, right in entry["right"].items():
            lines = list(islice(file, entry["k"]))
            if wanted is not None and problem not in wanted:
                continue
            verdicts = 2 if 0 < right < entry["k"] else 1
            rows: list[dict[str, Any]] = []
            first: dict[bool, dict[str, Any]] = {}
            for line in lines:
                rows.append(json.loads(line))
                if rows[-1]["problem"] != problem:  # not the file that was counted
                    return
                first.setdefault(bool(rows[-1]["correct"]), rows[-1])
                if len(rows) >= most and len(first) >= verdicts:
                    break
            ahead = list(first.values())
            rest = [row for row in rows if not any(row is other for other in ahead)]
            yield problem, sorted([*ahead, *rest][:most], key=lambda row: int(row["sample"]))


def shortened(row: dict[str, Any], characters: int) -> Sample:
    """A row as the page shows it; a text longer than `characters` as its beginning, how much is missing, and its end."""
    text = row["text"]
    if len(text) > characters:
        head = int(characters * HEAD)
        text = [text[:head], len(text) - characters, text[head - characters :]]
    answer = row["answer"] and row["answer"][:ANSWER]
    return [row["sample"], int(row["correct"]), answer, row["reason"], row["tokens"], int(row["truncated"]), text, row["gold"]]
