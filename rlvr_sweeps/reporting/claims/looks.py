"""Look at the claim cards of a sweep while its seeds are still being launched, and choose the rows that get the next seed.

A look uses the first seeds of each row (42, 43, …) that are all evaluated, so that a seed that failed or is late cannot choose
the result. Its interval is that of differences/sequential.py, and the rule that decides is rule.py's. What was looked at is
recorded in runs_dir/looks/, so that neither the error that was spent nor a verdict is forgotten between launches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlvr_sweeps.config.claims import BEST_LR, Claim, Contrast, load_claims, rows_named
from rlvr_sweeps.config.compose import Composer
from rlvr_sweeps.config.identity import digest, evaluation_spec
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import averaged_benchmarks, is_trained
from rlvr_sweeps.config.sweeps import Product, RowSpec, key_of, load_product
from rlvr_sweeps.config.sweeps import seeds as first_seeds
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import read_object, write_json
from rlvr_sweeps.reporting.claims.rule import Verdict, decide, together
from rlvr_sweeps.reporting.differences import sequential
from rlvr_sweeps.reporting.differences.bootstrap import Array, Difference
from rlvr_sweeps.reporting.differences.compare import refuse_unlike, request, scores_of
from rlvr_sweeps.reporting.rows import Result, from_files, row_of
from rlvr_sweeps.runs.directory import Run

ALL_CARDS = "claims"  # the sweep that has the rows of every card


@dataclass(frozen=True)
class Row:
    """A row that a card names: its label, and the overrides of its runs without the seed."""

    label: str
    overrides: tuple[str, ...]
    cfg: Resolved  # of its first seed

    @property
    def is_trained(self) -> bool:
        return is_trained(self.cfg)


@dataclass(frozen=True)
class Look:
    """The interval of one contrast at one number of seeds; the fields are the keys of a look in the record."""

    seeds: int
    level: float  # the two-sided error that this look spends
    ratio: float  # F/V of sequential.py, the smallest so far
    difference: float  # left minus right, as accuracy
    low: float
    high: float
    verdict: str


@dataclass
class Question:
    """A contrast of a card, or with `combine: mean` their average: a sum of rows with weights, and its looks."""

    claim: Claim
    label: str
    weights: dict[str, float]  # by key of the row
    looks: list[Look] = field(default_factory=list)

    @property
    def alpha(self) -> float:
        return self.claim.alpha / self.claim.intervals

    @property
    def verdict(self) -> Verdict:
        """The verdict of the last look; one that decides is never taken back."""
        return Verdict(self.looks[-1].verdict) if self.looks else Verdict.UNDECIDED


@dataclass(frozen=True)
class Next:
    """A run to launch: the overrides of its row and seed, and how much a further seed of the row may decide."""

    row: Row
    seed: int
    chance: float  # per seed, that a claim of the row is decided; 1 before the first look


class Looks:
    """The cards of one sweep and model, with their rows, results and looks."""

    def __init__(self, composer: Composer, sweep: str, model: str, base: Sequence[str], runs_dir: Path, most: int) -> None:
        """`base`: the overrides of the launch, without the seed; `most`: the most seeds of a row."""
        self.composer, self.base, self.most = composer, tuple(base), most
        self.notes: list[str] = []
        self.configs: dict[tuple[str, ...], Resolved] = {}
        self.rows: dict[str, Row] = {}
        self.questions: list[Question] = []
        self.results: dict[str, list[Result]] = {}
        claims = [claim for claim in load_claims() if sweep in (claim.sweep, ALL_CARDS)]
        for claim in claims:
            if any(BEST_LR in selector.split() for selector in claim.selectors):
                self.notes.append(f"{claim.name} is left out: lr=best chooses among rates that need equal seeds.")
                continue
            self.add(claim, load_product(claim.sweep, model, composer))
        if not self.questions:
            known = sorted({claim.sweep for claim in load_claims()})
            raise Refused(
                f"budget= spends seeds where they can decide a claim, and no card of conf/claim is about sweep={sweep}. Sweeps "
                f"with claims: {', '.join([ALL_CARDS, *known])}."
            )
        key = digest({"rows": sorted(self.rows), "evaluation": sorted(evaluation_spec(row.cfg) for row in self.rows.values())})
        self.path = runs_dir / "looks" / f"{sweep}-{model}-{key}.json"
        self.recall()

    def add(self, claim: Claim, product: Product) -> None:
        """Add the rows and contrasts of a card."""
        key_of_selector = {name: self.key(rows_named(name, product)[0], claim) for name in claim.selectors}
        weights = [contrast_weights(contrast, key_of_selector) for contrast in claim.contrasts]
        labels = [contrast.label for contrast in claim.contrasts]
        if claim.combine == "mean":
            keys = dict.fromkeys(key for each in weights for key in each)
            weights = [{key: sum(each.get(key, 0.0) for each in weights) / len(weights) for key in keys}]
            labels = [f"the average: {', '.join(labels)}"]
        self.questions += [Question(claim, text, each) for text, each in zip(labels, weights, strict=True)]

    def key(self, spec: RowSpec, claim: Claim) -> str:
        """Return the key of a card's row; rows that several cards name are one."""
        of_row = {key_of(override) for override in spec.overrides}
        overrides = (
            *spec.overrides, *(text for text in self.base if key_of(text) not in of_row), *claim.overrides,
        )  # fmt: skip
        cfg = self.composer.point([*overrides, f"seed={first_seeds(1)[0]}"]).cfg
        key = digest(row_of(cfg) | {"evaluation": evaluation_spec(cfg)})
        self.rows.setdefault(key, Row(spec.label, overrides, cfg))
        return key

    def config(self, row: Row, seed: int) -> Resolved:
        """Return the configuration of a row's run."""
        overrides = (*row.overrides, f"seed={seed}")
        if overrides not in self.configs:
            self.configs[overrides] = self.composer.point(overrides).cfg
        return self.configs[overrides]

    def recall(self) -> None:
        """Read the looks of earlier launches. Raise Refused where they had another largest number of seeds."""
        record = read_object(self.path, "most_seeds", "looks")
        if record is None:
            return
        if record["most_seeds"] != self.most:
            raise Refused(
                f"most_seeds={self.most} differs from the {record['most_seeds']} of the first launch, from which the error "
                f"of each look follows. Use most_seeds={record['most_seeds']}, or another runs_dir."
            )
        for question in self.questions:
            question.looks = [Look(**look) for look in record["looks"].get(f"{question.claim.name}: {question.label}", ())]

    def record(self) -> None:
        """Write the looks, atomically."""
        looks = {f"{each.claim.name}: {each.label}": [vars(look) for look in each.looks] for each in self.questions}
        write_json(self.path, {"most_seeds": self.most, "looks": looks})

    def read(self) -> None:
        """Read the results of every row: its first seeds that are all evaluated. Raise Refused where two differ in how."""
        requests = {}
        for key, row in self.rows.items():
            self.results[key] = []
            for seed in first_seeds(self.most if row.is_trained else 1):
                cfg = self.config(row, seed)
                run = Run.of(cfg)
                try:
                    result = from_files(run, cfg)
                except Damaged as damage:
                    raise Refused(f"The next seeds cannot be chosen: {damage}") from None
                if result is None:
                    break
                self.results[key].append(result)
                requests[run.name] = request(result.summary, result.right)
        if requests:
            refuse_unlike(requests)

    def count(self, key: str) -> int:
        """Return the number of seeds of a row; for an untrained row the most, since it does not depend on a seed."""
        finished = len(self.results[key])
        return finished if self.rows[key].is_trained else self.most * min(finished, 1)

    @property
    def runs(self) -> int:
        """The number of evaluated runs."""
        return sum(len(results) for results in self.results.values())

    def statistics(self) -> tuple[list[str], sequential.Rows]:
        """Return the keys of the rows with results, and their statistics."""
        keys = [key for key, results in self.results.items() if results]
        return keys, sequential.rows_of([arm_of(self.results[key]) for key in keys])

    def look(self) -> dict[int, float]:
        """Look at every undecided contrast that has a further seed of all its rows, and record it.

        Return, by index of the question, the chance per seed that further seeds decide it; decided ones are left out.
        """
        self.read()
        if not any(self.results.values()):
            return dict.fromkeys(range(len(self.questions)), 1.0)
        keys, rows = self.statistics()
        chances: dict[int, float] = {}
        for index, question in enumerate(self.questions):
            if question.verdict != Verdict.UNDECIDED:
                continue
            seeds = min(self.count(key) for key in question.weights)
            if seeds < sequential.FIRST_LOOK:
                chances[index] = 1.0
                continue
            weights = np.array([question.weights.get(key, 0.0) for key in keys])
            estimated = sequential.estimate(rows, weights)
            earlier = [look.ratio for look in question.looks]
            ratio = min([*earlier, float(estimated.ratio(seeds))])
            if seeds > max((look.seeds for look in question.looks), default=0):
                question.looks.append(look_at(question, estimated, seeds, ratio, self.most))
            if question.verdict == Verdict.UNDECIDED and seeds < self.most:
                claim = question.claim
                oriented = replace(estimated, value=-estimated.value) if claim.direction == "less" else estimated
                chances[index] = float(sequential.chance_per_seed(
                    oriented, seeds, ratio, self.most, question.alpha, claim.smallest_effect / 100,
                    claim.direction == "equivalent",
                ))  # fmt: skip
        self.record()
        decided = {name for name, verdict in self.verdicts().items() if verdict != Verdict.UNDECIDED}
        return {index: chance for index, chance in chances.items() if self.questions[index].claim.name not in decided}

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdict on each card, from its contrasts."""
        by_card: dict[str, list[Verdict]] = {}
        for question in self.questions:
            by_card.setdefault(question.claim.name, []).append(question.verdict)
        return {name: together(verdicts) for name, verdicts in by_card.items()}

    def next_seeds(self, chances: Mapping[int, float]) -> list[Next]:
        """Return the next runs, the most promising first: one seed of each row of an open claim that waits for it.

        Before its first look, a row gets all seeds that this look needs. A row that has more seeds than another row of its
        claim waits for that row.
        """
        keys, chosen = list(self.rows), dict[str, Next]()
        seeds = np.array([self.count(key) for key in keys])
        for index, chance in sorted(chances.items(), key=lambda pair: -pair[1]):
            weights = np.array([self.questions[index].weights.get(key, 0.0) for key in keys])
            waiting = sequential.open_rows([weights], [chance >= sequential.LEAST_CHANCE], seeds)
            before_first = (weights != 0) & (seeds < sequential.FIRST_LOOK)
            for key, further in zip(keys, waiting | before_first, strict=True):
                if further:
                    chosen.setdefault(key, Next(self.rows[key], first_seeds(self.most)[len(self.results[key])], chance))
        runs = list(chosen.values())
        for key, first in chosen.items():
            missing = range(len(self.results[key]) + 1, sequential.FIRST_LOOK) if first.row.is_trained else ()
            runs += [replace(first, seed=first_seeds(self.most)[position]) for position in missing]
        return runs


def contrast_weights(contrast: Contrast, key_of_selector: Mapping[str, str]) -> dict[str, float]:
    """Return the weights of a contrast's rows, by key: each side is the mean of its rows."""
    weights: dict[str, float] = {}
    sides = ((contrast.left, 1), (contrast.right, -1), (contrast.left_reference, -1), (contrast.right_reference, 1))
    for selectors, sign in sides:
        for selector in selectors:
            key = key_of_selector[selector]
            weights[key] = weights.get(key, 0.0) + sign / len(selectors)
    return weights


