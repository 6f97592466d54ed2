"""Test evaluation by vLLM on the CPU, which `make venv-vllm` installs in a separate environment."""

import json
import os

import pytest

from rlvr_sweeps.evaluation.evaluate import evaluate
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

ON_CPU = (  # without chunked prefill, which needs an offset that seeded generators on the CPU lack
    "+evaluation.vllm.kv_cache_memory_bytes=268435456", "+evaluation.vllm.enforce_eager=true",
    "+evaluation.vllm.max_num_batched_tokens=32768",
)  # fmt: skip


@pytest.fixture
def base(composer, tmp_path):
    """Return a function that evaluates the base model with an engine, in the given folder, and returns the run."""

    def evaluated(engine, folder, *overrides):
        cfg = composer.point(
            ["peft=none", *ON_CPU, f"evaluation.engine={engine}", f"runs_dir={tmp_path}/{folder}", *overrides]
        ).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        evaluate(run, cfg)
        return run

    return evaluated


def test_both_engines_measure_the_same_model(base):
    by_transformers, by_vllm = (read_json(base(engine, engine).summary_path) for engine in ("transformers", "vllm"))
    assert (by_transformers["engine"], by_vllm["engine"]) == ("transformers", "vllm")
    assert by_transformers["evaluation"] == by_vllm["evaluation"]
    difference = abs(by_transformers["avg"] - by_vllm["avg"])
    assert difference < 4 * (by_transformers["avg_se"] ** 2 + by_vllm["avg_se"] ** 2) ** 0.5


def test_a_sample_depends_only_on_its_seed(base):
    """Compare the completions of another batch order, and those that follow after some exist already."""
    fewer = [f"~benchmark.tier{tier}" for tier in (3, 4, 5)]
    first = base("vllm", "first", *fewer)
    second = base("vllm", "second", "benchmark.tier1.k=3", *fewer)
    for row in read_rows(second.samples_path("tier1")):
        assert row in read_rows(first.samples_path("tier1"))
    rows = read_rows(first.samples_path("tier2"))
    first.samples_path("tier2").write_text("".join(json.dumps(row) + "\n" for row in rows[::3]))
    evaluate(first, first.config())
    assert read_rows(first.samples_path("tier2")) == rows
    assert len({row["seed"] for row in rows}) == len(rows) and any(row["correct"] for row in rows)


def test_three_shards_equal_the_samples_of_one_process(base, monkeypatch):
    """The shards of three processes, written one after another, make the samples of one process."""
    from rlvr_sweeps.evaluation import evaluate as stage

    monkeypatch.delenv("RANK", raising=False)  # a trainer with vLLM sets it, and another test may have made one here
    fewer = [f"~benchmark.tier{tier}" for tier in (2, 3, 4, 5)]
    alone = base("vllm", "alone", *fewer)
    text = alone.samples_path("tier1").read_text()
    alone.samples_path("tier1").write_text("")
    cfg = alone.config()
    problems = {"tier1": stage.load_problems(cfg["benchmark"]["tier1"])}
    for process in range(3):
        stage.decode_missing(alone, cfg, problems, process, 3)
    assert stage.gather_samples(alone, cfg, problems) == 0
    assert alone.samples_path("tier1").read_text() == text
    assert "RANK" not in os.environ


def test_both_engines_evaluate_the_weights_rounded_at_random(composer, tmp_path):
    """The embedded model's weights are no bfloat16 values: each engine has one of the two neighbours, the same in both."""
    from rlvr_sweeps import patches
    from rlvr_sweeps.evaluation.engines import TransformersEngine, VllmEngine, evaluation_rounding
    from rlvr_sweeps.training.models import load_tokenizer, published_weights

    cfg = composer.point(["peft=none", *ON_CPU, "evaluation.weights=stochastic", f"runs_dir={tmp_path}"]).cfg
    run, tokenizer = Run.of(cfg), load_tokenizer(cfg)
    published, rounding = published_weights(cfg), evaluation_rounding(cfg)
    by_transformers = dict(TransformersEngine(run, cfg, tokenizer).model.named_parameters())
    engine = VllmEngine(run, cfg, tokenizer, 64)
    by_vllm = dict(patches.vllm_module(engine.engine).named_parameters())
    name = "model.layers.1.mlp.down_proj.weight"
    expected = rounding(name, published[name])
    assert (expected != published[name].bfloat16().float()).float().mean() > 0.1, "another rounding than the nearest"
    assert by_transformers[name].equal(expected) and by_vllm[name].float().equal(expected)
    key = "model.layers.1.self_attn.k_proj.weight"
    rows = published[key.replace("k_proj", "q_proj")].shape[0]
    packed = by_vllm[key.replace("k_proj", "qkv_proj")][rows : rows + published[key].shape[0]]
    assert packed.float().equal(rounding(key, published[key]))
