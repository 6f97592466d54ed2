"""Estimate what the runs of a plan will take (memory by part, seconds per step, GPU-hours) and refuse those that do not fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from rlvr_sweeps.assets.architecture import Architecture, architecture
from rlvr_sweeps.assets.locations import EMBEDDED
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import gpu_count, is_trained, rank_of
from rlvr_sweeps.errors import Damaged
from rlvr_sweeps.planning import measured, timing
from rlvr_sweeps.planning.hardware import GIB, Gpu, accuracy, calibration, gpu_of, known_gpus
from rlvr_sweeps.planning.host_memory import HostFootprint, HostLimit, host_footprint, refuse_too_little
from rlvr_sweeps.planning.measured import Pace, Paces
from rlvr_sweeps.planning.memory import Footprint, footprint, refuse_too_large
from rlvr_sweeps.planning.plan import Planned
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import last_rows

SHORT_NAMES = {"gradients and optimizer": "grad+opt", "activations": "activ.", "vLLM's weights": "vLLM", "KV cache": "KV"}


@dataclass
class ShapeEstimate:
    """Runs that take the same memory and time, such as those of several seeds or learning rates, with their estimates."""

    runs: list[Planned]
    gpu: Gpu | None  # None: no GPU, or one of unknown kind
    model: Architecture | None  # None: not known before the model is there
    paces: Paces  # of the finished runs in the same folder

    @property
    def cfg(self) -> Resolved:
        return self.runs[0].cfg

    @property
    def label(self) -> str:
        """Model, method, rank and objective, for the first column of the tables."""
        method = self.cfg["peft"]
        rank = rank_of(self.cfg)
        algo = f" {self.cfg['algo']['title']}" if is_trained(self.cfg) else ""
        return f"{self.cfg['model']['name']} {method['title']}{f' r={rank}' if rank else ''}{algo}"

    @cached_property
    def memory(self) -> Footprint | None:
        """Memory of one training run; None for an untrained run, and where the GPU or the architecture is not known."""
        return footprint(self.cfg, self.model, self.gpu) if self.gpu and self.model and is_trained(self.cfg) else None

    @cached_property
    def host(self) -> HostFootprint | None:
        """Host memory of one run's training job on a node, of its evaluation for an untrained run; None as for `memory`."""
        stage = "train" if is_trained(self.cfg) else "evaluate"
        return host_footprint(self.cfg, self.model, stage) if self.gpu and self.model else None

    def lengths(self, cfg: Resolved) -> timing.Lengths:
        """Return completion length and sampling rounds: means over comparable finished runs, else the assumed values."""
        paces, assumed = self.comparable_paces(cfg), timing.assumed_lengths(cfg)
        rounds = [pace.rounds for pace in paces if pace.rounds > 1 or cfg["algo"]["sampling_rounds"] == 1]
        completion = fmean(pace.completion for pace in paces) if paces else assumed.completion
        return timing.Lengths(completion, fmean(rounds) if rounds else assumed.rounds)

    def comparable_paces(self, cfg: Resolved) -> Sequence[Pace]:
        """Return the finished runs of the same model in the same process layout; without any, those in other layouts.

        Between layouts the lengths are equal and the relative error of the time model is similar.
        """
        paces = self.paces.by_model.get(measured.model_shape(cfg, self.gpu.name if self.gpu else None), ())
        return [pace for pace in paces if measured.layout(pace.cfg) == measured.layout(cfg)] or paces

    def step_time(self, cfg: Resolved) -> tuple[float | None, str]:
        """Return seconds per step and their source: measured on runs of this shape, or estimated by the time model.

        Where other runs of the same model were measured, the estimate is scaled by the median of measured to modelled time.
        """
        same = self.paces.by_shape.get(measured.shape(cfg, self.gpu.name if self.gpu else None), ())
        if same:
            return median(pace.step_s for pace in same), f"measured ({len(same)} run{'s' * (len(same) > 1)})"
        if self.gpu is None or self.model is None:
            return None, "-"
        seconds = timing.step_s(cfg, self.model, self.gpu, self.lengths(cfg))
        ratios = [pace.step_s / modelled for pace in self.comparable_paces(cfg) if (modelled := self.modelled_step_s(pace))]
        if seconds is None or not ratios:
            return seconds, "estimated" if seconds else "-"
        runs = f"{len(ratios)} measured run{'s' * (len(ratios) > 1)} of this model"
        return seconds * median(ratios), f"estimated × {median(ratios):.2g}, from {runs}"

    @property
    def basis(self) -> str:
        """What the time model's seconds rest on, and the share by which they may differ; empty without a GPU."""
        if self.gpu is None:
            return ""
        entry = calibration(self.gpu)
        basis = (
            f"constants measured on {entry['machine']}, {entry['date']}" if entry else f"the data sheet of {self.gpu.product}"
        )
        return f"estimated: from {basis}, ± {100 * accuracy(self.gpu):.0f} %"

    def modelled_step_s(self, pace: Pace) -> float | None:
        """Return the time model's seconds per step for a measured run, with the lengths that the run recorded."""
        assert self.gpu and self.model
        return timing.step_s(pace.cfg, self.model, self.gpu, timing.Lengths(pace.completion, pace.rounds))

    def hours(self, cfg: Resolved) -> float | None:
        """Return the GPU-hours of one run with its evaluation; None without a GPU, or where a part cannot be estimated."""
        if self.gpu is None or self.model is None:
            return None
        return timing.gpu_hours(cfg, self.model, self.gpu, self.step_time(cfg)[0] if is_trained(cfg) else None)


