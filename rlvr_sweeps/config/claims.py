"""Read and check claim cards (conf/claim/*.yaml): published claims, each with the test that decides it, stated beforehand.

A card names a sweep of conf/sweep, contrasts between its rows, a direction, and the smallest effect that matters. A row is
named by its overrides as the sweep file writes them for the paper's models (`peft=lora rank=1`), in any order; for a model
with values of its own (`instead`), the row at the same position is meant. `lr=best` stands for the learning rate that is best
on held-out training prompts, among all rows that differ only in lr. The rule that decides a card is in
reporting/claims/rule.py.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from rlvr_sweeps.config.sweeps import Product, RowSpec, expand, key_of, products
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir

DIRECTIONS = ("greater", "less", "equivalent")
COMBINATIONS = ("all", "mean")
BEST_LR = "lr=best"


@dataclass(frozen=True)
class Source:
    """Where a claim was published: the paper, the place in it, and the model that it was made about."""

    paper: str
    section: str
    model: str


@dataclass(frozen=True)
class Contrast:
    """A difference between rows, left minus right; each side is one row, or several whose accuracy is averaged.

    With references, it is the difference of two differences: (left − left_reference) − (right − right_reference).
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    left_reference: tuple[str, ...] = ()
    right_reference: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[tuple[str, ...], ...]:
        """Return the selectors of the sides that this contrast has, in the order of the fields."""
        return tuple(side for side in (self.left, self.right, self.left_reference, self.right_reference) if side)

    @property
    def label(self) -> str:
        """Return `peft=dora − peft=lora`."""
        left, right = (" + ".join(side) for side in (self.left, self.right))
        if not self.left_reference:
            return f"{left} − {right}"
        left_reference, right_reference = (" + ".join(side) for side in (self.left_reference, self.right_reference))
        return f"({left} − {left_reference}) − ({right} − {right_reference})"


@dataclass(frozen=True)
class Claim:
    """A claim card. The fields are the keys of conf/claim/NAME.yaml."""

    name: str  # of the file
    title: str  # the claim in one sentence
    source: Source
    sweep: str  # the sweep of conf/sweep whose runs decide the claim
    contrasts: tuple[Contrast, ...]
    direction: str  # greater: left has the higher accuracy | less: the lower | equivalent: equal within the smallest effect
    smallest_effect: float  # smallest difference that matters, in points of accuracy
    reason: str  # why these rows, and why this smallest effect
    combine: str = "all"  # all: every contrast must hold | mean: the average of the contrasts must hold
    alpha: float = 0.05  # the chance that the card's intervals do not all contain their true differences
    overrides: tuple[str, ...] = field(default=())  # of the launch, besides the sweep

    @property
    def intervals(self) -> int:
        """Return the number of intervals that the card is decided by."""
        return 1 if self.combine == "mean" else len(self.contrasts)

    @property
    def selectors(self) -> list[str]:
        """Return every selector of the card, each once."""
        return list(dict.fromkeys(selector for each in self.contrasts for side in each.sides for selector in side))


def claim_names() -> list[str]:
    """Return the names of all cards, sorted."""
    return sorted(path.stem for path in (conf_dir() / "claim").glob("*.yaml"))


def load_claims(names: Sequence[str] = ()) -> list[Claim]:
    """Return the cards with these names, by default all; raise Refused for an unknown name or a wrong card."""
    known = claim_names()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.3)
            advice = f"Did you mean {near[0]}?" if near else f"Claims: {', '.join(known)}."
            raise Refused(f"There is no claim {name!r} in conf/claim/. {advice}")
    return [read_claim(conf_dir() / "claim" / f"{name}.yaml") for name in names or known]


