"""Read problem files: .jsonl, .csv and .parquet, on this machine or on the hub (hf://OWNER/NAME/FILE)."""

import csv
import datetime
import decimal
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import Row, read_rows, read_text

HUB = "hf://"  # of a path of a file in a data set on the hub
SUFFIXES = (".jsonl", ".csv", ".parquet")
FIELD_CHARACTERS = 1 << 30  # of a field in a .csv file


def is_file(path: str) -> bool:
    """Return whether a path names a problem file, by its suffix."""
    return path.endswith(SUFFIXES)


def read_problem_file(path: Path) -> list[Row]:
    """Return the rows of a problem file. Every value of a .csv file is a text; those of a .parquet file are plain values.

    Raise Refused where the file does not exist or has another suffix, and Damaged where it cannot be read.
    """
    if not path.exists():
        raise Refused(f"{path} does not exist. Give an existing file ({', '.join(SUFFIXES)}) or a hub id.")
    if path.suffix == ".jsonl":
        return read_rows(path)
    if path.suffix == ".csv":
        return read_csv(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    raise Refused(f"{path} is no problem file. Allowed: {', '.join(SUFFIXES)}.")


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a .csv file by the names in its first line."""
    csv.field_size_limit(FIELD_CHARACTERS)
    text = (read_text(path) or "").removeprefix("\ufeff")  # the mark that spreadsheets write first
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise Damaged(path, f"line {reader.line_num} has not as many fields as the first line")
            rows.append(dict(row))
    except csv.Error as error:
        raise Damaged(path, f"line {reader.line_num} is not CSV ({error})") from None
    return rows


def read_parquet(path: Path) -> list[Row]:
    """Return the rows of a .parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise Damaged(path, f"it is not Parquet ({str(error).splitlines()[0][:200]})") from None
    return [plain_row(row) for row in table.to_pylist()]


def plain_row(row: Mapping[str, Any]) -> Row:
    """Return a row with values that JSON has: dates and decimals as text, NaN as None, without binary values and images."""
    plain = {}
    for name, value in row.items():
        try:
            plain[str(name)] = plain_value(value)
        except TypeError:
            continue
    return plain


def plain_value(value: Any) -> Any:
    """Return a value that JSON has; raise TypeError where there is none."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no equal in JSON")


def downloaded(path: str, revision: str | None) -> Path:
    """Return the local copy of hf://OWNER/NAME/FILE at a revision, downloaded once; raise Refused where that fails."""
    parts = path.removeprefix(HUB).removeprefix("datasets/").split("/")
    if len(parts) < 3 or not all(parts):
        raise Refused(f"{path} names no file. Write hf://OWNER/NAME/FILE, with the commit as data.revision.")
    from huggingface_hub import hf_hub_download  # takes a tenth of a second, and most commands download nothing
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        local = hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise Refused(
            f"{path} at revision {revision or 'main'} could not be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}). If this machine cannot reach the hub: rlvr data export FOLDER on one that "
            "can, then rlvr data import FOLDER here."
        ) from error
    return Path(local)
