"""Pack the page's samples for the browser: the problems that each run solves, and as many completions as fit.

The matrix holds every problem of every run. Completions are limited by a budget: the largest of SHAPES with which all cells
fit; if none does, the smallest shape for the problems on which runs differ most, taken from the benchmarks in turn. Equal
runs give identical bytes.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.evaluation.samples import SAMPLE_KEYS
from rlvr_sweeps.files import parse_row, read_object
from rlvr_sweeps.reporting.differences.compare import right_of
from rlvr_sweeps.runs.directory import Run

SHAPES = ((32, 8000), (8, 6000), (4, 4000), (2, 3000), (2, 1500), (2, 800))  # completions per cell, characters of each
COMPRESSION = 4.0  # approximate gzip ratio of mathematical text; the actual size is measured
HEAD = 1 / 3  # share of a shortened completion taken from its beginning; the answer is at its end
ANSWER = 200  # most characters of an answer
MARGIN = 0.9  # factor below the estimated number of problems that fit
FULL = 0.8  # share of the limit that is large enough
TRIES = 6  # attempts to meet the limit
TEXT = 6  # index of the text in a Sample
# A Sample: index, correct, answer, reason, tokens, truncated, text (or its ends and the number of characters between), gold.
Sample = list[Any]


@dataclass(frozen=True)
class Column:
    """A run in the matrix, with its label and verdicts."""

    run: Run
    label: str
    right: dict[str, dict[str, Any]]  # right.json


@dataclass
class Matrix:
    """One benchmark: its problems in order, and their right samples by run (None where a run lacks the problem)."""

    name: str
    problems: list[str]
    k: list[int | None] = field(default_factory=list)
    right: list[list[int | None]] = field(default_factory=list)  # shape (problems, runs)

    def spread(self, index: int) -> float:
        """Return the largest difference between the runs' shares of right samples on the problem at `index`."""
        shares = [count / k for count, k in zip(self.right[index], self.k, strict=True) if count is not None and k]
        return max(shares) - min(shares) if shares else 0.0


@dataclass(frozen=True)
class Packed:
    """Base64 of gzipped JSON for the page, and a sentence on what it holds."""

    text: str
    summary: str


def pack(labelled: Sequence[tuple[Run, str]], limit_bytes: int) -> Packed:
    """Return the matrix and as many completions as fit into `limit_bytes` of base64."""
    columns = [Column(run, label, right_of(run)) for run, label in labelled]
    matrices = matrices_of(columns)
    table = page_data(columns, matrices)
    budget = int(limit_bytes * 3 / 4 * COMPRESSION)
    best, last_size = Packed(zipped(table | {"samples": {}}), summary_sentence(columns, matrices, {})), -1
    for _ in range(TRIES):
        samples = choose_samples(columns, matrices, budget)
        text = zipped(table | {"samples": samples})
        if len(text) <= limit_bytes:
            best = Packed(text, summary_sentence(columns, matrices, samples))
        if not samples or len(text) == last_size or FULL * limit_bytes <= len(text) <= limit_bytes:
            break
        budget, last_size = int(budget * 0.95 * limit_bytes / len(text)), len(text)
    return best


def zipped(payload: dict[str, Any]) -> str:
    """Return the payload as base64 of gzipped JSON."""
    return base64.b64encode(gzip.compress(json.dumps(payload).encode(), 6, mtime=0)).decode()


def summary_sentence(columns: Sequence[Column], matrices: Sequence[Matrix], samples: dict[str, list[Sample]]) -> str:
    """Return the sentence below the sample browser: how many samples the page holds."""
    total = sum(entry["k"] * len(entry["right"]) for column in columns for entry in column.right.values())
    cells = sum(count is not None for matrix in matrices for row in matrix.right for count in row)
    shown = [sample for cell in samples.values() for sample in cell]
    cut = sum(isinstance(sample[TEXT], list) for sample in shown)
    sentence = f"{len(shown):,} of {total:,} samples can be read here"
    if len(samples) < cells:
        sentence += f", in {len(samples):,} of {cells:,} cells: those of the problems on which runs differ most"
    if cut:
        sentence += f"; {cut:,} of them are cut in the middle"
    return sentence + ". All of them are in the runs' eval/ folders."


def matrices_of(columns: Sequence[Column]) -> list[Matrix]:
    """Return a matrix per benchmark."""
    matrices = []
    for name in dict.fromkeys(name for column in columns for name in column.right):
        counts = [column.right.get(name, {"k": None, "right": {}}) for column in columns]
        problems = list(dict.fromkeys(problem for count in counts for problem in count["right"]))
        right = [[count["right"].get(problem) for count in counts] for problem in problems]
        matrices.append(Matrix(name, problems, [count["k"] for count in counts], right))
    return matrices


