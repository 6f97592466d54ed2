"""Test spectra of an update against NumPy, on updates with known spectra, and as a stage of a run."""

import json

import numpy as np
import pytest
import torch

from rlvr_sweeps.config.identity import run_id
from rlvr_sweeps.planning.plan import Planned, action
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.methods.spectra import binned, energies, entropy_rank, spectra
from rlvr_sweeps.training.methods.svd import cached_smaller_side, smaller_side, triplets

SHAPES = [(40, 40), (24, 64), (64, 24)]


def random(*shape, seed=0):
    """Return a matrix of standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measure(change, origin):
    """Return the energies of an update that is not zero."""
    measured = energies(change, origin, smaller_side(origin))
    assert measured is not None
    return measured


@pytest.mark.parametrize("shape", SHAPES)
def test_energies_equal_numpys(shape):
    origin, change = random(*shape), random(*shape, seed=1)
    u, _, vh = np.linalg.svd(origin.double().numpy(), full_matrices=False)
    delta = change.double().numpy()
    e, f = ((delta @ vh.T) ** 2).sum(0), ((u.T @ delta) ** 2).sum(1)
    measured = measure(change, origin)
    np.testing.assert_allclose(measured.e, e / e.sum(), rtol=1e-7)
    np.testing.assert_allclose(measured.f, f / f.sum(), rtol=1e-7)
    np.testing.assert_allclose(
        [measured.e_outside, measured.f_outside], 1 - np.array([e.sum(), f.sum()]) / (delta**2).sum(), atol=1e-9
    )
    values = np.linalg.svd(delta, compute_uv=False)
    shares = values / values.sum()
    assert measured.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["principal", "minor"])
def test_an_update_among_r_components_has_all_its_energy_there(shape, side):
    origin = random(*shape)
    u, s, vh = triplets(origin, 5)[side]
    measured = measure(u @ torch.diag(s) @ vh, origin)
    components = slice(None, 5) if side == "principal" else slice(-5, None)
    for curve, outside in ((measured.e, measured.e_outside), (measured.f, measured.f_outside)):
        assert float(curve[components].sum()) == pytest.approx(1, abs=1e-9) and outside == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(curve[components], (s**2 / (s**2).sum()), rtol=1e-4)


def test_a_rotation_of_the_outputs_changes_neither_input_energies_nor_effective_rank():
    origin, change = random(24, 64), random(24, 64, seed=1)
    rotation = torch.linalg.qr(random(24, 24, seed=2).double()).Q
    before, after = measure(change, origin), measure(rotation @ change.double(), rotation @ origin.double())
    np.testing.assert_allclose(after.e, before.e, rtol=1e-6)
    assert after.effective_rank == pytest.approx(before.effective_rank)
    only_update_rotated = measure(rotation @ change.double(), origin.double())
    np.testing.assert_allclose(only_update_rotated.e, before.e, rtol=1e-6)
    assert not np.allclose(only_update_rotated.f, before.f, rtol=1e-2)


def test_a_base_of_lower_rank_still_has_orthonormal_components():
    origin = random(30, 6) @ random(6, 20, seed=1)
    measured = measure(random(30, 20, seed=2), origin)
    assert float(measured.e.sum()) == pytest.approx(1) and measured.e_outside == pytest.approx(0, abs=1e-9)


def test_the_effective_rank_of_equal_values_is_their_number():
    assert entropy_rank(torch.tensor([2.0, 2.0, 2.0, 0.0], dtype=torch.float64)) == pytest.approx(3)


def test_an_unchanged_layer_has_no_energies_and_is_in_no_mean():
    origin = {f"layers.{n}.q_proj.weight": random(16, 16, seed=n) for n in range(3)}
    final = {name: weight.clone() for name, weight in origin.items()}
    final["layers.1.q_proj.weight"] += 0.1 * random(16, 16, seed=9)
    by_kind = spectra(final.items(), origin, ["q_proj", "k_proj"], lambda _, weight: smaller_side(weight))
    expected = measure(final["layers.1.q_proj.weight"] - origin["layers.1.q_proj.weight"], origin["layers.1.q_proj.weight"])
    assert list(by_kind) == ["q_proj"] and (by_kind["q_proj"]["layers"], by_kind["q_proj"]["layers_in_all"]) == (1, 3)
    np.testing.assert_allclose(by_kind["q_proj"]["e"], expected.e, rtol=1e-5)
    assert spectra(origin.items(), origin, ["q_proj"], lambda _, weight: smaller_side(weight)) == {
        "q_proj": {"layers": 0, "layers_in_all": 3}
    }


@pytest.mark.parametrize("components", [7, 256, 257, 1536])
def test_bins_sum_to_one_and_are_at_most_256(components):
    curve = random(components).abs()
    bins = binned(curve / curve.sum())
    assert len(bins) == min(256, components) and sum(bins) == pytest.approx(1, abs=1e-5)


def test_singular_vectors_are_computed_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weight = random(8, 12)
    first = cached_smaller_side("model")("q_proj.weight", weight)
    cached = cached_smaller_side("model")("q_proj.weight", torch.zeros_like(weight))  # the cache uses the name, not the weight
    assert torch.equal(first, cached) and torch.allclose(first, smaller_side(weight), atol=1e-6)


def test_base_and_configurations_without_the_setting_have_no_analysis_stage(point):
    trained, base = point("peft=lora"), point("peft=none")
    assert Run.of(trained).stages(trained) == ["train", "evaluate", "analyse"] and Run.of(base).stages(base) == ["evaluate"]
    without = {key: value for key, value in trained.items() if key != "analysis"}
    assert run_id(without) == run_id(trained) and Run.of(without).stages(without) == ["train", "evaluate"]


def test_a_launch_with_analysis_only_analyses_a_finished_run(evaluated):
    run = evaluated("analysis=none")
    assert run.state() == "done"
    cfg = run.config() | {"analysis": "final"}
    assert run.state(cfg) == "stale" and [run.is_done(stage, cfg) for stage in run.stages(cfg)] == [True, True, False]
    assert action(Planned(run, cfg, "stale", True, 1)) == "analyse"
    run.analysis_path.write_text("{}")
    run.finish("analyse", cfg, 1.0)
    assert run.state(cfg) == "done"
    run.finish("train", cfg, 1.0)
    assert not run.is_done("analyse", cfg)


@pytest.mark.slow
def test_a_run_is_analysed_against_the_original_weights_also_at_checkpoints(launch):
    small = ("steps=4", "batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24", "training.save_every=2")
    one_sample = [f"benchmark.tier{n}.k=1" for n in range(1, 6)]
    launch("-m", "peft=pissa", "lr=1e-6", "dropout=0", "analysis=checkpoints", *small, *one_sample)
    [path] = launch.runs.glob("*/analysis.json")
    analysis = json.loads(path.read_text())
    assert set(analysis["spectra"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # PiSSA trains the first r triplets of W0: a small update stays among them if it is compared with W0, not with the residual.
    assert all(sum(kind["e"][:8]) > 0.5 for kind in analysis["spectra"].values())
    assert all(kind["effective_rank"] <= 16.5 for kind in analysis["spectra"].values())
    assert analysis["drift"]["frozen_tensors_changed"] == 0 and analysis["sampler"]["sampler_kl"] is None
    rows = [json.loads(line) for line in (path.parent / "spectra.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    np.testing.assert_allclose(rows[-1]["spectra"]["q_proj"]["e"], analysis["spectra"]["q_proj"]["e"], atol=1e-4)
    before = path.stat().st_mtime_ns
    launch("-m", "peft=pissa", "lr=1e-6", "dropout=0", "analysis=checkpoints", *small, *one_sample)
    assert path.stat().st_mtime_ns == before