def estimates_by_shape(plan: Sequence[Planned], measure: bool) -> list[ShapeEstimate]:
    """Return one estimate per distinct shape among the runs to do; `measure`: read the times that finished runs recorded."""
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
    """Return the runs in the order in which to start them, the longest first, so that no long run is left for the end.

    Lengths are the seconds of the remaining steps where all are known, else the token positions to compute. Runs that are only
    evaluated come last.
    """
    pairs = [(estimate, planned) for estimate in estimates_by_shape(todo, measure=True) for planned in estimate.runs]
    known = all(estimate.step_time(planned.cfg)[0] is not None for estimate, planned in pairs if is_trained(planned.cfg))

    def length(estimate: ShapeEstimate, run: Run, cfg: Resolved) -> float:
        if not is_trained(cfg) or run.is_done("train", cfg):
            return 0.0
        work = timing.update_passes(cfg) * cfg["batch_size"] * cfg["rollout"]["max_tokens"]
        per_step = estimate.step_time(cfg)[0] if known else work
        try:
            done = max((row["step"] for row in last_rows(run, 1, ("step",))), default=0)
        except Damaged:  # the order needs no exact number; the training itself refuses the file
            done = 0
        return float(max(0, cfg["steps"] - done) * (per_step or 0.0))

    lengths = {planned.run.name: length(estimate, planned.run, planned.cfg) for estimate, planned in pairs}
    return sorted(todo, key=lambda planned: -lengths[planned.run.name])


def refuse_unfit(plan: Sequence[Planned], host_limit: HostLimit | None = None) -> None:
    """Raise Refused for the first run that does not fit its GPU, or the host memory of its job."""
    for estimate in estimates_by_shape(plan, measure=False):
        if estimate.gpu and estimate.model and is_trained(estimate.cfg):
            refuse_too_large(estimate.cfg, estimate.model, estimate.gpu)
        if estimate.gpu and estimate.model and host_limit:
            refuse_too_little(estimate.cfg, estimate.model, host_limit)


def show(plan: Sequence[Planned], console: Console) -> None:
    """Print memory and time, one row per distinct shape; without a known GPU, how to estimate for one."""
    estimates = estimates_by_shape(plan, measure=True)
    if any(without_gpu(estimate) for estimate in estimates):
        gpus = ", ".join(known_gpus())
        console.print(
            f"No known GPU is here, so memory and hours are not estimated. For one: cluster.gpu=NAME ({gpus}).", highlight=False
        )
    show_memory([estimate for estimate in estimates if estimate.memory], console)
    show_host_memory([estimate for estimate in estimates if estimate.host], console)
    show_time([estimate for estimate in estimates if is_trained(estimate.cfg) and estimate.step_time(estimate.cfg)[0]], console)
    hours = [(len(estimate.runs), estimate.hours(estimate.cfg)) for estimate in estimates]
    if estimates and all(per_run is not None for _, per_run in hours):
        total = sum(count * (per_run or 0.0) for count, per_run in hours)
        console.print(
            f"  about {three_digits(total)} GPU-hours in all, evaluations included (docs/planning.md)", highlight=False
        )


def without_gpu(estimate: ShapeEstimate) -> bool:
    """Return whether estimates are left out only because no known GPU is here; the embedded models need none."""
    cfg = estimate.cfg
    on_cpus = cfg["cluster"]["name"] == "slurm" and gpu_count(cfg["cluster"]["train"]["gpus_per_node"]) == 0
    is_embedded = cfg["model"]["path"].startswith(EMBEDDED)
    return estimate.gpu is None and cfg["cluster"]["gpu"] == "auto" and not on_cpus and not is_embedded


