"""The table of `rlvr status`: one line per run at every width, failed and odd runs first, one line per distinct error.

What a user must type is never cut. Where the runs' names do not fit beside the other columns, the table shows their ids, which
every command accepts; then columns are left out in the order of LEFT_OUT.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.text import Text

from rlvr_sweeps.files import Row
from rlvr_sweeps.planning.plan import STYLE, dial_cell
from rlvr_sweeps.reporting.labels import percent

ORDER = ("failed", "unreadable", "edited", "lost", "unknown", "stale", "running", "queued", "new", "done")
CALM = ("running", "queued", "new", "done")  # every other state, also one that is not in ORDER, is shown first
IN_NAME = ("model", "method", "algo")  # settings that a run's name contains
LEFT_ALIGNED = ("run", "id", "model", "method", "algo", "data", "state", "node", "short node", "sweep")
# What is left out, in this order, until the table fits. The names become ids, and the columns of SHORTER a shorter one.
LEFT_OUT = (
    "run", "sweep", "node", "requeues", "tries", "heartbeat", "accuracy %", "short node", "job", "model", "reward", "acc. %",
)  # fmt: skip
SHORTER = {"node": "short node", "accuracy %": "acc. %"}  # the accuracy without its standard error
HEADERS = {"short node": "node"}  # of columns whose header is not their name
FACTS = ("reward", "accuracy %", "job", "node", "tries", "requeues", "heartbeat")
GAP = "  "  # between two columns
CELL_CHARACTERS = 24  # of a setting, a node's name or Slurm's reason for waiting, so that the other columns stay readable
SHORT_CHARACTERS = 10  # of a node or reason in a narrow table
NOTE_LINES = 4  # of one error or warning on a terminal
WARNING_LINES = 3  # of the warning about Slurm's queue on a terminal
IDS_PER_NOTE = 3
MIN_ROWS = 3  # on a terminal, however few lines it has

Line = tuple[str, str]  # a line and its style


def table(
    entries: Sequence[Row],
    queue_warning: str | None = None,
    width: int | None = None,
    height: int | None = None,
    page: int | None = None,
) -> Text:
    """Return the table, the runs' errors and warnings, and a line that counts states.

    `queue_warning`: what is wrong with Slurm's queue. `width`, `height`: the most characters and lines; None: no limit. With
    more runs than lines, those that need attention come first; the others are counted, or shown page by page where `page` is a
    number.
    """
    if not entries:
        return Text("\n".join(filter(None, (queue_warning, "no runs"))))
    ordered = sorted(entries, key=lambda entry: (rank(entry["state"]), entry["state"], entry["run"]))
    cells = [cells_of(entry) for entry in ordered]
    widths = fitting_widths(ordered, cells, width)
    footer = notes(ordered, "run" if "run" in widths else "id", width, None if height is None else max(3, height // 4))
    if queue_warning:
        footer += styled(queue_warning, "yellow", width, None if height is None else WARNING_LINES)
    if "id" in widths:
        footer += styled("id: the last part of a run's name; every command accepts it", "dim", width)
    footer += styled(counts(ordered), "", width)
    lines = len(ordered) if height is None else max(MIN_ROWS, height - 1 - len(footer))  # without the header
    chosen, rest = chosen_rows(ordered, lines, page)
    header = Text(line_of({column: HEADERS.get(column, column) for column in widths}, widths), "dim")
    rows = [row_text(cells[index], widths) for index in chosen]
    return Text("\n").join([header, *rows, *(Text(text, style) for text, style in [*styled(rest, "dim", width), *footer])])


def rank(state: str) -> float:
    """Return the place of a state in the table; a state that is not in ORDER comes after `edited`."""
    return ORDER.index(state) if state in ORDER else ORDER.index("edited") + 0.5


def counts(entries: Sequence[Row]) -> str:
    """Return `3 runs: 1 failed, 2 done`."""
    return f"{len(entries)} run{'s' * (len(entries) != 1)}: {counts_by_state(entries)}" if entries else "no runs"


def counts_by_state(entries: Sequence[Row]) -> str:
    """Return `1 failed, 2 done`, in the order of the table."""
    states = [entry["state"] for entry in entries]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states), key=lambda state: (rank(state), state)))


def cells_of(entry: Row) -> dict[str, str]:
    """Return a run's cells by column; "-" where there is nothing to show."""
    step = "-" if entry["steps"] is None else f"{entry['step'] or 0}/{entry['steps']}"
    heartbeat = "clock differs" if entry["clock_differs"] else age(entry["heartbeat_s"])
    return {
        "run": entry["run"],
        "id": entry["id"],
        **{name: shortened(dial_cell(value)) for name, value in entry["settings"].items()},
        "state": entry["state"],
        "step": step,
        "reward": "-" if entry["reward"] is None else f"{entry['reward']:.2f}",
        "accuracy %": percent(entry["avg"], entry["avg_se"]),
        "acc. %": percent(entry["avg"]),
        **{key: shortened(dial_cell(entry[key])) for key in ("job", "node", "tries", "requeues")},
        "short node": shortened(dial_cell(entry["node"]), SHORT_CHARACTERS),
        "heartbeat": heartbeat,
        "sweep": shortened(dial_cell(entry["sweep"])),
    }


