"""Write what the sampler's bfloat16 weights lost of the updates of a table's or figure's rows."""

from collections.abc import Callable, Iterable

from rlvr_sweeps.config.settings import is_trained, sampling_weights
from rlvr_sweeps.reporting.rows import Cell

STAGES = ("rollout", "evaluation")
LEAST_KEPT = 0.9  # share of the update in the sampler's weights below which a row is named
LARGEST_ERROR = 0.5  # of the evaluated weights, relative to the update, above which a row is named


def notes(rows: Iterable[tuple[str, Cell]]) -> list[str]:
    """Return the sentences for rows (label, cell) that were sampled or evaluated in bfloat16; none for float32."""
    trained = [(label, cell) for label, cell in rows if is_trained(cell.cfg)]
    sentences = []
    kept = named(trained, "rollout", "bfloat16", "update_kept", lambda value: value < LEAST_KEPT)
    if kept:
        sentences.append(
            "Sampled in training with the nearest bfloat16 weights (rollout.weights=bfloat16), which had only this part of the "
            f"update: {kept}. Rewards of a method of small reach are then too close to those of the base model."
        )
    errors = named(trained, "evaluation", "bfloat16", "bfloat16_error", lambda value: value > LARGEST_ERROR)
    if errors:
        sentences.append(
            "Evaluated with the nearest bfloat16 weights (evaluation.weights=bfloat16), whose rounding error relative to the "
            f"update is: {errors}. The accuracy of a method of small reach is then too close to that of the base model."
        )
    rounded = [cell for _, cell in trained if "stochastic" in (sampling_weights(cell.cfg, stage) for stage in STAGES)]
    avoided = [value for cell in rounded if (value := cell.value("bfloat16_error")) is not None]
    if avoided:
        span = " to ".join(dict.fromkeys(f"{100 * value:.0f}" for value in (min(avoided), max(avoided))))
        sentences.append(
            "Sampled with weights rounded to bfloat16 at random, whose mean is the whole update; the nearest values would have "
            f"an error of {span} % of it (docs/design.md)."
        )
    return sentences


def named(rows: Iterable[tuple[str, Cell]], stage: str, weights: str, column: str, is_named: Callable[[float], bool]) -> str:
    """Return `label value %, …` of the rows with these weights whose summary column is to be named."""
    values = [(label, cell.value(column)) for label, cell in rows if sampling_weights(cell.cfg, stage) == weights]
    return ", ".join(f"{label} {100 * value:.0f} %" for label, value in values if value is not None and is_named(value))
