"""How a step's completions are cut into forward passes: by length, so that little of what is computed is padding.

TRL cuts equal numbers of completions and pads all of them to the longest of the step, which at 16k tokens is mostly padding.
Here completions are sorted, cut where a pass would hold more positions than `per_device_batch_size` completions of full length
do, and padded to the longest of their pass: the same sum of the same terms. Knows tensors, but not torch: plans ask here, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import positions_per_pass


@dataclass(frozen=True)
class Share:
    """One pass's part of its step: of the completions, the same in all processes, and of all processes' answer tokens."""

    passes: int
    completions: float
    tokens: float


def cut(widths: Sequence[int], positions: int) -> list[range]:
    """Rows of ascending width in as few passes as hold at most `positions` each, padding counted; a row is never cut."""
    passes, end = [], len(widths)
    while end:
        start = max(0, end - max(1, positions // widths[end - 1]))
        passes.append(range(start, end))
        end = start
    return passes[::-1]


def cut_into(widths: Sequence[int], count: int) -> list[range]:
    """The same in exactly `count` passes, the largest as small as can be. `count` is at most the number of rows."""
    low, high = widths[-1] - 1, widths[-1] * len(widths)  # positions that are too few, and that are enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(widths, middle)) <= count else (middle, high)
    passes = cut(widths, high)
    while len(passes) < count:
        most = max(range(len(passes)), key=lambda place: len(passes[place]))
        start, end = passes[most].start, passes[most].stop
        passes[most : most + 1] = [range(start, (start + end) // 2), range((start + end) // 2, end)]
    return passes


def rows_of(batch: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """Those rows of TRL's batch, without what is padding in all of them: on a prompt's left, an answer's right."""
    rows = {name: value[chosen] if getattr(value, "ndim", 0) else value for name, value in batch.items()}
    prompt, answer = (max(1, int(rows[name].sum(1).max())) for name in ("prompt_mask", "completion_mask"))
    width = batch["completion_mask"].shape[1]
    for name, value in rows.items():
        if getattr(value, "ndim", 0) < 2:
            continue
        if name.startswith("prompt_"):
            rows[name] = value[:, value.shape[1] - prompt :]
        elif value.shape[1] == width:
            rows[name] = value[:, :answer]
    return rows


def weigh(metrics: dict[str, list[float]], share: Share, level: str) -> None:
    """TRL logs a step's mean over its passes of what is a mean within a pass: weigh the last pass by its part of the step.

    Entropy is a mean over tokens, the clipped share over what is clipped: tokens or sequences (`level`). Not every loss clips.
    """
    parts = {"entropy": share.tokens, "clip_ratio/region_mean": share.tokens if level == "token" else share.completions}
    for name, part in parts.items():
        if metrics.get(name):
            metrics[name][-1] *= part * share.passes


def count_positions(columns: dict[str, float], mask: Any) -> None:
    """Add a forward pass of this process to its step's row: positions computed, and how many of them are no padding."""
    columns["update_positions"] = columns.get("update_positions", 0) + mask.numel()
    columns["update_tokens"] = columns.get("update_tokens", 0) + int(mask.sum())


def passes_of(batch: dict[str, Any], cfg: Resolved, calls: int, gather: Any) -> list[dict[str, Any] | None]:
    """A step's forward passes for the trainer's `calls` of its loss, None for a call that is not needed; the last always is.

    All processes make the same number, of equally many rows each, cut by the longest of them (`gather`: accelerate's), so that
    none waits long for another. DeepSpeed counts its backward passes: for it the number stays.
    """
    tokens, order = batch["completion_mask"].sum(1).sort()
    prompt = int(gather(batch["prompt_mask"].sum(1).max()).max())
    everyone = gather(tokens).view(-1, len(tokens))
    widths = (everyone.max(0).values + prompt).tolist()
    count = calls if cfg["distributed"]["deepspeed"] else len(cut(widths, positions_per_pass(cfg)))
    assert count <= calls, f"{count} forward passes do not fit the {calls} that a step has"
    if count == 1:
        return [*[None] * (calls - 1), batch | {"share": Share(1, 1.0, 1.0)}]
    found: list[dict[str, Any] | None] = [None] * (calls - count)
    for rows in cut_into(widths, count):
        part = float(everyone[:, rows.start : rows.stop].sum() / everyone.sum().clamp(min=1))
        share = Share(count, len(rows) / len(tokens), part)
        found.append(rows_of(batch, order[rows.start : rows.stop]) | {"share": share})
    return found
