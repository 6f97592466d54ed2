"""What a plan's runs will take: memory by part, seconds per step, GPU-hours; those that cannot fit are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from rlvr_sweeps.assets.architecture import Architecture, architecture
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained, rank_of
from rlvr_sweeps.planning import measured, timing
from rlvr_sweeps.planning.hardware import GIB, Gpu, gpu_of
from rlvr_sweeps.planning.measured import Pace, Paces
from rlvr_sweeps.planning.memory import Footprint, footprint, refuse_too_large
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import last_rows

SHORT_NAMES = {"gradients and optimizer": "grad+opt", "activations": "activ.", "vLLM's weights": "vLLM", "KV cache": "KV"}


@dataclass
class ShapeEstimate:
    """Runs of one shape, which differ in their seed or learning rate, and what each of them takes."""

    runs: list[Planned]
    gpu: Gpu | None
    model: Architecture | None
    paces: Paces

    @property
    def cfg(self) -> Resolved:
        return self.runs[0].cfg

    @property
    def label(self) -> str:
        method = self.cfg["peft"]
        rank = rank_of(self.cfg)
        algo = f" {self.cfg['algo']['title']}" if is_trained(self.cfg) else ""
        return f"{self.cfg['model']['name']} {method['title']}{f' r={rank}' if rank else ''}{algo}"

    @cached_property
    def memory(self) -> Footprint | None:
        return footprint(self.cfg, self.model, self.gpu) if self.gpu and self.model and is_trained(self.cfg) else None

    def lengths(self, cfg: Resolved) -> timing.Lengths:
        """As runs of the model recorded them, else as assumed."""
        known = [each for each in self.kin(cfg) if each.rounds > 1 or cfg["algo"]["sampling_rounds"] == 1]
        assumed = timing.assumed_lengths(cfg)
        completion = fmean(each.completion for each in self.kin(cfg)) if self.kin(cfg) else assumed.completion
        return timing.Lengths(completion, fmean(each.rounds for each in known) if known else assumed.rounds)

    def kin(self, cfg: Resolved) -> Sequence[Pace]:
        """Finished runs of the model in this layout, else in any: lengths are the same, and the model's error nearly."""
        every = self.paces.by_model.get(measured.model_shape(cfg, self.gpu.name if self.gpu else None), ())
        return [each for each in every if measured.layout(each.cfg) == measured.layout(cfg)] or every

    def step(self, cfg: Resolved) -> tuple[float | None, str]:
        """Seconds per step, and where they come from: measured on such runs, scaled by others of the model, or reckoned."""
        same = self.paces.by_shape.get(measured.shape(cfg, self.gpu.name if self.gpu else None), ())
        if same:
            return median(each.step_s for each in same), f"measured ({len(same)} run{'s' * (len(same) > 1)})"
        if self.gpu is None or self.model is None:
            return None, "-"
        seconds = timing.step_s(cfg, self.model, self.gpu, self.lengths(cfg))
        ratios = [each.step_s / own for each in self.kin(cfg) if (own := self.reckoned(each))]
        if seconds is None or not ratios:
            return seconds, "reckoned" if seconds else "-"
        return seconds * median(ratios), f"reckoned × {median(ratios):.2g}, as {len(ratios)} of this model were measured"

    def reckoned(self, measured: Pace) -> float | None:
        """What the model says of a run that was measured, with the lengths that it had."""
        assert self.gpu and self.model
        return timing.step_s(measured.cfg, self.model, self.gpu, timing.Lengths(measured.completion, measured.rounds))

    def hours(self, cfg: Resolved) -> float | None:
        """GPU-hours of one run, its evaluation included; None where there is no GPU or something is not known."""
        if self.gpu is None or self.model is None:
            return None
        return timing.gpu_hours(cfg, self.model, self.gpu, self.step(cfg)[0] if is_trained(cfg) else None)


def estimates_by_shape(plan: Sequence[Planned], measure: bool) -> list[ShapeEstimate]:
    """One per distinct shape among the runs that are to be done; `measure`: read what finished runs recorded."""
    todo = [planned for planned in plan if planned.to_run]
    paces = measured.read_paces({planned.cfg["runs_dir"] for planned in todo}) if measure else Paces()
    shapes: dict[Any, ShapeEstimate] = {}
    for planned in todo:
        gpu = gpu_of(planned.cfg)
        key = (measured.shape(planned.cfg, gpu.name if gpu else None), planned.cfg["steps"], planned.cfg["distributed"]["name"])
        if key not in shapes:
            shapes[key] = ShapeEstimate([], gpu, architecture(planned.cfg), paces)
        shapes[key].runs.append(planned)
    return list(shapes.values())