def read_claim(path: Path) -> Claim:
    """Return the card of a file; raise Refused, with the file and the key, where a value is missing or not possible."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Refused(f"{path} cannot be read: {error}. Correct it; docs/claims.md has an example.") from None
    values = checked_keys(Claim, raw, str(path), {"name"})
    source = checked_keys(Source, values["source"], f"{path}: source", set())
    if not isinstance(values["contrasts"], list) or not values["contrasts"]:
        raise Refused(
            f"{path}: contrasts must be a list of {{left: ROW, right: ROW}}, such as {{left: peft=dora, right: peft=lora}}."
        )
    contrasts = tuple(read_contrast(each, f"{path}: contrasts[{index}]") for index, each in enumerate(values["contrasts"]))
    values |= {
        "name": path.stem,
        "source": Source(**{key: str(value) for key, value in source.items()}),
        "contrasts": contrasts,
        "overrides": selectors_of(values.get("overrides") or [], f"{path}: overrides"),
    }
    for key, choices in (("direction", DIRECTIONS), ("combine", COMBINATIONS), ("sweep", products())):
        if values.get(key, "all") not in choices:
            raise Refused(f"{path}: {key}={values[key]} is not possible. Allowed: {', '.join(choices)}.")
    limits = (
        ("smallest_effect", 100.0, "points of accuracy above 0 and below 100"),
        ("alpha", 0.5, "a number above 0 and below 0.5"),
    )
    for key, limit, allowed in limits:
        value = values.get(key, 0.05)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < limit:
            raise Refused(f"{path}: {key}={value} is not possible. Allowed: {allowed}.")
        values[key] = float(value)
    return Claim(**values)


def read_contrast(raw: Any, where: str) -> Contrast:
    """Return a contrast from its YAML mapping."""
    values = {key: selectors_of(value, f"{where}.{key}") for key, value in checked_keys(Contrast, raw, where, set()).items()}
    contrast = Contrast(**values)
    if not contrast.left or not contrast.right or bool(contrast.left_reference) != bool(contrast.right_reference):
        raise Refused(f"{where} needs left and right, and either both or none of left_reference and right_reference.")
    return contrast


def selectors_of(raw: Any, where: str) -> tuple[str, ...]:
    """Return one text or a list of texts of overrides as a tuple; raise Refused for anything else."""
    texts = raw if isinstance(raw, list) else [raw]
    for text in texts:
        if not isinstance(text, str) or not text or not all("=" in part for part in text.split()):
            raise Refused(
                f"{where}: {text!r} is not possible. Write overrides as the sweep file does, such as peft=lora rank=1."
            )
    return tuple(texts)


def checked_keys(kind: type, raw: Any, where: str, given: set[str]) -> dict[str, Any]:
    """Return a mapping whose keys are the fields of the dataclass `kind`, without those in `given`; raise Refused otherwise."""
    if not isinstance(raw, Mapping):
        raise Refused(f"{where} must be a mapping of keys to values; docs/claims.md has an example.")
    known = {each.name: each for each in fields(kind) if each.name not in given}
    if unknown := [str(key) for key in raw if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        advice = f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(known)}."
        raise Refused(f"{where} has no key {unknown[0]!r}. {advice}")
    required = [name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in required if raw.get(name) is None]:
        raise Refused(f"{where} lacks {', '.join(missing)}. docs/claims.md has an example.")
    return {str(key): value for key, value in raw.items()}


def rows_named(selector: str, product: Product) -> list[RowSpec]:
    """Return the row that a selector names: one row or, for `lr=best`, those that differ from each other only in lr.

    Raise Refused where the sweep has no such row.
    """
    parts = set(expand([selector])[0])  # numbers as the rows write them
    if BEST_LR in parts:
        parts.remove(BEST_LR)
        rows = [row for row in product.rows if {part for part in row.written if key_of(part) != "lr"} == parts]
        rows = [row for row in rows if any(key_of(part) == "lr" for part in row.written)]
    else:
        rows = [row for row in product.rows if set(row.written) == parts][:1]  # the same row in two panels is one
    if not rows:
        written = "; ".join(dict.fromkeys(" ".join(row.written) for row in product.rows))
        raise Refused(f"sweep={product.name} has no row {selector}. Its rows: {written}.")
    return rows
