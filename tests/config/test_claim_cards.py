"""Test the claim cards of conf/claim: they name rows of their sweeps, sweep=claims launches them, wrong cards are refused."""

import pytest
import yaml

from rlvr_sweeps.config.claims import BEST_LR, claim_names, load_claims, read_claim, rows_named
from rlvr_sweeps.config.lr_grid import HELD_OUT_OVERRIDES
from rlvr_sweeps.config.sweeps import expand, load_product, points
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.runs.directory import Run

CARD = {
    "title": "DoRA is better.",
    "source": {"paper": "a paper", "section": "Table 3", "model": "a model"},
    "sweep": "methods",
    "contrasts": [{"left": "peft=dora", "right": "peft=lora"}],
    "direction": "greater",
    "smallest_effect": 1.0,
    "reason": "because",
}


def written(tmp_path, **changes):
    """Write a card with some keys changed (None: left out); return its path."""
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (CARD | changes).items() if value is not None}))
    return path


@pytest.mark.parametrize("model", ["tiny", pytest.param("r1_qwen_1_5b", marks=pytest.mark.exhaustive)])
def test_every_selector_names_rows_of_its_sweep_and_sweep_claims_has_them(composer, model):
    launched = {frozenset(row.written) for row in load_product("claims", model, composer).rows}
    held_out = set(expand([" ".join(HELD_OUT_OVERRIDES)])[0])
    for claim in load_claims():
        product = load_product(claim.sweep, model, composer)
        for selector in claim.selectors:
            rows = rows_named(selector, product)
            tuned = BEST_LR in selector.split()
            assert len(rows) == (4 if tuned else 1)
            assert {frozenset({*row.written, *(held_out if tuned else ())}) for row in rows} <= launched


@pytest.mark.exhaustive
def test_the_runs_of_sweep_claims_are_those_of_the_cards_sweeps(composer):
    def names(sweep, kept):
        sections = load_product(sweep, "tiny", composer).sections
        grid = points(sections, "tiny", [f"sweep={sweep}", "model=tiny"])
        return {Run.of(composer.point(point).cfg).name for point in grid if kept(point)}

    launched = names("claims", lambda _point: True)
    for sweep in {claim.sweep for claim in load_claims()}:
        cards = [claim for claim in load_claims() if claim.sweep == sweep]
        wanted = [row.overrides for each in cards for name in each.selectors
                  for row in rows_named(name, load_product(sweep, "tiny", composer))]  # fmt: skip
        assert names(sweep, lambda point, rows=wanted: any(set(row) <= set(point) for row in rows)) <= launched


def test_a_selector_reads_numbers_as_the_sweep_does_and_an_unknown_row_is_refused(composer):
    product = load_product("lr", "tiny", composer)
    (row,) = rows_named("lr=0.00001 peft=lora", product)
    assert row.overrides == ("peft=lora", "lr=0.001")  # the row of another model at the same position
    with pytest.raises(Refused, match=r"no row peft=dora\. Its rows: peft=lora lr=1e-06; peft=lora lr=5e-06"):
        rows_named("peft=dora", product)


def test_a_card_is_read_with_its_defaults(tmp_path):
    claim = read_claim(written(tmp_path))
    assert claim.name == "card" and claim.combine == "all" and claim.alpha == 0.05 and claim.overrides == ()
    assert claim.contrasts[0].label == "peft=dora − peft=lora" and claim.intervals == 1
    sides = {
        "left": ["peft=dora", "peft=miss"],
        "left_reference": "peft=none",
        "right": "peft=lora",
        "right_reference": "peft=full",
    }
    assert read_claim(written(tmp_path, contrasts=[sides])).contrasts[0].label == (
        "(peft=dora + peft=miss − peft=none) − (peft=lora − peft=full)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smalest_effect": 1}, r"has no key 'smalest_effect'. Did you mean smallest_effect\?"),
        ({"title": None}, "lacks title"),
        ({"direction": "more"}, "direction=more is not possible. Allowed: greater, less, equivalent"),
        ({"combine": "any"}, "combine=any is not possible. Allowed: all, mean"),
        ({"sweep": "metods"}, "sweep=metods is not possible. Allowed: .*methods"),
        ({"smallest_effect": 0}, "smallest_effect=0 is not possible"),
        ({"smallest_effect": "one"}, "smallest_effect=one is not possible"),
        ({"alpha": 1}, "alpha=1 is not possible"),
        ({"contrasts": "peft=dora"}, "contrasts must be a list"),
        ({"contrasts": [{"left": "peft=dora"}]}, "lacks right"),
        ({"contrasts": [{"left": "dora", "right": "peft=lora"}]}, "left: 'dora' is not possible"),
        ({"contrasts": [{"left": "peft=dora", "right": "peft=lora", "left_reference": "peft=full"}]}, "both or none"),
        ({"source": "a paper"}, "source must be a mapping"),
        ({"source": {"paper": "a paper", "section": "1"}}, "source lacks model"),
    ],
)
def test_a_wrong_card_is_refused_with_its_file_and_key(tmp_path, changes, message):
    with pytest.raises(Refused, match=rf"(?s)card\.yaml.*{message}"):
        read_claim(written(tmp_path, **changes))


def test_an_unknown_claim_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(Refused, match=r"no claim 'dora_beats_lor' in conf/claim/. Did you mean dora_beats_lora\?"):
        load_claims(["dora_beats_lor"])
    assert "dora_beats_lora" in claim_names()
    (tmp_path / "card.yaml").write_text("title: [")
    with pytest.raises(Refused, match="cannot be read"):
        read_claim(tmp_path / "card.yaml")