def age(seconds: float | None) -> str:
    """Return `45 s`, `5 min`, `7 h` or `3 d`; "-" for None."""
    if seconds is None:
        return "-"
    for unit, name, limit in ((1, "s", 120), (60, "min", 120 * 60), (3600, "h", 48 * 3600)):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def shortened(cell: str, characters: int = CELL_CHARACTERS) -> str:
    """Return a cell of at most so many characters; "…" stands for what is cut off."""
    return cell if len(cell) <= characters else f"{cell[: characters - 1]}…"


def fitting_widths(entries: Sequence[Row], cells: Sequence[Mapping[str, str]], width: int | None) -> dict[str, int]:
    """Return the columns of the table in order, each with its width; as many are left out as `width` requires.

    A setting has a column where it differs between runs, and a fact of FACTS where a run has it.
    """

    def values(column: str) -> set[str]:
        return {line.get(column, "-") for line in cells}

    settings = list(dict.fromkeys(name for entry in entries for name in entry["settings"]))
    varying = [name for name in settings if len(values(name) - {"-"}) > 1]
    in_name = [name for name in varying if name in IN_NAME]
    others = [name for name in varying if name not in IN_NAME]
    facts = [name for name in FACTS if values(name) != {"-"}]
    sweep = ["sweep"] if len(values("sweep")) > 1 else []
    columns = ["run", *others, "state", "step", *facts, *sweep]
    candidates = [*columns, *in_name, "id", *SHORTER.values()]
    widths = {name: max(map(cell_len, {HEADERS.get(name, name), *values(name)})) for name in candidates}
    for step in [*LEFT_OUT, *reversed(varying)]:
        if width is None or sum(widths[name] for name in columns) + len(GAP) * (len(columns) - 1) <= width:
            break
        if step == "run":
            columns[:1] = ["id", *in_name]
        elif step in columns:
            position = columns.index(step)
            columns[position : position + 1] = [SHORTER[step]] if step in SHORTER else []
    return {name: widths[name] for name in columns}