def arm_of(results: Sequence[Result]) -> list[Array]:
    """Return a row's shares of right samples, one array (seeds, problems) per averaged benchmark."""
    scores = scores_of([result.right for result in results])
    return [scores[name] for name in averaged_benchmarks(scores)]


def look_at(question: Question, estimated: sequential.Estimate, seeds: int, ratio: float, most: int) -> Look:
    """Return the look at a contrast: its interval with the error that this look may spend, and the verdict."""
    level = float(sequential.nominal_level(seeds, ratio, most, question.alpha))
    value, half = float(estimated.value), float(estimated.half_width(level))
    excludes_zero = abs(value) > half
    difference = Difference(value, value - half, value + half, 0.0 if excludes_zero else 1.0)
    verdict = decide(question.claim, difference, difference.p)
    return Look(seeds, level, min(ratio, 1e9), value, difference.low, difference.high, str(verdict))


def summary(looks: Looks) -> list[dict[str, Any]]:
    """Return a row per contrast for a display: card, contrast, seeds, difference and interval in points, verdicts."""
    verdicts = looks.verdicts()
    rows = []
    for question in looks.questions:
        last = question.looks[-1] if question.looks else None
        rows.append({
            "claim": question.claim.name, "verdict": str(verdicts[question.claim.name]), "contrast": question.label,
            "contrast_verdict": str(question.verdict),
            "seeds": last.seeds if last else 0, "difference": 100 * last.difference if last else None,
            "low": 100 * last.low if last else None, "high": 100 * last.high if last else None,
        })  # fmt: skip
    return rows
