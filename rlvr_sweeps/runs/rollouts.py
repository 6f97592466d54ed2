"""The form of what a run keeps of its completions: columns with the shares of the verifier's reasons, and shortened texts."""

from rlvr_sweeps.files import Row

SHARE = "share_"  # prefix of such a column in metrics.jsonl and summary.json


def share_column(reason: str) -> str:
    """Return the column with the share of completions that have this reason: `no box` → `share_no_box`."""
    return f"{SHARE}{reason.replace(' ', '_')}"


def reason_shares(row: Row) -> dict[str, float]:
    """Return the shares of a row by reason, the largest first."""
    shares = {name.removeprefix(SHARE).replace("_", " "): value for name, value in row.items() if name.startswith(SHARE)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def without_middle(text: str, characters: int) -> str:
    """Return a text of more than `characters` as its first third and its last two thirds, since the answer is at the end."""
    if len(text) <= characters:
        return text
    head = characters // 3
    return f"{text[:head]}\n[… {len(text) - characters} characters left out …]\n{text[head - characters :]}"
