"""Plots of finished runs as SVG text; matplotlib, without a display."""

import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from rlvr_sweeps.collect import Cell, reward_curves
from rlvr_sweeps.identity import is_trained

# Okabe and Ito's palette: told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
WINDOW = 9  # steps of the moving average


class Drawn(NamedTuple):
    """A figure to be put into a page: `svg` starts with `<svg`, its ids are unique in the page; `caption` is plain text."""

    title: str
    svg: str
    caption: str


def figures_for_report(rows: Sequence[Cell]) -> list[Drawn]:
    """Every figure that these rows of a report have the numbers for, in reading order; none for no rows."""
    rewards = reward_figure(rows)
    return [Drawn("Reward during training", rewards, f"Accuracy reward, mean of {WINDOW} steps.")] if rewards else []


def smooth(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Centred moving average; shorter windows at the ends."""
    half = window // 2
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def reward_figure(cells: Sequence[Cell]) -> str | None:
    """Reward against step, a panel per objective, a line per row, a band from the lowest to the highest seed."""
    trained = [cell for cell in cells if is_trained(cell.cfg)]
    objectives = list(dict.fromkeys(cell.cfg["algo"]["title"] for cell in trained))
    if not trained:
        return None
    labels = list(dict.fromkeys(label(cell, trained) for cell in trained))
    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "rlvr"}
    with rc_context(settings):
        figure = Figure(figsize=(5.2 * len(objectives), 3.6), layout="constrained")
        axes = figure.subplots(1, len(objectives), sharey=True, squeeze=False)[0]
        for axis, objective in zip(axes, objectives, strict=True):
            for cell in (cell for cell in trained if cell.cfg["algo"]["title"] == objective):
                name = label(cell, trained)
                colour = COLOURS[labels.index(name) % len(COLOURS)]
                curves = [smooth(curve) for curve in reward_curves(cell) if curve]
                if not curves:
                    continue
                steps = range(1, min(map(len, curves)) + 1)
                columns = [[curve[step - 1] for curve in curves] for step in steps]
                axis.plot(steps, [statistics.fmean(column) for column in columns], color=colour, label=name, linewidth=1.8)
                if len(curves) > 1:
                    axis.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0)
            axis.set_title(objective, fontsize=11, loc="left", fontweight="bold")
            axis.set_xlabel("optimizer step")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#dddddd", linewidth=0.6)
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel(f"accuracy reward, mean of {WINDOW} steps")
        axes[-1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def label(cell: Cell, among: Sequence[Cell]) -> str:
    """The method's title, and whatever else tells rows of this method and objective apart."""
    cfg = cell.cfg
    rivals = [
        other.cfg for other in among
        if (other.cfg["peft"]["name"], other.cfg["algo"]["name"]) == (cfg["peft"]["name"], cfg["algo"]["name"])
    ]  # fmt: skip
    parts = [cfg["peft"]["title"]]
    for dial, name in (
        ("rank", "r"),
        ("lr", "lr"),
        ("batch_size", "batch"),
        ("dropout", "dropout"),
        ("steps", "steps"),
    ):
        if len({other[dial] for other in rivals}) > 1:
            parts.append(f"{name} {cfg[dial]:g}")
    if len({other["model"]["name"] for other in (c.cfg for c in among)}) > 1:
        parts.append(cfg["model"]["name"])
    return " ".join(parts)
