"""Cut a step's completions into forward passes by length, so that little padding is computed.

TRL cuts equal numbers of completions and pads all of them to the longest of the step, which at 16k tokens is mostly padding.
Here rows, a prompt and its completion, are sorted by length, cut where a pass would hold more positions than
`per_device_batch_size` completions of full length, and padded to the longest of their pass: the loss is the same sum of the
same terms. With training.micro_batches=by_prompt whole groups are sorted and cut, since a row is a group
(rlvr_sweeps.training.shared_prompts). The module uses tensors without importing torch, since plans import it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import completions_per_row, positions_per_pass


@dataclass(frozen=True)
class Share:
    """The share of one pass in its step."""

    passes: int  # of the step
    completions: float  # share of the completions; equal in all processes
    tokens: float  # share of the completion tokens of all processes


def cut(widths: Sequence[int], positions: int) -> list[range]:
    """Return the rows of each pass: as few passes as possible with at most `positions` each, padding included.

    `widths` ascends. A row is never cut, so a single row may exceed `positions`.
    """
    passes, end = [], len(widths)
    while end:
        start = max(0, end - max(1, positions // widths[end - 1]))
        passes.append(range(start, end))
        end = start
    return passes[::-1]


def cut_into(widths: Sequence[int], count: int) -> list[range]:
    """Return the rows of exactly `count` passes, with the largest pass as small as possible; `count` ≤ the number of rows."""
    low, high = widths[-1] - 1, widths[-1] * len(widths)  # too few positions, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(widths, middle)) <= count else (middle, high)
    passes = cut(widths, high)
    while len(passes) < count:
        largest = max(range(len(passes)), key=lambda index: len(passes[index]))
        start, end = passes[largest].start, passes[largest].stop
        passes[largest : largest + 1] = [range(start, (start + end) // 2), range((start + end) // 2, end)]
    return passes


def rows_of(batch: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """Return the rows `chosen` of TRL's batch without their common padding: left of prompts, right of completions."""
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
    """Weigh the last pass's metrics by its share of the step, since TRL logs the plain mean over passes.

    Entropy is a mean over tokens; the clipped share is over tokens or sequences (`level`). Not every loss clips.
    """
    shares = {"entropy": share.tokens, "clip_ratio/region_mean": share.tokens if level == "token" else share.completions}
    for name, weight in shares.items():
        if metrics.get(name):
            metrics[name][-1] *= weight * share.passes


def count_positions(columns: dict[str, float], positions: int, tokens: int) -> None:
    """Add a forward pass to the step's columns: the positions computed, and those that are not padding."""
    columns["update_positions"] = columns.get("update_positions", 0) + positions
    columns["update_tokens"] = columns.get("update_tokens", 0) + tokens


def passes_of(batch: dict[str, Any], cfg: Resolved, calls: int, gather: Any) -> list[dict[str, Any] | None]:
    """Return a step's forward passes, one entry for each of the trainer's `calls` of the loss; None for a call without a pass.

    The last call always has a pass. All processes make the same number of passes with equally many rows, cut by the longest row
    of all processes (`gather` is accelerate's), so that none waits long for another. DeepSpeed counts backward passes, so under
    DeepSpeed every call has a pass.
    """
    size, tokens = completions_per_row(cfg), batch["completion_mask"].sum(1)
    completions = (tokens.new_ones(len(tokens)).cumsum(0) - 1).view(-1, size)  # of each row
    tokens = tokens.view(-1, size).sum(1)
    own_widths, order = (batch["prompt_mask"].sum(1)[::size] + tokens).sort()
    widths = gather(own_widths).view(-1, len(order)).max(0).values.tolist()
    all_tokens = gather(tokens[order]).view(-1, len(order))
    count = calls if cfg["distributed"]["deepspeed"] else len(cut(widths, positions_per_pass(cfg)))
    assert count <= calls, f"{count} forward passes do not fit the {calls} that a step has"
    if count == 1:
        return [*[None] * (calls - 1), batch | {"share": Share(1, 1.0, 1.0)}]
    passes: list[dict[str, Any] | None] = [None] * (calls - count)
    for rows in cut_into(widths, count):
        token_share = float(all_tokens[:, rows.start : rows.stop].sum() / all_tokens.sum().clamp(min=1))
        share = Share(count, len(rows) / len(tokens), token_share)
        passes.append(rows_of(batch, completions[order[rows.start : rows.stop]].flatten()) | {"share": share})
    return passes
