"""Test the rows of conf/sweep/: launches and tables use the same runs, and each value printed in the paper is in its row."""

import pytest

from rlvr_sweeps.assets.architecture import architecture, trained_parameters
from rlvr_sweeps.config.sweeps import (
    Section,
    expand,
    load_product,
    main_model,
    paper_models,
    points,
    reference,
    rows_of,
    seeds,
)
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.estimates import refuse_unfit
from rlvr_sweeps.planning.plan import make_plan
from rlvr_sweeps.reporting.sweep_results import read_row_results
from rlvr_sweeps.runs.directory import Run


def sections_of(name, model, composer):
    """Return the sections of a product, by name."""
    return load_product(name, model, composer).sections


def names(composer, product, model, *arguments):
    """Return the names of the distinct runs that a launch of a product makes."""
    overrides = [f"sweep={product}", f"model={model}", "rollout=hf", *arguments]
    return {Run.of(composer.point(point).cfg).name for point in points(sections_of(product, model, composer), model, overrides)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table5", "released", "seeds"])  # several panels; other objective and decoding; seeds
def test_a_table_shows_the_runs_that_its_sweep_launches(composer, name):
    product = load_product(name, "tiny", composer)
    rows = read_row_results(product, composer, ["model=tiny"])
    shown = {run.name for row in rows if product.sections[row.row.section].launched
             for run in row.runs}  # fmt: skip
    assert names(composer, name, "tiny") == shown


@pytest.mark.slow
def test_the_papers_tables_are_26_distinct_runs(composer):
    """14 of Table 3, 8 more around the LoRA baseline, 4 of the 7B; tables share runs, and Base has one id for all seeds."""
    runs = names(composer, "paper", "r1_qwen_1_5b", "seed=42,43")
    assert len(runs) == 1 + 2 * 25 and sum("_7b-" in name for name in runs) == 2 * 4


@pytest.mark.slow
def test_the_papers_runs_fit_the_gpus_that_they_are_planned_for(composer, tmp_path):
    overrides = ["sweep=paper", "model=r1_qwen_1_5b", "cluster=slurm", "cluster.gpu=h100", f"runs_dir={tmp_path}"]
    grid = points(sections_of("paper", "r1_qwen_1_5b", composer), "r1_qwen_1_5b", overrides)
    plan = make_plan([composer.point(point) for point in grid], retry=False)
    assert "full" in {planned.cfg["peft"]["name"] for planned in plan} and len({planned.run.name for planned in plan}) == 26
    refuse_unfit(plan)


def test_every_value_of_the_paper_is_in_a_row(composer):
    shown = {
        (section.table, row.stands_for, metric): value
        for name in ("table3", "table4", "table5", "table6")
        for key, section in sections_of(name, "r1_qwen_1_5b", composer).items()
        for row in rows_of(key, section, "r1_qwen_1_5b")
        for metric, value in row.printed.items()
    }
    assert shown == {(line["table"], line["row"], line["metric"]): float(line["percent"]) for line in reference()}


def test_rows_of_another_model_correspond_to_the_papers_rows_in_order(composer):
    rows = {row.label: row for row in load_product("table5", "tiny", composer).rows}
    assert rows["r 2"].stands_for == "r 8" and rows["r 2"].printed == {"overall": 42.3}
    assert rows["lr 5e-4"].stands_for == "lr 5e-6"
    assert rows["batch 64"].overrides == ("peft=lora", "batch_size=64")
    one_short = Section("x", ["peft=lora rank=1,8"], instead={"tiny": ["peft=lora rank=1"]})
    with pytest.raises(Refused, match="1 rows for model=tiny, but 2"):
        rows_of("x", one_short, "tiny")


def test_an_override_of_a_setting_of_the_sweep_or_of_several_models_is_refused(composer):
    rank = sections_of("rank", "tiny", composer)
    for argument, message in (("rank=3", "sets rank itself"), ("model=tiny,r1_qwen_7b", "from one model")):
        with pytest.raises(Refused, match=message):
            points(rank, "tiny", [argument])
    assert len(points(rank, "tiny", ["lr=1e-4,1e-3"])) == 8


@pytest.mark.parametrize("model", ["tiny", "smollm2_135m", "qwen3_0_6b", "r1_qwen_1_5b", "r1_qwen_7b"])
def test_the_sweep_of_modules_compares_attention_and_mlp_at_equal_numbers_of_parameters(composer, model):
    product = load_product("modules_matched", model, composer)
    counts, targets = [], []
    for row in product.rows:
        cfg = composer.point([f"model={model}", "rollout=hf", "distributed=single", *row.overrides]).cfg
        counts.append(trained_parameters(cfg, architecture(cfg)))
        targets.append(set(cfg["peft"]["config"]["target_modules"]))
    both, mlp, attention, larger_attention = counts
    assert both == mlp + attention and abs(larger_attention / mlp - 1) < 0.016
    assert targets[0] == targets[1] | targets[2] and targets[2] == targets[3] == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert [row.label.split(" r ")[0] for row in product.rows] == [
        f"modules {part}" for part in ("all", "mlp", *2 * ["attention"])
    ]


def test_rows_that_set_a_model_keep_that_model(composer):
    grid = points(sections_of("table6", "r1_qwen_1_5b", composer), "r1_qwen_1_5b", ["model=r1_qwen_1_5b"])
    assert all([override for override in point if override.startswith("model")] == ["model=r1_qwen_7b"] for point in grid)


def test_a_sweep_with_seeds_has_one_run_per_row_and_seed(composer):
    assert len(names(composer, "seeds", "tiny")) == 10
    assert len(names(composer, "seeds", "tiny", "seed=7")) == 2
    assert seeds(3) == [42, 43, 44]
    assert expand(["peft=lora rank=1,8"]) == [("peft=lora", "rank=1"), ("peft=lora", "rank=8")]


def test_the_papers_models_come_from_conf():
    assert paper_models() == {"r1_qwen_1_5b": "1.5B", "r1_qwen_7b": "7B"} and main_model() == "r1_qwen_1_5b"
