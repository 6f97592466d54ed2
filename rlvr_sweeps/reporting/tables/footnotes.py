"""What a reader must know of a table: what is missing, what ±, bold, Δ and the star mean, what it can tell apart."""

from collections.abc import Mapping, Sequence

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.sweeps import Product, paper_models
from rlvr_sweeps.reporting.differences.baselines import SEEDS_FOR_A_STAR, Contrast, smallest_difference
from rlvr_sweeps.reporting.sweep_results import Filled


def footnotes(product: Product, typed: Sequence[str], rows: Sequence[Filled], found: Mapping[str, Contrast]) -> list[str]:
    """The lines below a table; `typed`: the overrides it was asked for with, `found`: its contrasts."""
    early = [sentence for row in rows if row.cell for sentence in row.cell.stopped_early]
    return [*product.notes, presence(product, typed, rows), *early, *errors(rows), *differences(rows, found), printed(rows)]


def presence(product: Product, typed: Sequence[str], rows: Sequence[Filled]) -> str:
    """How many of the runs are there, and the command for the others."""
    launched = [row for row in rows if product.sections[row.row.section].launched]
    done = {run.name for row in launched if row.cell for run in row.cell.runs}
    asked = {run.name for row in launched for run in row.asked}
    said = f"{len(done)} of {len(asked)} runs are there."
    if done != asked:
        said += f" The others are dashes: python launch.py {' '.join([f'sweep={product.name}', *typed])}"
    return said


def seed_counts(rows: Sequence[Filled]) -> set[int]:
    """How many seeds the rows have whose methods train anything."""
    return {len(row.cell.runs) for row in rows if row.cell and is_trained(row.cfg)}


def errors(rows: Sequence[Filled]) -> list[str]:
    counts, said = seed_counts(rows), []
    if 1 in counts:
        said.append("± of a row with one seed is the standard error of sampling: what another seed changes is not in it.")
    if counts - {1}:
        said.append("± of a row with several seeds is the standard error of their mean, with the sampling error they share.")
    if counts:
        said.append("Bold: the highest of its panel, whether or not it can be told apart from the next.")
    return said


def differences(rows: Sequence[Filled], found: Mapping[str, Contrast]) -> list[str]:
    if not found:
        return []
    counts = seed_counts(rows)
    seeds = " and training seeds" if counts - {1} else ""
    stars = f"{len(found)} comparisons; a star needs {SEEDS_FOR_A_STAR} seeds on both sides"
    smallest = smallest_difference(list(found.values()))
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


def printed(rows: Sequence[Filled]) -> str:
    model = rows[0].cfg["model"]["name"]
    if model in paper_models():
        return "paper: the value the paper prints; a dash where it is not known."
    return f"paper: the value the paper prints, for its own models. Ours are of {model}: another quantity."
