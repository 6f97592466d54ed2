"""Test Table 4: counts on the true shapes, against numbers computed by hand and by a second program."""

import json

import pytest

from rlvr_sweeps.assets.architecture import architecture, linear_shapes
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.sweeps import load_product
from rlvr_sweeps.reporting.tables.formats import Entry
from rlvr_sweeps.reporting.tables.parameters import count_rows, printed_shares
from rlvr_sweeps.reporting.tables.render import make
from tests.conftest import ROOT

GOLDEN = json.loads((ROOT / "tests/assets/golden_counts.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("row", GOLDEN)
def test_counts_on_both_models(composer, row):
    (counted,) = count_rows(composer, [row])
    assert list(counted.trained) == GOLDEN[row]


def test_vera_on_q_and_v_is_the_printed_share(composer):
    (counted,) = count_rows(composer, ["vera_qv"])
    assert counted.trained[0] == 51_968 and round(counted.shares[0], 4) == printed_shares()["vera"] == 0.0029


def test_lora_by_hand(composer):
    """Test r · (in + out) of seven modules in 28 layers."""
    shapes = linear_shapes(architecture(composer.point(["model=r1_qwen_1_5b", "rollout=hf", "distributed=single"]).cfg))
    assert sum(32 * sum(shape) for name, shape in shapes.items() if name != "lm_head") * 28 == GOLDEN["lora"][0]


def test_the_configured_shapes_are_the_models(composer, model):
    configured = composer.point([]).cfg["model"]["architecture"]
    assert {key: getattr(model.config, key) for key in configured} == configured
    shapes = linear_shapes(configured)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in shapes:
            assert tuple(module.weight.shape) == shapes[name.rpartition(".")[2]], name


@pytest.mark.slow
def test_the_table_marks_printed_shares_that_differ():
    _, sheet = make("table4", [])
    rows = {line.entries["row"].value: line.entries for line in sheet.blocks["The paper's rows"]}
    assert rows["VeRA"]["printed"].star and rows["VeRA"]["printed"].value == 0.0029
    assert rows["Full"]["printed"] == Entry(100)
    assert "vera_qv" in sheet.notes[0] and "Full" not in sheet.notes[0]
    counted = {" ".join(row.overrides).removeprefix("peft=") for row in load_product("table4", "tiny", offline_composer()).rows}
    assert counted == set(GOLDEN)
