"""Make W&B views of a sweep's curves and table (`rlvr wandb workspace`, `rlvr wandb report`).

Both select the runs that the sweep's definition launches, by id, so a baseline shared by two sweeps is in the views of both.
Each call saves a new view at a new address.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.schema import TrackingConf
from rlvr_sweeps.config.sweeps import key_of, load_product
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.reporting.sweep_results import RowResult, read_row_results
from rlvr_sweeps.reporting.tracking.names import GROUPS, STEP
from rlvr_sweeps.reporting.tracking.sync import require_key

SHOWN_CURVES = (
    "reward/accuracy",
    "completion/length",
    "completion/cut_off",
    "policy/entropy",
    "policy/grad_norm",
    "reward/std",
)
SCORES = ("avg", "avg_se", "pass", "majority", "truncated_share", "stopped_early")
WIDE = {"w": 12, "h": 8}


def axes_of(rows: Sequence[RowResult]) -> list[str]:
    """Return the keys of overrides whose values differ between a product's rows."""
    keys = dict.fromkeys(key_of(override) for row in rows for override in row.row.overrides)
    settings = [dict(override.split("=", 1) for override in row.row.overrides) for row in rows]
    return [key for key in keys if len({values.get(key) for values in settings}) > 1]


def make_workspace(title: str, axes: Sequence[str], rows: Sequence[RowResult], target: dict[str, Any]) -> Any:
    """Return a `wandb_workspaces` workspace: a section of curves for each axis, averaged over the other axes."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as views

    ids = sorted({run.id for row in rows for run in row.runs})
    sections = [views.Section(name=f"by {axis}", panels=curves(reports, axis), is_open=True) for axis in axes]
    scores = views.Section(name="benchmarks", panels=[bars(reports, rows)], is_open=True)
    return views.Workspace(
        name=title, entity=target["entity"], project=target["project"], sections=[scores, *sections],
        auto_generate_panels=False, settings=views.WorkspaceSettings(x_axis=STEP),
        runset_settings=views.RunsetSettings(filters=[views.Metric("ID").isin(ids)], pinned_columns=columns(axes)),
    )  # fmt: skip


def make_report(title: str, axes: Sequence[str], rows: Sequence[RowResult], target: dict[str, Any]) -> Any:
    """Return a `wandb_workspaces` report: the sweep's rows as a table of runs, their benchmarks, then curves for each axis."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as views

    names = {run.id: run.name for row in rows for run in row.runs}

    def grid(*panels: Any) -> Any:
        runs = reports.Runset(
            entity=target["entity"], project=target["project"], name=title, filters=[views.Metric("ID").isin(sorted(names))],
            pinned_columns=columns(axes),
        )  # fmt: skip
        return reports.PanelGrid(runsets=[runs], panels=list(panels))

    blocks = [
        reports.H1(text=title),
        reports.P(text=f"{len(names)} runs: {', '.join(sorted(names.values()))}."),
        grid(bars(reports, rows), reports.WeavePanelSummaryTable(table_name="table/benchmarks")),
    ]
    for axis in axes:
        blocks += [reports.H2(text=f"By {axis}"), grid(*curves(reports, axis))]
    return reports.Report(
        entity=target["entity"], project=target["project"], title=title, blocks=blocks, width="fluid",
        description="Scores are shares from 0 to 1. For standard errors and tests over seeds, use `rlvr compare`.",
    )  # fmt: skip


def curves(reports: Any, axis: str) -> list[Any]:
    """Return a plot per curve, grouped by the axis; the band is the standard error over the runs of a value."""
    return [
        reports.LinePlot(
            title=name, x=STEP, y=[name], groupby=reports.Config(GROUPS.get(axis, axis)), groupby_aggfunc="mean",
            groupby_rangefunc="stderr", layout=reports.Layout(x=12 * (index % 2), y=8 * (index // 2), **WIDE),
        )
        for index, name in enumerate(SHOWN_CURVES)
    ]  # fmt: skip


def bars(reports: Any, rows: Sequence[RowResult]) -> Any:
    """Return a bar plot of each run's Avg@k, over all benchmarks and on each."""
    names = dict.fromkeys(f"{benchmark}/avg" for row in rows for benchmark in row.cfg["benchmark"])
    return reports.BarPlot(
        title="Avg@k", metrics=[reports.SummaryMetric(name) for name in ("avg", *names)], layout=reports.Layout(**WIDE)
    )


def columns(axes: Sequence[str]) -> list[str]:
    """Return the pinned columns of the table of runs: the axes, then the scores."""
    return [f"config:{GROUPS.get(axis, axis)}.value" for axis in axes] + [f"summary:{score}" for score in SCORES]


def save(kind: str, sweep: str, model: str, overrides: dict[str, str], console: Console) -> None:
    """Save the workspace or report (`kind`) on W&B and print its address; raises Refused where W&B rejects it."""
    require_key()
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    composer = offline_composer()
    product = load_product(sweep, model, composer)
    rows = read_row_results(product, composer, [f"model={model}"], source=lambda *_: None)
    tracking = asdict(TrackingConf()) | rows[0].cfg["tracking"] | overrides
    target = {"entity": tracking["entity"] or wandb.Api().default_entity, "project": tracking["project"]}
    make = make_workspace if kind == "workspace" else make_report
    try:
        view = make(f"{product.title} on {model}", axes_of(rows), rows, target)
        view.save()
    except (wandb.errors.CommError, WandbApiFailedError, ValueError) as error:
        raise Refused(
            f"W&B rejected the {kind} for {target['entity']}/{target['project']}: {' '.join(str(error).split())[:300]}"
        ) from None
    console.print(view.url, highlight=False, soft_wrap=True)
