"""Through real vLLM on the CPU, where it is installed (`make test-vllm` installs it, in an environment of its own)."""

import json
import os

import pytest

from rlvr_sweeps.evaluation.evaluate import evaluate
from rlvr_sweeps.files import read_json, read_rows
from rlvr_sweeps.runs.directory import Run

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

ON_CPU = (  # no chunked prefill: it asks a seeded generator on the CPU for an offset that it does not have
    "+evaluation.vllm.kv_cache_memory_bytes=268435456", "+evaluation.vllm.enforce_eager=true",
    "+evaluation.vllm.max_num_batched_tokens=32768",
)  # fmt: skip


@pytest.fixture
def base(composer, tmp_path):
    """Base, evaluated on its first tiers by an engine into a folder of its own."""

    def run(engine, folder, *overrides):
        cfg = composer.point(
            ["peft=none", *ON_CPU, f"evaluation.engine={engine}", f"runs_dir={tmp_path}/{folder}", *overrides]
        ).cfg
        made = Run.of(cfg)
        made.prepare(cfg)
        evaluate(made, cfg)
        return made

    return run


def test_both_engines_measure_the_same_model(base):
    ours, theirs = (read_json(base(engine, engine).summary_path) for engine in ("transformers", "vllm"))
    assert (ours["engine"], theirs["engine"]) == ("transformers", "vllm")
    assert ours["evaluation"] == theirs["evaluation"]
    apart = abs(ours["avg"] - theirs["avg"]) / (ours["avg_se"] ** 2 + theirs["avg_se"] ** 2) ** 0.5
    assert apart < 4, f"{ours['avg']:.3f} and {theirs['avg']:.3f} are {apart:.1f} standard errors apart"


def test_a_sample_depends_on_its_seed_alone(base):
    """The same completions in another batch order, and where some are there already."""
    fewer = [f"~benchmark.tier{tier}" for tier in (3, 4, 5)]
    whole = base("vllm", "whole", *fewer)
    again = base("vllm", "again", "benchmark.tier1.k=3", *fewer)
    for row in read_rows(again.samples_path("tier1")):
        assert row in read_rows(whole.samples_path("tier1"))
    rows = read_rows(whole.samples_path("tier2"))
    whole.samples_path("tier2").write_text("".join(json.dumps(row) + "\n" for row in rows[::3]))
    evaluate(whole, whole.config())
    assert read_rows(whole.samples_path("tier2")) == rows
    assert len({row["seed"] for row in rows}) == len(rows) and any(row["correct"] for row in rows)


def test_three_shards_are_one(base, monkeypatch):
    """What three processes with an engine each would write, one after another."""
    from rlvr_sweeps.evaluation import evaluate as stage

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