def line_of(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    """Return the cells of one row as a line, each in its column's width."""
    padded = []
    for column, width in widths.items():
        cell = cells.get(column, "-")
        space = " " * (width - cell_len(cell))
        padded.append(cell + space if column in LEFT_ALIGNED else space + cell)
    return GAP.join(padded).rstrip()


def row_text(cells: Mapping[str, str], widths: Mapping[str, int]) -> Text:
    """Return a run's line, with its state in colour."""
    columns = list(widths)
    before = {column: widths[column] for column in columns[: columns.index("state")]}
    after = {column: widths[column] for column in columns[columns.index("state") + 1 :]}
    state = cells["state"]
    left = line_of(cells, before)
    left += " " * (sum(before.values()) + len(GAP) * len(before) - cell_len(left))
    right = " " * (widths["state"] - cell_len(state)) + GAP + line_of(cells, after)
    return Text.assemble(left, (state, STYLE.get(state, "red")), right)


def chosen_rows(ordered: Sequence[Row], lines: int, page: int | None) -> tuple[list[int], str]:
    """Return the positions of the runs to show in `lines` lines, and a line about the others, if there are others.

    Without `page`, these are the first runs. With it, failed, odd and running runs stay and the others alternate, or, where
    those that stay take more than half of the lines, all alternate.
    """
    if len(ordered) <= lines:
        return list(range(len(ordered))), ""
    lines -= 1
    if page is None:
        others = ordered[lines:]
        return list(range(lines)), f"… {len(others)} more: {counts_by_state(others)} (--all prints every run)"
    fixed = sum(entry["state"] not in CALM or entry["state"] == "running" for entry in ordered)
    fixed = fixed if fixed <= lines // 2 else 0
    size = lines - fixed
    pages = math.ceil((len(ordered) - fixed) / size)
    first = fixed + page % pages * size
    last = min(first + size, len(ordered))
    chosen = [*range(fixed), *range(first, last)]
    return chosen, f"page {page % pages + 1} of {pages}: runs {first + 1} to {last} of {len(ordered)}"


def notes(entries: Sequence[Row], name: str, width: int | None, limit: int | None) -> list[Line]:
    """Return the errors and warnings of the runs, one for all runs that have the same; at most `limit` lines.

    Without `limit` errors of several lines are whole; with it, only their first lines are shown.
    """
    lines: list[Line] = []
    messages = [
        (text.strip() if limit is None else text.strip().splitlines()[0], style, entry)
        for key, style in (("error", "red"), ("no_signal", "yellow"))
        for entry in entries
        if (text := entry[key]) and text.strip()
    ]
    by_message: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for text, style, entry in messages:
        by_message.setdefault((without_run(text, entry), style), []).append((text, entry))
    groups = [(style, members) for (_, style), members in by_message.items()]
    spare = 0 if limit is None else max(0, limit - len(groups))  # lines beyond one for each message
    for index, (style, members) in enumerate(groups):
        texts = [text for text, _ in members]
        text = texts[0] if len(set(texts)) == 1 else without_run(*members[0])
        who = [entry[name if len(members) == 1 else "id"] for _, entry in members]
        more = f" and {len(who) - IDS_PER_NOTE} more" if len(who) > IDS_PER_NOTE else ""
        label = f"{len(who)} runs ({', '.join(who[:IDS_PER_NOTE])}{more})" if len(who) > 1 else who[0]
        own = styled(f"{label}: {text}", style, width, None if limit is None else min(NOTE_LINES, 1 + spare))
        spare -= len(own) - 1
        if limit is not None and len(lines) + len(own) + (len(groups) > limit) > limit:
            return [*lines, *styled(f"… {len(groups) - index} more messages (--all prints them)", "dim", width)]
        lines += own
    return lines


def without_run(text: str, entry: Row) -> str:
    """Return a message with "…" for the run's name, id and job, so that runs with the same failure have the same message."""
    for own in (entry["run"], entry["id"], entry["job"]):
        text = text.replace(own, "…") if own else text
    return text


def styled(text: str, style: str, width: int | None, limit: int | None = None) -> list[Line]:
    """Return a text as lines of at most `width` characters; after `limit` lines the rest is cut off."""
    own = text.splitlines()
    lines = own if width is None else [part for line in own for part in textwrap.wrap(line, width)]
    if limit is not None and len(lines) > limit:
        lines = [*lines[: limit - 1], f"{lines[limit - 1][: (width or 0) - 1]}…"]
    return [(line, style) for line in lines]
