"""Make the entries of the report page's section on claims: a row per contrast of each card whose runs exist."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr_sweeps.reporting.claims.verdicts import ClaimVerdict, as_record, verdicts_of_folder
from rlvr_sweeps.runs.reading import RunStatus


def claim_entries(runs_dir: Path, statuses: Sequence[RunStatus]) -> list[dict[str, Any]]:
    """Return a card's entries as text: title, source, verdict, smallest effect, contrasts with numbers, notes."""
    results = verdicts_of_folder(runs_dir, statuses)
    several = len({result.model for result in results}) > 1
    return [entry(result, several) for result in results]


def entry(result: ClaimVerdict, several_models: bool) -> dict[str, Any]:
    """Return the entries of one card; the model is named where the page has claims for several."""
    record = as_record(result)
    margin = "within" if result.claim.direction == "equivalent" else "at least"
    return {
        "title": f"{result.model}: {result.claim.title}" if several_models else result.claim.title,
        "source": f"{result.claim.source.paper}, {result.claim.source.section}; claimed for {result.claim.source.model}",
        "verdict": str(result.verdict),
        "effect": f"{margin} {result.claim.smallest_effect:g}",
        "contrasts": [
            {
                "label": contrast["contrast"],
                "difference": signed(contrast["difference"]),
                "interval": f"{signed(contrast['low'])} to {signed(contrast['high'])}",
                "p": f"{contrast['p_holm']:.4f}",
                "detectable": f"{contrast['detectable']:.1f}",
                "verdict": contrast["verdict"],
            }
            for contrast in record["contrasts"]
        ],
        "notes": list(result.notes),
    }


def signed(points: float) -> str:
    """Return points with their sign: `+1.2`, `−0.3`."""
    return f"{points:+.1f}".replace("-", "−")
