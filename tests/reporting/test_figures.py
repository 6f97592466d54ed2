"""Test figures: the plotted numbers are those of the cells, every format is written, and a page loads no file."""

import json
import statistics
from pathlib import Path

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.samples import summarise
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.differences.baselines import families
from rlvr_sweeps.reporting.figures.catalogue import FIGURES, figures_for_report, hardest, make_figure, write_figure
from rlvr_sweeps.reporting.figures.drawing import METHODS, as_svg, styles
from rlvr_sweeps.reporting.figures.plots import Panel, Plot, Series
from rlvr_sweeps.reporting.figures.spectra import cumulative, spectrum
from rlvr_sweeps.reporting.figures.tradeoffs import costs, forest, frontier, learning_rates, parameters, reaches
from rlvr_sweeps.reporting.figures.training_curves import WINDOW, batch_sizes, rewards, smooth
from rlvr_sweeps.reporting.labels import ReportRow, report_rows
from rlvr_sweeps.reporting.lost_updates import notes
from rlvr_sweeps.reporting.page import main_table
from rlvr_sweeps.reporting.rows import cells
from rlvr_sweeps.runs.reading import find_runs
from tests.conftest import choices, requested


@pytest.fixture
def trained(evaluated):
    """Make a run with the files of training: a reward that rises from `start` by 0.01 per step, a reach `moved`, a spectrum."""

    def make(*overrides, right=2, start=0.3, trainable=10, moved=0.01, steps=5):
        run = evaluated(*overrides, "steps=5", right=right)
        cfg = run.config()
        write_json(run.record_path, {"parameters": {"trainable": trainable, "base": 1000}})
        rows = [
            {
                "step": n + 1, "reward_mean": start + n / 100, "completion_tokens_mean": 10, "sampled_groups": 2,
                "rollout_s": 1, "reward_s": 0, "update_s": 1,
            }
            for n in range(steps)
        ]  # fmt: skip
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.reach_path.write_text(json.dumps({"step": 5, "reach": {"all": moved}, "frozen_tensors_changed": 0}) + "\n")
        kind = {"layers": 1, "layers_in_all": 1, "e": [0.5, 0.3, 0.2, 0.0], "f": [0.25] * 4}
        write_json(run.analysis_path, {"spectra": {"q_proj": kind, "k_proj": {"layers": 0, "layers_in_all": 1}}})
        run.log_event("start")
        run.log_event("done")
        write_json(run.summary_path, summarise(run, cfg))
        return run

    return make


def rows_in(tmp_path):
    return report_rows(cells(find_runs(tmp_path / "runs")))


def by_label(panel):
    return {series.label: series for series in panel.series}


def test_reward_curves_are_the_smoothed_means_of_the_seeds(trained, tmp_path):
    trained("peft=lora", "seed=1", start=0.3)
    trained("peft=lora", "seed=2", start=0.5, steps=4)
    trained("peft=dora")
    [panel] = rewards(rows_in(tmp_path)).panels
    lora, dora = by_label(panel)["LoRA"], by_label(panel)["DoRA"]
    first, second = (smooth([start + n / 100 for n in range(steps)]) for start, steps in ((0.3, 5), (0.5, 4)))
    assert lora.y == pytest.approx([100 * (a + b) / 2 for a, b in zip(first, second, strict=False)])
    assert lora.x == [1, 2, 3, 4] and lora.low == pytest.approx([100 * value for value in first[:4]])
    assert dora.low is None and len(dora.y) == 5


