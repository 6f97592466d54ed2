"""Compute the verdicts on claim cards from the runs of one model, paired by problem and over seeds as in `rlvr compare`.

A row counts once all of its runs are evaluated exactly as the sweep specifies, so runs of other evaluation settings decide
nothing.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlvr_sweeps.config.claims import BEST_LR, Claim, Contrast, load_claims, rows_named
from rlvr_sweeps.config.compose import Composer, offline_composer
from rlvr_sweeps.config.identity import digest
from rlvr_sweeps.config.lr_grid import split_auto, tuned_rows
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import HELD_OUT, averaged_benchmarks, is_trained
from rlvr_sweeps.config.sweeps import Product, RowSpec, format_value, key_of, load_product, refuse_fixed_keys
from rlvr_sweeps.config.sweeps import seeds as first_seeds
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir
from rlvr_sweeps.reporting.claims.rule import Verdict, decide, detectable, level, together
from rlvr_sweeps.reporting.differences.baselines import SEEDS_FOR_A_STAR, SEEDS_FOR_P
from rlvr_sweeps.reporting.differences.bootstrap import Array, Difference, difference, holm
from rlvr_sweeps.reporting.differences.compare import refuse_unlike, request, scores_of
from rlvr_sweeps.reporting.lr_search import at_rate, grid_of
from rlvr_sweeps.reporting.rows import Cell, Source, from_files, row_of
from rlvr_sweeps.reporting.sweep_results import RowResult, read_row_results, split_seeds
from rlvr_sweeps.reporting.tables.learning_rates import Choice, choose
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import RunStatus, find_runs, status_of

NAMES = {"new": "not started"}  # of states, where their own name would be misread
Scores = dict[str, Array]  # benchmark -> share of right samples, shape (seeds, problems)


@dataclass(frozen=True)
class ContrastVerdict:
    """The verdict on one contrast (with `combine: mean`, on their average), with the numbers that it follows from."""

    label: str
    verdict: Verdict
    difference: Difference | None = None  # as accuracy; None where runs are missing
    p_holm: float | None = None
    detectable: float | None = None  # as accuracy: what these runs tell apart from none with 80 % probability
    seeds: tuple[int, int] = (0, 0)  # fewest of a row on the left, and on the right
    note: str = ""  # why the numbers alone do not decide


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a card for one model; with missing runs it is undecided."""

    claim: Claim
    model: str
    verdict: Verdict
    contrasts: tuple[ContrastVerdict, ...]
    missing: tuple[str, ...] = ()  # runs without a result, each with its state
    command: str = ""  # launches them
    notes: tuple[str, ...] = ()

    @property
    def has_runs(self) -> bool:
        """Return whether the verdict follows from runs, not from their absence."""
        return not self.missing and any(each.difference for each in self.contrasts)


class ClaimReader:
    """Read the rows that cards name, for one model and one runs folder; rows that several cards name are read once."""

    def __init__(
        self,
        composer: Composer,
        model: str,
        base: Sequence[str],
        seeds: Sequence[int] | None,
        statuses: Sequence[RunStatus],
        source: Source = from_files,
        most_rates: int | None = None,
    ) -> None:
        """`base`: overrides that all rows share, model= and runs_dir= among them. `most_rates`: the bound of lr=auto.

        `seeds`: those that every row must have; None: those that the runs of each row in `statuses` have, in any state.
        """
        self.composer, self.model, self.base, self.seeds, self.source = composer, model, tuple(base), seeds, source
        self.most_rates = most_rates
        self.products: dict[str, Product] = {}
        self.rows: dict[tuple[str, ...], RowResult] = {}
        self.seeds_of: dict[tuple[str, ...], Sequence[int]] = {}  # by the same key: those that the row must have
        self.present: dict[str, set[int]] = {}
        for status in statuses:
            if status.cfg and seeds is None:
                self.present.setdefault(digest(row_of(status.cfg)), set()).add(int(status.cfg["seed"]))

    def product(self, name: str) -> Product:
        """Return a sweep's rows for this model."""
        if name not in self.products:
            self.products[name] = load_product(name, self.model, self.composer)
        return self.products[name]

    def rows_of(self, claim: Claim) -> dict[str, list[RowResult]]:
        """Return the results of the rows that each selector of a card names."""
        product = self.product(claim.sweep)
        refuse_fixed_keys(product.sections, self.model, [*self.base, *claim.overrides])
        return {selector: self.rows_at(selector, product, claim.overrides) for selector in claim.selectors}

    def rows_at(self, selector: str, product: Product, overrides: Sequence[str]) -> list[RowResult]:
        """Return the results of the rows that a selector names: with lr=auto, at the rates that their grid has by now."""
        rows = rows_named(selector, product)
        if self.most_rates is None or BEST_LR not in selector.split():
            return [self.read(product, row, overrides) for row in rows]
        (group,) = tuned_rows([row.overrides for row in rows])
        text = rows[0].label.replace(f" lr {format_value(str(group.rates[0]))}", "")

        def read(rate: float) -> RowResult:
            return self.read(product, at_rate(rows[0], group, rate, text), overrides)

        return grid_of(group, group.rates[0], read, self.most_rates, text).choice.rows

    def read(self, product: Product, row: RowSpec, overrides: Sequence[str]) -> RowResult:
        """Return the results of one row."""
        key = row_key(product, row, overrides)
        if key not in self.rows:
            one, base = replace(product, rows=(row,)), [*self.base, *overrides]
            (unread,) = read_row_results(one, self.composer, base, first_seeds(1), no_result)
            seeds = self.seeds or sorted(self.present.get(digest(row_of(unread.cfg)), ()))
            if not self.seeds and len(seeds) < SEEDS_FOR_P:
                seeds = first_seeds(SEEDS_FOR_A_STAR)
            (self.rows[key],) = read_row_results(one, self.composer, base, seeds, self.source)
            self.seeds_of[key] = seeds
        return self.rows[key]

    def command(self, claim: Claim) -> str:
        """Return the command that launches what a card needs and lacks."""
        seeds = sorted({seed for key, row_seeds in self.seeds_of.items() if key[0] == claim.sweep for seed in row_seeds})
        auto = self.most_rates is not None and any(BEST_LR in selector.split() for selector in claim.selectors)
        grid = [f"lr=auto:{self.most_rates}"] if auto else []
        parts = [f"sweep={claim.sweep}", *self.base, *claim.overrides, *grid, f"seed={','.join(map(str, seeds))}"]
        return f"python launch.py {shlex.join(parts)}"


