"""Write the lines below a table: missing runs, the meaning of ±, bold, Δ and the star, the smallest detectable difference."""

from collections.abc import Mapping, Sequence

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.sweeps import Product, paper_models
from rlvr_sweeps.reporting.differences.baselines import SEEDS_FOR_A_STAR, Contrast, smallest_difference
from rlvr_sweeps.reporting.sweep_results import RowResult


def footnotes(
    product: Product, typed: Sequence[str], rows: Sequence[RowResult], contrasts: Mapping[str, Contrast]
) -> list[str]:
    """The lines below a table; `typed`: the overrides it was asked for with, `found`: its contrasts."""
    early = [sentence for row in rows if row.cell for sentence in row.cell.stopped_early]
    return [*product.notes, presence(product, typed, rows), *early, *errors(rows), *differences(rows, contrasts), printed(rows)]


def presence(product: Product, typed: Sequence[str], rows: Sequence[RowResult]) -> str:
    """How many of the runs are there, and the command for the others."""
    launched = [row for row in rows if product.sections[row.row.section].launched]
    done = {run.name for row in launched if row.cell for run in row.cell.runs}
    expected = {run.name for row in launched for run in row.runs}
    sentences = f"{len(done)} of {len(expected)} runs are there."
    if done != expected:
        sentences += f" The others are dashes: python launch.py {' '.join([f'sweep={product.name}', *typed])}"
    return sentences


def seed_counts(rows: Sequence[RowResult]) -> set[int]:
    """How many seeds the rows have whose methods train anything."""
    return {len(row.cell.runs) for row in rows if row.cell and is_trained(row.cfg)}


def errors(rows: Sequence[RowResult]) -> list[str]:
    counts, sentences = seed_counts(rows), []
    if 1 in counts:
        sentences.append("± of a row with one seed is the standard error of sampling: what another seed changes is not in it.")
    if counts - {1}:
        sentences.append(
            "± of a row with several seeds is the standard error of their mean, with the sampling error they share."
        )
    if counts:
        sentences.append("Bold: the highest of its panel, whether or not it can be told apart from the next.")
    return sentences


def differences(rows: Sequence[RowResult], contrasts: Mapping[str, Contrast]) -> list[str]:
    if not contrasts:
        return []
    counts = seed_counts(rows)
    seeds = " and training seeds" if counts - {1} else ""
    stars = f"{len(contrasts)} comparisons; a star needs {SEEDS_FOR_A_STAR} seeds on both sides"
    smallest = smallest_difference(list(contrasts.values()))
    assert smallest is not None
    known = "problems and samples. The spread over seeds, which one seed does not show, comes on top."
    if min(counts) > 1:
        known = "problems, samples and seeds."
    return [
        f"Δ LoRA: in points, paired by problem, with its 95 % interval (10,000 bootstrap draws of problems{seeds}). "
        f"* p < .05 after Holm's correction for {stars}.",
        f"Smallest difference to LoRA that can be told apart: about {100 * smallest:.1f} points (found four times in five at "
        f"the 5 % level, before Holm), from {known}",
    ]


def printed(rows: Sequence[RowResult]) -> str:
    model = rows[0].cfg["model"]["name"]
    if model in paper_models():
        return "paper: the value the paper prints; a dash where it is not known."
    return f"paper: the value the paper prints, for its own models. Ours are of {model}: another quantity."