def test_smoothing_is_a_centred_mean():
    values = [float(n % 3) for n in range(30)]
    assert smooth(values)[15] == pytest.approx(statistics.fmean(values[15 - WINDOW // 2 : 16 + WINDOW // 2]))
    assert smooth(values)[0] == pytest.approx(statistics.fmean(values[: WINDOW // 2 + 1]))


def test_accuracy_is_plotted_at_the_share_of_parameters_with_its_error(trained, evaluated, tmp_path):
    trained("peft=lora", trainable=100, right=3)
    trained("peft=full", trainable=1000, right=2)
    trained("peft=dora", trainable=10, right=1)
    evaluated("peft=none", right=0)
    rows = rows_in(tmp_path)
    [panel] = parameters(rows).panels
    lora = by_label(panel)["LoRA"]
    cell = next(row.cell for row in rows if row.label == "LoRA")
    assert panel.x_log and (lora.x, lora.y) == ([10], [pytest.approx(100 * (1 + 0.75) / 2)])
    assert lora.high == [pytest.approx(lora.y[0] + 100 * cell.error("avg"))]
    assert panel.levels == {"Base": pytest.approx(50)}
    assert by_label(panel)["Pareto frontier"].tooltips == [
        "DoRA",
        "LoRA",
    ]  # Full trains more parameters and has a lower accuracy


def test_no_point_exceeds_the_frontier():
    points = [Series(f"{x} {y}", [x], [y], [""]) for x, y in ((1, 5), (1, 7), (2, 6), (3, 8), (4, 8), (5, 9))]
    assert frontier(points).tooltips == ["1 7", "3 8", "5 9"]
    assert frontier(points[:1]) is None


def test_printed_values_are_plotted_where_a_row_has_them(trained, tmp_path):
    trained("peft=lora")
    [row] = rows_in(tmp_path)
    assert "printed" not in {series.look for series in parameters([row]).panels[0].series}
    with_printed = ReportRow(row.cell, row.label, printed={"overall": 42.5})
    [printed] = [series for series in parameters([with_printed]).panels[0].series if series.look == "printed"]
    assert (printed.x, printed.y) == ([1.0], [42.5])


def test_each_method_has_a_line_and_one_rate_gives_no_figure(trained, tmp_path):
    trained("peft=lora", "lr=1e-3", right=1, moved=0.1)
    trained("peft=dora", "lr=1e-3")
    assert learning_rates(rows_in(tmp_path)) is None
    trained("peft=lora", "lr=1e-4", right=3, moved=0.01)
    [panel] = learning_rates(rows_in(tmp_path)).panels
    lora = by_label(panel)["LoRA"]
    assert (lora.x, lora.y, lora.look) == ([1e-4, 1e-3], [pytest.approx(87.5), pytest.approx(62.5)], "joined")
    assert by_label(panel)["DoRA"].look == "points"
    assert by_label(reaches(rows_in(tmp_path)).panels[0])["LoRA"].x == [pytest.approx(1), pytest.approx(10)]


def test_what_bfloat16_weights_lost_is_stated_below_figure_and_table(trained, tmp_path):
    """Rows of one method, sampled with the nearest weights, with random rounding, and in float32."""
    for weights in ("bfloat16", "stochastic", "float32"):
        rounding = [f"rollout.weights={weights}", f"evaluation.weights={weights}"]
        run = trained("peft=lora", *rounding, moved=0.001)
        lost = {"bfloat16": 0.18, "stochastic": 1.01, "float32": None}[weights]
        row = {"step": 5, "reach": {"all": 0.001}, "frozen_tensors_changed": 0}
        if lost:
            row |= {"bfloat16_error": {"all": 0.94}, "update_kept": {"all": lost}}
        run.reach_path.write_text(json.dumps(row) + "\n")
        write_json(run.summary_path, summarise(run, run.config()))
    rows = rows_in(tmp_path)
    by_weights = {row.cell.cfg["rollout"]["weights"]: row for row in rows}
    nearest, random, exact = (
        notes([(by_weights[weights].label, by_weights[weights].cell)]) for weights in ("bfloat16", "stochastic", "float32")
    )
    assert len(nearest) == 2 and "LoRA" in nearest[0] and "18 %" in nearest[0] and "94 %" in nearest[1]
    assert len(random) == 1 and "94 %" in random[0] and exact == []
    caption = reaches(rows).caption
    below = main_table.notes([row.cell for row in rows])
    assert all(note in below for note in random) and random[0] in caption and "18 %" in caption
    assert any("18 %" in note for note in below)


def test_a_line_never_joins_two_objectives(trained, tmp_path):
    for algo, lr in (("grpo", "1e-3"), ("dapo", "1e-4"), ("dapo", "1e-3")):
        trained("peft=lora", f"algo={algo}", f"lr={lr}")
    assert {series.label: len(series.x) for series in learning_rates(rows_in(tmp_path)).panels[0].series} == {
        "LoRA DAPO": 2,
        "LoRA GRPO": 1,
    }


def test_the_forest_is_sorted_and_shows_the_reports_differences(trained, tmp_path):
    for peft, right in (("lora", 2), ("dora", 3), ("full", 1)):
        trained(f"peft={peft}", right=right)
    [panel] = forest(rows_in(tmp_path)).panels
    assert panel.names == ["DoRA", "Full"] and panel.title == "against LoRA"
    assert [series.x[0] for series in panel.series] == [pytest.approx(12.5), pytest.approx(-12.5)]
    assert all(series.low[0] <= series.x[0] <= series.high[0] for series in panel.series)


def test_the_tokens_of_a_cost_are_the_generated_ones(trained, tmp_path):
    trained("peft=lora", "rollout.group_size=4")
    tokens = costs(rows_in(tmp_path)).panels[-1]
    assert tokens.series[0].x == [pytest.approx(5 * 10 * 2 * 4 / 1e6)]


def test_energies_are_summed_over_components_and_unchanged_kinds_are_left_out(trained, tmp_path):
    trained("peft=lora")
    distribution, summed = spectrum(rows_in(tmp_path)).panels
    curve = by_label(summed)["LoRA"]
    assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 0, 100) and curve.y[-1] == pytest.approx(100)
    assert curve.y[curve.x.index(25)] == pytest.approx(50) and curve.y[curve.x.index(50)] == pytest.approx(80)
    density = by_label(distribution)["LoRA"].y
    assert statistics.fmean(density) == pytest.approx(1) and density[0] == pytest.approx(2)


def test_cumulative_energy_is_linear_within_a_bin():
    assert cumulative([0.5, 0.5], 4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert cumulative([1.0, 0.0, 0.0], 6) == pytest.approx([0, 0.5, 1, 1, 1, 1, 1])


def test_figure_5_has_a_curve_and_a_score_by_batch_size(trained, tmp_path):
    for size, right in ((16, 1), (64, 3)):
        trained("peft=lora", f"batch_size={size}", right=right)
    rows = rows_in(tmp_path)
    assert hardest(rows) == "tier2"
    curves, scores = batch_sizes(rows, "tier2").panels
    assert {series.label for series in curves.series} == {"LoRA batch 16", "LoRA batch 64"}
    assert [(series.x[0], series.y[0]) for series in scores.series] == [(16, pytest.approx(25)), (64, pytest.approx(75))]


def test_rows_without_numbers_are_left_out_and_counted(trained, tmp_path):
    trained("peft=lora")
    trained("peft=dora").analysis_path.unlink()
    plot = spectrum(rows_in(tmp_path))
    assert [series.label for series in plot.panels[1].series if series.look == "line"] == ["LoRA"]
    assert "1 of 2 rows" in plot.caption


def test_the_papers_methods_look_different_from_each_other():
    titles = [title for title in METHODS if title != "Base"]
    assert len(titles) == 13 and set(choices("peft")) >= {"full", "lora"}
    looks = styles(titles)
    assert len({(style.colour, style.dash) for style in looks.values()}) == 13
    assert len({style.marker for style in looks.values()}) == 13
    assert styles(["PiSSA"])["PiSSA"] == looks["PiSSA"]  # the same in every figure


def test_a_reports_figures_have_unique_ids_in_one_page(trained, tmp_path):
    for peft in ("lora", "dora"):
        for lr in ("1e-3", "1e-4"):
            trained(f"peft={peft}", f"lr={lr}")
    rows = cells(find_runs(tmp_path / "runs"))
    figures = figures_for_report(rows, families(rows)[0])
    assert len(figures) == 7 and all(figure.svg.startswith("<svg") and figure.caption for figure in figures)
    ids = [part.split('"')[0] for figure in figures for part in figure.svg.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert figures_for_report([], []) == []


def test_equal_numbers_give_equal_bytes(trained, tmp_path):
    trained("peft=lora")
    plot = rewards(rows_in(tmp_path))
    assert as_svg(plot, "x") == as_svg(plot, "x")


@pytest.mark.slow
def test_a_product_is_drawn_from_its_own_runs_in_every_format(trained, tmp_path, capsys):
    small = ["~benchmark.tier3", "~benchmark.tier4", "~benchmark.tier5", "steps=5", "analysis=none"]
    small += [f"benchmark.{tier}.{key}" for tier in ("tier1", "tier2") for key in ("problems=3", "k=4")]
    small += [f"benchmark.{tier}.path={tmp_path}/problems.jsonl" for tier in ("tier1", "tier2")]
    trained("peft=pissa")
    trained("peft=pissa", "lr=5e-3")  # no row of the product
    model, plot = make_figure("3", ["model=tiny", f"runs_dir={tmp_path}/runs", *small])
    assert model == "tiny"
    assert {series.label for panel in plot.panels for series in panel.series if series.look != "frontier"} == {"PiSSA"}
    assert "1 of 4 rows have finished" in plot.caption
    paths = write_figure(plot, "3", tmp_path / "out")
    assert [path.name for path in paths] == [f"figure3.{kind}" for kind in ("pdf", "png", "svg", "html")]
    beginnings = [path.read_bytes()[:4] for path in paths]
    assert beginnings == [b"%PDF", b"\x89PNG", b"<svg", b"<!do"]
    rlvr(["figure", "3", "model=tiny", f"runs_dir={tmp_path}/runs", *small, "--out", str(tmp_path / "again"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["caption"] == plot.caption and all(
        (tmp_path / "again" / Path(file).name).exists() for file in printed["files"]
    )


def test_what_is_refused_says_what_would_help(tmp_path):
    with pytest.raises(Refused, match=f"The figures are: {', '.join(FIGURES)}"):
        make_figure("2", [])
    with pytest.raises(Refused, match=r"0 of the 4 rows .* python launch.py sweep=fig3 .*model=tiny"):
        make_figure("3", ["model=tiny", f"runs_dir={tmp_path}"])


def test_a_page_reacts_to_the_mouse_and_loads_no_file(driver, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    hostile = "</script><b>x"
    series = [
        Series("LoRA", [1, 2, 3], [10, 20, 30], ["a", "b", "<i>c"]),
        Series(hostile, [1, 2, 3], [30, 20, 15], ["d", "e", "f"]),
    ]
    plot = Plot("Two & lines", [Panel("step", "reward", series)], f"Caption {hostile}")
    page = write_figure(plot, "lr", tmp_path)[-1]
    driver.get("about:blank")
    requested(driver)
    driver.get(page.as_uri())
    assert set(requested(driver)) == {page.as_uri()} and driver.get_log("browser") == []
    assert "http" not in page.read_text().replace("http://www.w3.org/", "")
    assert page.stat().st_size < 200_000

    def find(css):
        return driver.find_element("css selector", css)

    assert hostile in find("p").text
    x, y = driver.execute_script(
        "const [, x, y] = points[2]; const mark = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());"
        "return [mark.x, mark.y]"
    )
    ActionChains(driver).move_by_offset(round(x), round(y)).perform()
    assert find("#tooltip").text == "LoRA, <i>c"
    line = find("#lr-panel0-0-0")
    assert line.is_displayed()
    find("[id^='lr-legend-all-0-text']").click()
    assert not line.is_displayed() and find("#lr-panel0-1-0").is_displayed()
    find("[id^='lr-legend-all-0-text']").click()
    assert line.is_displayed()