def no_result(_run: Run, _cfg: Resolved) -> None:
    """Return no result: a Source for rows of which only the configuration is needed."""


def row_key(product: Product, row: RowSpec, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the key of a row in a ClaimReader."""
    return (product.name, *row.overrides, "|", *overrides)


def verdicts(claims: Sequence[Claim], reader: ClaimReader) -> list[ClaimVerdict]:
    """Return the verdict on each card."""
    return [verdict_on(claim, reader) for claim in claims]


def verdict_on(claim: Claim, reader: ClaimReader) -> ClaimVerdict:
    """Return the verdict on a card: undecided where runs are missing or were not evaluated alike."""
    rows = reader.rows_of(claim)
    missing = dict.fromkeys(text for results in rows.values() for row in results for text in missing_runs(row))
    result = ClaimVerdict(claim, reader.model, Verdict.UNDECIDED, (), tuple(missing), reader.command(claim))
    if missing:
        return replace(result, contrasts=tuple(ContrastVerdict(each.label, Verdict.UNDECIDED) for each in claim.contrasts))
    chosen, edges = choose_rates(rows)
    try:
        refuse_unlike({name: facts for row in chosen.values() for name, facts in requests(row)})
        contrasts = contrast_verdicts(claim, chosen, edges)
    except Refused as refusal:
        undecided = tuple(ContrastVerdict(each.label, Verdict.UNDECIDED) for each in claim.contrasts)
        return replace(result, contrasts=undecided, notes=(str(refusal),))
    stopped = [sentence for row in chosen.values() if row.cell for sentence in row.cell.stopped_early]
    notes = dict.fromkeys([*(each.note for each in contrasts if each.note), *stopped])
    return replace(result, verdict=together([each.verdict for each in contrasts]), contrasts=contrasts, notes=tuple(notes))


def missing_runs(row: RowResult) -> list[str]:
    """Return the runs of a row that have no result, each with the reason."""
    finished = {run.name for run in row.cell.runs} if row.cell else set()
    texts = list(row.unreadable)
    for run in row.runs:
        if run.name in finished or any(sentence.startswith(run.name) for sentence in row.unreadable):
            continue
        state = status_of(run).state if run.config_path.exists() else "not launched"
        texts.append(
            f"{run.name} ({'evaluated with other settings' if run.summary_path.exists() else NAMES.get(state, state)})"
        )
    return texts


def choose_rates(rows: Mapping[str, Sequence[RowResult]]) -> tuple[dict[str, RowResult], set[str]]:
    """Return the row of each selector, with `lr=best` resolved, and the selectors whose best rate is at an edge of the grid."""
    chosen, edges = {}, set()
    for selector, results in rows.items():
        if BEST_LR not in selector.split():
            chosen[selector] = results[0]
            continue
        choice: Choice = choose(selector, results)
        chosen[selector] = choice.rows[choice.best]
        if choice.at_edge:
            edges.add(selector)
    return chosen, edges


def requests(row: RowResult) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield each run of a row with how it was evaluated; raise Refused where the numbers of right samples are missing."""
    assert row.cell
    for run, summary, right in zip(row.cell.runs, row.cell.summaries, row.cell.right, strict=True):
        if not right:
            raise Refused(f"{run.name} has no {run.right_path.name} beside its samples. To write it: rlvr regrade {run.name}.")
        yield run.name, request(summary, right)


def contrast_verdicts(claim: Claim, chosen: Mapping[str, RowResult], edges: set[str]) -> tuple[ContrastVerdict, ...]:
    """Return the verdict on every contrast or, with `combine: mean`, that on their average."""
    sides = [
        (arm_of(each.left, each.right_reference, chosen), arm_of(each.right, each.left_reference, chosen))
        for each in claim.contrasts
    ]
    labels = [label_of(each, chosen) for each in claim.contrasts]
    groups = [[each] for each in claim.contrasts]
    if claim.combine == "mean":
        lefts, rights = zip(*sides, strict=True)
        sides, labels, groups = [(mean(lefts), mean(rights))], ["the average: " + ", ".join(labels)], [list(claim.contrasts)]
    differences = [
        difference(
            [left[name] for name in averaged_benchmarks(left)],
            [right[name] for name in averaged_benchmarks(left)],
            level=level(claim),
        )
        for left, right in sides
    ]
    adjusted = holm([each.p for each in differences])
    verdicts = []
    for contrasts, text, result, p in zip(groups, labels, differences, adjusted, strict=True):
        seeds = fewest_seeds(contrasts, chosen, "left"), fewest_seeds(contrasts, chosen, "right")
        verdict = decide(claim, result, p)
        note = ""
        if min(seeds) < SEEDS_FOR_P:
            verdict, note = Verdict.UNDECIDED, "A row has one training seed: that compares two trained models, not two methods."
        elif unfair := [
            selector for each in contrasts for selector in could_overturn(claim, each, verdict, result) if selector in edges
        ]:
            names = ", ".join(chosen[selector].row.label for selector in dict.fromkeys(unfair))
            verdict = Verdict.UNDECIDED
            note = f"The best lr is at an edge of its grid for {names}: a better one may be outside. Launch with lr=auto."
        verdicts.append(ContrastVerdict(text, verdict, result, p, detectable(claim, result), seeds, note))
    return tuple(verdicts)


def could_overturn(claim: Claim, contrast: Contrast, verdict: Verdict, result: Difference) -> list[str]:
    """Return the selectors of the rows whose higher accuracy, at a better learning rate, would weaken the verdict."""
    raise_difference = [*contrast.left, *contrast.right_reference]
    lower_difference = [*contrast.right, *contrast.left_reference]
    if verdict == Verdict.UNDECIDED:
        return []
    if claim.direction == "equivalent":
        if verdict == Verdict.SUPPORTED:
            return [*raise_difference, *lower_difference]
        return lower_difference if result.value > 0 else raise_difference
    left_is_better = (claim.direction == "greater") == (verdict == Verdict.SUPPORTED)
    return lower_difference if left_is_better else raise_difference


def arm_of(side: Sequence[str], added: Sequence[str], chosen: Mapping[str, RowResult]) -> Scores:
    """Return the scores of a side, averaged over its rows, plus those of the other side's reference where there is one."""
    scores = mean([scores_by_seed(chosen[selector]) for selector in side])
    return total([scores, mean([scores_by_seed(chosen[selector]) for selector in added])]) if added else scores


def scores_by_seed(row: RowResult) -> Scores:
    """Return a row's scores with its seeds in rising order, so that the rows of a side are averaged seed by seed."""
    cell: Cell | None = row.cell
    assert cell
    by_seed = sorted(zip(cell.summaries, cell.right, strict=True), key=lambda pair: pair[0].get("seed") or 0)
    return scores_of([right for _, right in by_seed])


def mean(arms: Sequence[Scores]) -> Scores:
    """Return the mean of arms."""
    return {name: scores / len(arms) for name, scores in total(arms).items()}


def total(arms: Sequence[Scores]) -> Scores:
    """Return the sum of arms, seed by seed, over as many seeds as each arm with more than one has; one seed counts for all."""
    several = [len(next(iter(arm.values()))) for arm in arms if len(next(iter(arm.values()))) > 1]
    seeds = min(several, default=1)
    return {
        name: np.sum([np.broadcast_to(arm[name][:seeds], (seeds, arm[name].shape[1])) for arm in arms], axis=0)
        for name in arms[0]
    }


def fewest_seeds(contrasts: Sequence[Contrast], chosen: Mapping[str, RowResult], side: str) -> int:
    """Return the smallest number of seeds of the trained rows on a side; SEEDS_FOR_A_STAR where all are untrained."""
    selectors = [name for each in contrasts for name in (*getattr(each, side), *getattr(each, f"{side}_reference"))]
    counts = [len(cell.runs) for name in selectors if (cell := chosen[name].cell) and is_trained(cell.cfg)]
    return min(counts, default=SEEDS_FOR_A_STAR)


def label_of(contrast: Contrast, chosen: Mapping[str, RowResult]) -> str:
    """Return `DoRA − LoRA`."""
    titles = {selector: row.row.label for selector, row in chosen.items()}
    named = [tuple(titles[selector] for selector in side) for side in (contrast.left, contrast.right)]
    references = [tuple(titles[selector] for selector in side) for side in (contrast.left_reference, contrast.right_reference)]
    return Contrast(named[0], named[1], references[0], references[1]).label


def as_record(result: ClaimVerdict) -> dict[str, Any]:
    """Return a verdict as plain data: the card, the verdict, and each contrast with its numbers in points."""
    claim = result.claim
    return {
        "claim": claim.name, "title": claim.title, "paper": claim.source.paper, "section": claim.source.section,
        "claimed_for": claim.source.model, "model": result.model, "verdict": str(result.verdict), "sweep": claim.sweep,
        "direction": claim.direction, "smallest_effect": claim.smallest_effect, "alpha": claim.alpha, "combine": claim.combine,
        "level": level(claim), "contrasts": [contrast_record(each) for each in result.contrasts],
        "missing": list(result.missing), "command": result.command if result.missing else None, "notes": list(result.notes),
    }  # fmt: skip


def contrast_record(result: ContrastVerdict) -> dict[str, Any]:
    """Return a contrast as plain data, differences in points."""
    numbers = dict.fromkeys(("difference", "low", "high", "p", "p_holm", "detectable"))
    if (gap := result.difference) and result.detectable is not None:
        numbers = {"difference": 100 * gap.value, "low": 100 * gap.low, "high": 100 * gap.high, "p": gap.p}
        numbers |= {"p_holm": result.p_holm, "detectable": 100 * result.detectable}
    return {
        "contrast": result.label,
        "verdict": str(result.verdict),
        **numbers,
        "seeds": list(result.seeds),
        "note": result.note,
    }


def read_claims(
    names: Sequence[str], overrides: Sequence[str], source: Source = from_files, composer: Composer | None = None
) -> list[ClaimVerdict]:
    """Return the verdicts on the cards with these names (none: on all) for the overrides of a launch: model=, seed=, ….

    Without seed=, the seeds that each row has in the folder count. With lr=auto, the grids of `lr=best` have the rates that
    such a launch has added.
    """
    claims, composer = load_claims(names), composer or offline_composer()
    others, bound = split_auto(overrides)
    base, seeds = split_seeds(others)
    cfg = composer.compose([override for override in base if not key_of(override).startswith("hydra")])
    statuses = find_runs(Path(str(cfg.runs_dir))) if seeds is None else []
    return verdicts(claims, ClaimReader(composer, str(cfg.model.name), base, seeds, statuses, source, bound))


def verdicts_of_folder(runs_dir: Path, statuses: Sequence[RunStatus]) -> list[ClaimVerdict]:
    """Return the verdicts on the cards whose runs, with the settings of their sweeps, are in a folder, for each of its models.

    Models that conf/model does not name are left out.
    """
    results = []
    by_model: dict[str, list[RunStatus]] = {}
    for status in statuses:
        if status.cfg and status.evaluated:
            by_model.setdefault(status.cfg["model"]["name"], []).append(status)
    for model, evaluated in by_model.items():
        claims = [claim for claim in load_claims() if may_have_runs(claim, evaluated)]
        if claims and (conf_dir() / "model" / f"{model}.yaml").exists():
            reader = ClaimReader(offline_composer(), model, [f"model={model}", f"runs_dir={runs_dir}"], None, statuses)
            results += [result for result in verdicts(claims, reader) if result.has_runs]
    return results


def may_have_runs(claim: Claim, evaluated: Sequence[RunStatus]) -> bool:
    """Return whether evaluated runs of one model may be those of a card, by method, objective and seeds.

    This costs nothing, whereas the card's rows have to be composed to know.
    """
    cfgs = [status.cfg for status in evaluated if status.cfg and is_trained(status.cfg)]
    if len({cfg["seed"] for cfg in cfgs}) < SEEDS_FOR_P:
        return False

    def matches(selector: str, cfg: Resolved) -> bool:
        parts = dict(part.split("=", 1) for part in selector.split())
        tuned = HELD_OUT in cfg["benchmark"] or BEST_LR not in selector.split()
        return tuned and all(cfg[group]["name"] == parts.get(group, cfg[group]["name"]) for group in ("peft", "algo"))

    return all(any(matches(selector, cfg) for cfg in cfgs) for selector in claim.selectors if "peft=none" not in selector)