def show_memory(estimates: Sequence[ShapeEstimate], console: Console) -> None:
    """Print the memory of one GPU by part; runs with equal numbers share a row."""
    if not estimates:
        return
    kinds = dict.fromkeys(f"{estimate.gpu.product}, {estimate.gpu.memory_gib:.0f}" for estimate in estimates if estimate.gpu)
    title = f"GiB on each GPU ({'; '.join(kinds)} GiB) with every completion at its limit"
    show_parts(title, [(estimate, estimate.memory) for estimate in estimates if estimate.memory], console)


def show_host_memory(estimates: Sequence[ShapeEstimate], console: Console) -> None:
    """Print the host memory of a training job on one node by part; of an evaluation for untrained runs."""
    pairs = [(estimate, estimate.host) for estimate in estimates if estimate.host]
    if pairs:
        show_parts("GiB of host memory on each node (mem_gb); loading and export at different times", pairs, console)


def show_parts(title: str, pairs: Sequence[tuple[ShapeEstimate, Footprint | HostFootprint]], console: Console) -> None:
    """Print a table of memory by part and its peak; runs with equal numbers share a row."""
    parts = list(dict.fromkeys(part for _, memory in pairs for part in memory.parts))
    table = new_table(title)
    for column in (*(SHORT_NAMES.get(part, part) for part in parts), "peak"):
        table.add_column(column, justify="right")
    rows: dict[tuple[str, ...], list[ShapeEstimate]] = {}
    for estimate, memory in pairs:
        sizes = [memory.parts.get(part) for part in parts] + [memory.peak]
        rows.setdefault(tuple("-" if size is None else f"{size / GIB:.1f}" for size in sizes), []).append(estimate)
    for cells, same in rows.items():
        table.add_row(*row_head(same), *cells)
    console.print(table)


def show_time(estimates: Sequence[ShapeEstimate], console: Console) -> None:
    """Print seconds per step and GPU-hours per run, on the configured number of GPUs and on one (slower, often cheaper)."""
    if not estimates:
        return
    counts = sorted({1} | {estimate.cfg["distributed"]["processes"] for estimate in estimates})
    bases = dict.fromkeys(estimate.basis for estimate in estimates if estimate.basis)
    table = new_table("; ".join(["time of one run", *bases]))
    for column in ("tokens/step", *(cell for count in counts for cell in (f"s/step on {count}", "GPU-hours"))):
        table.add_column(column, justify="right")
    table.add_column("source", overflow="fold")
    rows: dict[tuple[str, ...], list[ShapeEstimate]] = {}
    for estimate in estimates:
        cfg, shown = estimate.cfg, [f"{timing.tokens_per_step(estimate.cfg, estimate.lengths(estimate.cfg)):,.0f}"]
        for count in counts:
            other = timing.on_gpus(cfg, count)
            seconds, hours = (estimate.step_time(other)[0], estimate.hours(other)) if fits(estimate, other) else (None, None)
            shown += ["-" if value is None else three_digits(value) for value in (seconds, hours)]
        rows.setdefault((*shown, estimate.step_time(cfg)[1]), []).append(estimate)
    for cells, same in rows.items():
        table.add_row(*row_head(same), *cells)
    console.print(table)


def three_digits(value: float) -> str:
    """Return a number with three significant digits, from 100 on without decimals."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def fits(estimate: ShapeEstimate, cfg: Resolved) -> bool:
    """Return whether a variant of the runs fits the GPU; True where this is not known."""
    if estimate.gpu is None or estimate.model is None:
        return True
    memory = footprint(cfg, estimate.model, estimate.gpu)
    return memory is None or memory.fits(estimate.gpu)


def new_table(title: str) -> Table:
    """Return a table with the columns of row_head."""
    table = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, header_style="dim")
    table.add_column("runs", justify="right")
    table.add_column("", overflow="fold")
    return table


def row_head(same: Sequence[ShapeEstimate]) -> tuple[str, str]:
    """Return the number of runs of a row and their label."""
    labels = list(dict.fromkeys(estimate.label for estimate in same))
    label = labels[0] + (f" + {len(labels) - 1} like it" if len(labels) > 1 else "")
    return str(sum(len(estimate.runs) for estimate in same)), label
