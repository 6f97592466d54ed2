"""The dtype of each column: fixed for the known columns, and for others the one that holds their values."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

CATEGORY, INTEGER, NULLABLE_INTEGER, FLOAT, BOOLEAN, NULLABLE_BOOLEAN, TEXT = (
    "category", "int64", "Int64", "float64", "bool", "boolean", "str",
)  # fmt: skip
RUNS = {  # columns of the table of runs
    **dict.fromkeys(("state", "sweep", "model", "peft", "method", "algo", "data", "modules", "evaluation", "engine"), CATEGORY),
    **dict.fromkeys(("id", "error", "stopped_early"), TEXT),
    **dict.fromkeys(
        ("rank", "batch_size", "steps", "seed", "trainable", "parameters", "steps_done", "grader"), NULLABLE_INTEGER
    ),
    **dict.fromkeys(("alpha", "dropout", "lr", "train_seconds", "reach", "bfloat16_error", "update_kept"), FLOAT),
    "evaluated": BOOLEAN,
}
CELLS = {"seeds": INTEGER, "runs": TEXT, "avg": FLOAT, "avg_se": FLOAT}
COUNTS = (
    "completion_tokens_max", "sampling_rounds", "sampled_groups", "discarded_completions", "discarded_tokens",
    "update_positions", "update_tokens", "tokens_seen",
)  # fmt: skip
STEPS = {"step": INTEGER, **dict.fromkeys(COUNTS, NULLABLE_INTEGER)}
SAMPLES = {
    "benchmark": CATEGORY, "problem": CATEGORY, "sample": INTEGER, "sample_seed": NULLABLE_INTEGER, "answer": TEXT,
    "gold": TEXT, "correct": BOOLEAN, "reason": CATEGORY, "tokens": INTEGER, "truncated": BOOLEAN,
}  # fmt: skip
ROLLOUTS = {
    "step": INTEGER, "problem": CATEGORY, "gold": TEXT, "reward": FLOAT, "correct": BOOLEAN, "reason": CATEGORY,
    "tokens": INTEGER, "truncated": BOOLEAN, "trained": BOOLEAN,
}  # fmt: skip
PARTS = {CATEGORY: TEXT}  # of tables that are joined: categories are made once all values are known
NULLABLE = {INTEGER: NULLABLE_INTEGER, BOOLEAN: NULLABLE_BOOLEAN}  # where a column has missing values after all


def column(name: str, values: Sequence[Any], dtype: str | None = None) -> "pd.Series[Any]":
    """Return values as a column of a dtype; None stands for a missing value.

    Without a dtype, or where a value does not fit (a damaged file may be valid JSON): boolean, Int64, float64 or text,
    whichever holds all values. Lists and objects become JSON text.
    """
    for candidate in (dtype, NULLABLE.get(dtype or "")):
        if candidate and all(fits(value, candidate) for value in values):
            return pd.Series(values, name=name, dtype=candidate)
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} and kinds:
        return pd.Series(values, name=name, dtype=NULLABLE_BOOLEAN)
    if kinds <= {int} and kinds and all(fits(value, NULLABLE_INTEGER) for value in values):
        return pd.Series(values, name=name, dtype=NULLABLE_INTEGER)
    if kinds <= {int, float}:
        return pd.Series(values, name=name, dtype=FLOAT)
    return pd.Series([as_text(value) for value in values], name=name, dtype=TEXT)


def fits(value: Any, dtype: str) -> bool:
    """Return whether a column of this dtype can hold a value without a change."""
    if value is None:
        return dtype not in NULLABLE
    if dtype in (INTEGER, NULLABLE_INTEGER):
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return is_whole and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if dtype == FLOAT:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, bool if dtype in (BOOLEAN, NULLABLE_BOOLEAN) else str)


def as_text(value: Any) -> str | None:
    """Return a text as it is, None as None, and any other value as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def frame(rows: Sequence[dict[str, Any]], dtypes: dict[str, str], first: Iterable[str] = ()) -> pd.DataFrame:
    """Return rows as a table; a key that a row lacks is a missing value.

    The columns are those of `first`, which exist also without a value, then those of the rows in order of first appearance.
    """
    names = dict.fromkeys([*first, *(key for row in rows for key in row)])
    return pd.DataFrame({name: column(name, [row.get(name) for row in rows], dtypes.get(name)) for name in names})


def joined(parts: Sequence[pd.DataFrame], dtypes: dict[str, str], first: Iterable[str] = ()) -> pd.DataFrame:
    """Return tables below each other, each column with its dtype; a column that one of the tables lacks is missing there.

    `first`: columns that exist also where there is no row.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        return frame([], dtypes, first)
    table = pd.concat(filled, ignore_index=True)
    columns = {}
    for name in table:
        values, dtype = table[name], dtypes.get(name)
        if dtype == CATEGORY and values.dtype == TEXT:
            values = values.astype(CATEGORY)
        elif str(values.dtype) not in (dtype, BOOLEAN, NULLABLE_BOOLEAN, NULLABLE_INTEGER, FLOAT, TEXT, CATEGORY):
            values = column(name, as_list(values), dtype)
        columns[name] = values
    return pd.DataFrame(columns)


def as_list(values: "pd.Series[Any]") -> list[Any]:
    """Return the values of a column as Python's own, None for a missing one."""
    missing = values.isna()
    return [None if absent else value for value, absent in zip(values.tolist(), missing, strict=True)]