def page_data(columns: Sequence[Column], matrices: Sequence[Matrix]) -> dict[str, Any]:
    """Return the payload without completions: runs, benchmarks and questions."""
    questions_of: dict[str, dict[str, list[str]]] = {}
    for column in columns:
        for name, questions in (read_object(column.run.questions_path) or {}).items():
            questions_of.setdefault(name, {}).update(questions)
    return {
        "runs": [{"name": column.run.name, "label": column.label} for column in columns],
        "benchmarks": [
            {
                "name": matrix.name,
                "k": matrix.k,
                "problems": [
                    [problem, *questions_of.get(matrix.name, {}).get(problem, [None, None])] for problem in matrix.problems
                ],
                "right": matrix.right,
            }
            for matrix in matrices
        ],
    }


def choose_samples(columns: Sequence[Column], matrices: Sequence[Matrix], budget: int) -> dict[str, list[Sample]]:
    """Return completions by cell (`benchmark.problem.run`, indices), with at most `budget` characters in total."""
    for most, characters in SHAPES:
        samples, share = take(columns, matrices, most, characters, budget)
        if share == 1:
            return samples
    order = by_spread(matrices)
    count = int(len(order) * MARGIN * share)
    while count:
        samples, share = take(columns, matrices, most, characters, budget, set(order[:count]))
        if share == 1:
            return samples
        count = int(count * MARGIN * share)
    return {}


def by_spread(matrices: Sequence[Matrix]) -> list[tuple[int, int]]:
    """Return (benchmark, problem) indices, largest spread first within a benchmark, alternating between benchmarks."""
    turns = []
    for index, matrix in enumerate(matrices):
        spreads = sorted((-matrix.spread(problem), problem) for problem in range(len(matrix.problems)))
        turns += [(turn, spread, index, problem) for turn, (spread, problem) in enumerate(spreads)]
    return [(index, problem) for _, _, index, problem in sorted(turns)]


def take(
    columns: Sequence[Column],
    matrices: Sequence[Matrix],
    most: int,
    characters: int,
    budget: int,
    only: set[tuple[int, int]] | None = None,
) -> tuple[dict[str, list[Sample]], float]:
    """Return (completions by cell, 1.0), or where they exceed the budget ({}, the share of the cells that fitted)."""
    samples: dict[str, list[Sample]] = {}
    spent = 0
    cells = len(columns) * (len(only) if only is not None else sum(len(matrix.problems) for matrix in matrices))
    for run_index, column in enumerate(columns):
        for benchmark_index, matrix in enumerate(matrices):
            if matrix.name not in column.right:
                continue
            problem_indices = {problem: index for index, problem in enumerate(matrix.problems)}
            problems = (
                None if only is None else {matrix.problems[index] for benchmark, index in only if benchmark == benchmark_index}
            )
            for problem, rows in read_samples(column, matrix.name, most, problems):
                cell = [shortened(row, characters) for row in rows]
                spent += sum(len(json.dumps(sample)) for sample in cell)
                if spent > budget:
                    return {}, len(samples) / cells  # below 1, since this cell is not counted
                samples[f"{benchmark_index}.{problem_indices[problem]}.{run_index}"] = cell
    return samples, 1.0


def read_samples(
    column: Column, benchmark: str, most: int, problems: set[str] | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield (problem, at most `most` of its rows, including one of each verdict); parse no other lines.

    `problems`: their ids; None for all.
    """
    entry, path = column.right[benchmark], column.run.samples_path(benchmark)
    if not path.exists():  # large samples may be deleted while the summaries remain
        return
    if not path.is_file():
        raise Damaged(path, "a folder is in its place")
    number = 0
    with path.open("rb") as file:
        for problem, right in entry["right"].items():
            lines = list(islice(file, entry["k"]))
            first_number, number = number + 1, number + len(lines)
            if problems is not None and problem not in problems:
                continue
            verdicts = 2 if 0 < right < entry["k"] else 1
            rows: list[dict[str, Any]] = []
            first: dict[bool, dict[str, Any]] = {}
            for line_number, line in enumerate(lines, first_number):
                rows.append(parse_row(path, line_number, line, SAMPLE_KEYS))
                if rows[-1]["problem"] != problem:  # the file does not match right.json
                    return
                first.setdefault(bool(rows[-1]["correct"]), rows[-1])
                if len(rows) >= most and len(first) >= verdicts:
                    break
            by_verdict = list(first.values())
            rest = [row for row in rows if not any(row is included for included in by_verdict)]
            yield problem, sorted([*by_verdict, *rest][:most], key=lambda row: int(row["sample"]))


def shortened(row: dict[str, Any], characters: int) -> Sample:
    """Return a row as a Sample; a text longer than `characters` becomes [beginning, omitted characters, end]."""
    text = row["text"]
    if len(text) > characters:
        head = int(characters * HEAD)
        text = [text[:head], len(text) - characters, text[head - characters :]]
    answer = row["answer"] and row["answer"][:ANSWER]
    return [row["sample"], int(row["correct"]), answer, row["reason"], row["tokens"], int(row["truncated"]), text, row["gold"]]
