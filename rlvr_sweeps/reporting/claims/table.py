"""Make the table of verdicts (`rlvr claims`): a line per card, and one per contrast where a card has several."""

from collections.abc import Sequence

from rlvr_sweeps.files import Row
from rlvr_sweeps.reporting.claims.verdicts import ClaimVerdict, as_record
from rlvr_sweeps.reporting.tables.formats import Column, Entry, Line, Sheet

NAME = "claims"
COLUMNS = (
    Column("row", "claim", align="left"), Column("verdict", "verdict", align="left"), Column("difference", "Δ", form="+.1f"),
    Column("interval", "interval"), Column("p_holm", "p", form=".4f"), Column("detectable", "MDE"),
)  # fmt: skip
NOTES = (
    "Δ: left minus right, in points of accuracy. Interval: its level is 1 − α / number of contrasts, so that all intervals of "
    "a claim hold together with probability 1 − α. p: with Holm's correction over a claim's contrasts. MDE: the difference "
    "that these runs tell apart from none in four cases of five; for a claim of equality, the narrowest margin they can show.",
    "Supported: the interval is beyond 0 and the estimate reaches the claim's smallest effect. Refuted: the interval excludes "
    "that effect. A claim of equality: supported if the interval is within the smallest effect, refuted if it is beyond 0 and "
    "the estimate reaches the smallest effect. Otherwise undecided. (docs/claims.md)",
)


def sheet(results: Sequence[ClaimVerdict]) -> Sheet:
    """Return the table, with a note for every missing run and its command."""
    lines = [line for result in results for line in lines_of(result)]
    notes = list(NOTES)
    for result in results:
        notes += [f"{result.claim.name}: {note}" for note in result.notes]
    return Sheet(
        NAME,
        f"Claims, decided for {', '.join(dict.fromkeys(result.model for result in results))}",
        COLUMNS,
        {"Claims": lines},
        [*notes, *missing_notes(results)],
    )


def lines_of(result: ClaimVerdict) -> list[Line]:
    """Return a card's line, followed by a line per contrast where there are several."""
    record = as_record(result)
    contrasts = record.pop("contrasts")
    card = {"row": Entry(result.claim.name), "verdict": Entry(str(result.verdict))}
    facts = {key: value for key, value in record.items() if key not in ("verdict", "missing", "notes")}
    facts |= {"missing": " ".join(record["missing"])}
    if result.missing:
        return [Line(card, facts)]
    if len(contrasts) == 1:
        return [Line(card | numbers_of(contrasts[0]), facts | facts_of(contrasts[0]))]
    lines = [Line({"row": Entry(f"  {each['contrast']}"), "verdict": Entry(each["verdict"])} | numbers_of(each), {
        "claim": result.claim.name, **facts_of(each)}) for each in contrasts]  # fmt: skip
    return [Line(card, facts), *lines]


def numbers_of(contrast: Row) -> dict[str, Entry]:
    """Return the entries of a contrast's numbers."""
    low, high = contrast["low"], contrast["high"]
    return {
        "difference": Entry(contrast["difference"]),
        "interval": Entry(None if low is None else f"{low:+.1f} to {high:+.1f}"),
        "p_holm": Entry(contrast["p_holm"]), "detectable": Entry(contrast["detectable"]),
    }  # fmt: skip


def facts_of(contrast: Row) -> Row:
    """Return a contrast's facts that only CSV and JSON hold."""
    return {key: contrast[key] for key in ("contrast", "low", "high", "p")} | {"seeds": "/".join(map(str, contrast["seeds"]))}


def missing_notes(results: Sequence[ClaimVerdict]) -> list[str]:
    """Return, for each command, the claims that it serves and the runs that are missing."""
    by_command: dict[str, list[ClaimVerdict]] = {}
    for result in results:
        if result.missing:
            by_command.setdefault(result.command, []).append(result)
    notes = []
    for command, waiting in by_command.items():
        runs = list(dict.fromkeys(run for result in waiting for run in result.missing))
        names = ", ".join(result.claim.name for result in waiting)
        shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        notes.append(f"{names}: {len(runs)} run{'s' * (len(runs) > 1)} missing: {shown}. To launch them: {command}")
    return notes
