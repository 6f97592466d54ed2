"""Write the lines below a table: missing and unreadable runs, the meaning of ±, bold, Δ and the star, what it can detect."""

from collections.abc import Mapping, Sequence

from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.config.sweeps import Product, paper_models
from rlvr_sweeps.reporting import lost_updates
from rlvr_sweeps.reporting.differences.baselines import SEEDS_FOR_A_STAR, Contrast, smallest_difference
from rlvr_sweeps.reporting.sweep_results import RowResult


def footnotes(
    product: Product, overrides: Sequence[str], rows: Sequence[RowResult], contrasts: Mapping[str, Contrast]
) -> list[str]:
    """Return the lines below a table; `overrides` are those of the command, `contrasts` its differences."""
    early = [sentence for row in rows if row.cell for sentence in row.cell.stopped_early]
    return [
        *product.notes,
        presence(product, overrides, rows),
        *dict.fromkeys(sentence for row in rows for sentence in row.unreadable),
        *early,
        *lost_updates.notes((row.row.label, row.cell) for row in rows if row.cell),
        *errors(rows),
        *differences(rows, contrasts),
        *printed(rows),
    ]


def presence(product: Product, overrides: Sequence[str], rows: Sequence[RowResult]) -> str:
    """Return how many runs have finished, and the command that runs the missing ones."""
    launched = [row for row in rows if product.sections[row.row.section].launched]
    done = {run.name for row in launched if row.cell for run in row.cell.runs}
    expected = {run.name for row in launched for run in row.runs}
    sentences = f"{len(done)} of {len(expected)} runs have finished."
    if done != expected:
        sentences += (
            f" The missing runs are dashes; to run them: python launch.py {' '.join([f'sweep={product.name}', *overrides])}"
        )
    return sentences


def seed_counts(rows: Sequence[RowResult]) -> set[int]:
    """Return the numbers of seeds that the trained rows have."""
    return {len(row.cell.runs) for row in rows if row.cell and is_trained(row.cfg)}


def errors(rows: Sequence[RowResult]) -> list[str]:
    """Return the meaning of ± and bold in this table."""
    counts, sentences = seed_counts(rows), []
    if 1 in counts:
        sentences.append(
            "± of a row with one seed is the standard error of sampling; it does not include the spread over seeds."
        )
    if counts - {1}:
        sentences.append(
            "± of a row with several seeds is the standard error of their mean, with the sampling error that they share."
        )
    if counts:
        sentences.append("Bold: the highest value of its panel, whether or not it differs significantly from the next.")
    return sentences


def differences(rows: Sequence[RowResult], contrasts: Mapping[str, Contrast]) -> list[str]:
    """Return the meaning of Δ and the star, and the smallest difference that this table can detect."""
    if not contrasts:
        return []
    counts = seed_counts(rows)
    seeds = " and training seeds" if counts - {1} else ""
    stars = f"{len(contrasts)} comparisons; a star needs {SEEDS_FOR_A_STAR} seeds on both sides"
    smallest = smallest_difference(list(contrasts.values()))
    assert smallest is not None
    sources = "problems and samples. The spread over seeds, which one seed does not show, is not included."
    if min(counts) > 1:
        sources = "problems, samples and seeds."
    return [
        f"Δ LoRA: in points, paired by problem, with its 95 % interval (10,000 bootstrap draws of problems{seeds}). "
        f"* p < .05 after Holm's correction for {stars}.",
        f"Smallest difference to LoRA that can be detected: about {100 * smallest:.1f} points (in four of five cases "
        f"at the 5 % level, before Holm), from {sources}",
    ]


def printed(rows: Sequence[RowResult]) -> list[str]:
    """Return the meaning of the column of the paper's values for this model; nothing for a sweep that is not in the paper."""
    model = rows[0].cfg["model"]["name"]
    if not any(row.row.printed for row in rows):
        return []
    if model in paper_models():
        return ["paper: the value printed in the paper; a dash where paper/reference.csv has none."]
    sentence = f"Our values are for {model}, so the two are not comparable."
    return [f"paper: the value printed in the paper, for its models. {sentence}"]