def longest_first(todo: Sequence[Planned]) -> list[Planned]:
    """The runs in the order in which to start them: the longest first, so that none is left over for the end.

    By their seconds where all are known, else by how much is computed, of the steps that are left. What is only evaluated
    comes last.
    """
    found = [(outlook, planned) for outlook in estimates_by_shape(todo, measure=True) for planned in outlook.runs]
    known = all(outlook.step(planned.cfg)[0] is not None for outlook, planned in found if is_trained(planned.cfg))

    def length(outlook: ShapeEstimate, run: Run, cfg: Resolved) -> float:
        if not is_trained(cfg) or run.is_done("train", cfg):
            return 0.0
        work = timing.update_passes(cfg) * cfg["batch_size"] * cfg["rollout"]["max_tokens"]
        each = outlook.step(cfg)[0] if known else work
        done = max((row["step"] for row in last_rows(run, 1)), default=0)
        return float(max(0, cfg["steps"] - done) * (each or 0.0))

    lengths = {planned.run.name: length(outlook, planned.run, planned.cfg) for outlook, planned in found}
    return sorted(todo, key=lambda planned: -lengths[planned.run.name])


def refuse_unfit(plan: Sequence[Planned]) -> None:
    """Raise Refused for the first run that its GPU cannot hold."""
    for outlook in estimates_by_shape(plan, measure=False):
        if outlook.gpu and outlook.model and is_trained(outlook.cfg):
            refuse_too_large(outlook.cfg, outlook.model, outlook.gpu)


def show(plan: Sequence[Planned], console: Console) -> None:
    """Memory and time, one row per distinct shape; nothing where nothing is known."""
    found = estimates_by_shape(plan, measure=True)
    show_memory([outlook for outlook in found if outlook.memory], console)
    show_time([outlook for outlook in found if is_trained(outlook.cfg) and outlook.step(outlook.cfg)[0]], console)
    hours = [(len(outlook.runs), outlook.hours(outlook.cfg)) for outlook in found]
    if found and all(each is not None for _, each in hours):
        total = sum(count * (each or 0.0) for count, each in hours)
        console.print(f"  about {total:,.0f} GPU-hours in all, evaluations included (docs/planning.md)", highlight=False)


def show_memory(found: Sequence[ShapeEstimate], console: Console) -> None:
    if not found:
        return
    parts = list(dict.fromkeys(part for outlook in found for part in (outlook.memory.parts if outlook.memory else ())))
    kinds = dict.fromkeys(f"{outlook.gpu.product}, {outlook.gpu.memory_gib:.0f}" for outlook in found if outlook.gpu)
    table = new_table(f"GiB on each GPU ({'; '.join(kinds)} GiB), every completion at its limit")
    for column in (*(SHORT_NAMES.get(part, part) for part in parts), "peak"):
        table.add_column(column, justify="right")
    rows: dict[tuple[str, ...], list[ShapeEstimate]] = {}
    for outlook in found:
        assert outlook.memory
        sizes = [outlook.memory.parts.get(part) for part in parts] + [outlook.memory.peak]
        rows.setdefault(tuple("-" if size is None else f"{size / GIB:.1f}" for size in sizes), []).append(outlook)
    for cells, same in rows.items():
        table.add_row(*row_head(same), *cells)
    console.print(table)


def show_time(found: Sequence[ShapeEstimate], console: Console) -> None:
    """Seconds per step and GPU-hours per run, on one GPU beside the asked number: fewer are slower, and often cheaper."""
    if not found:
        return
    counts = sorted({1} | {each.cfg["distributed"]["processes"] for each in found})
    table = new_table("a run's steps")
    for column in ("tokens/step", *(cell for count in counts for cell in (f"s/step on {count}", "GPU-hours"))):
        table.add_column(column, justify="right")
    table.add_column("from", overflow="fold")
    rows: dict[tuple[str, ...], list[ShapeEstimate]] = {}
    for outlook in found:
        cfg, shown = outlook.cfg, [f"{timing.tokens_per_step(outlook.cfg, outlook.lengths(outlook.cfg)):,.0f}"]
        for count in counts:
            other = timing.on_gpus(cfg, count)
            seconds, hours = (outlook.step(other)[0], outlook.hours(other)) if fits(outlook, other) else (None, None)
            shown += [
                "-" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in (seconds, hours)
            ]
        rows.setdefault((*shown, outlook.step(cfg)[1]), []).append(outlook)
    for cells, same in rows.items():
        table.add_row(*row_head(same), *cells)
    console.print(table)


def fits(outlook: ShapeEstimate, cfg: Resolved) -> bool:
    if outlook.gpu is None or outlook.model is None:
        return True
    memory = footprint(cfg, outlook.model, outlook.gpu)
    return memory is None or memory.fits(outlook.gpu)


def new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, header_style="dim")
    table.add_column("runs", justify="right")
    table.add_column("", overflow="fold")
    return table


def row_head(same: Sequence[ShapeEstimate]) -> tuple[str, str]:
    """How many runs a row stands for, and of what."""
    labels = list(dict.fromkeys(outlook.label for outlook in same))
    words = labels[0] + (f" + {len(labels) - 1} like it" if len(labels) > 1 else "")
    return str(sum(len(outlook.runs) for outlook in same)), words
