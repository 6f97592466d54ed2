"""From samples to a summary, and from summaries to rows: numbers that must not vanish, mix or repeat."""

import json

import pytest

from rlvr_sweeps.collect import cells, find
from rlvr_sweeps.data import load_problems
from rlvr_sweeps.files import write_json
from rlvr_sweeps.run import Run
from rlvr_sweeps.samples import summarise


def samples(run, benchmark, problems, k, right):
    """k samples of each problem, the first `right` of them correct."""
    rows = [
        {
            "problem": problem.id,
            "sample": index,
            "correct": index < right,
            "tokens": 5,
            "truncated": False,
            "answer": "1",
            "reason": "correct" if index < right else "wrong",
        }
        for problem in problems
        for index in range(k)
    ]
    path = run.samples_path(benchmark)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evaluated(point, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in (1, 2, 3)))

    def make(*overrides, right=2):
        two = [f"benchmark.{tier}.{key}" for tier in ("tier1", "tier2") for key in (f"path={path}", "problems=3", "k=4")]
        rest = [f"~benchmark.tier{n}" for n in (3, 4, 5)]
        cfg = point(*two, *rest, *overrides)
        run = Run.of(cfg)
        run.prepare(cfg)
        problems = {name: load_problems(source) for name, source in cfg["benchmark"].items()}
        samples(run, "tier1", problems["tier1"], 4, 4)
        samples(run, "tier2", problems["tier2"], 4, right)
        write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
        write_json(run.merged_path / "config.json", {})
        run.finish("train", cfg, 1.0)
        write_json(run.summary_path, summarise(run, cfg))
        run.finish("evaluate", cfg, 1.0)
        return run

    return make


def test_a_benchmark_without_spread_keeps_the_overall_error(evaluated):
    """All right on tier1: its error is 0, which is a number."""
    row = json.loads(evaluated().summary_path.read_text())
    assert row["tier1/avg"] == 1 and row["tier1/avg_se"] == 0
    assert row["avg"] == 0.75 and row["avg_se"] == pytest.approx(row["tier2/avg_se"] / 2) and row["avg_se"] > 0


def test_seeds_become_one_row_with_the_error_of_their_mean(evaluated, tmp_path):
    for seed, right in ((1, 1), (2, 2), (3, 3)):
        evaluated(f"seed={seed}", right=right)
    (cell,) = cells(find(tmp_path / "runs"))
    assert len(cell.runs) == 3 and cell.value("avg") == pytest.approx((0.625 + 0.75 + 0.875) / 3)
    assert cell.error("avg") == pytest.approx(0.125 / 3**0.5)


def test_a_methods_own_seed_does_not_split_its_row(evaluated, tmp_path):
    for seed in (1, 2):
        evaluated("peft=shira", f"seed={seed}")
    assert len(cells(find(tmp_path / "runs"))) == 1


def test_runs_evaluated_differently_are_not_averaged(evaluated, tmp_path):
    evaluated("seed=1")
    evaluated("seed=2", "evaluation.temperature=1")
    assert [len(cell.runs) for cell in cells(find(tmp_path / "runs"))] == [1, 1]


def test_too_few_or_too_many_samples_are_an_error(evaluated, composer):
    run = evaluated()
    cfg = run.config()
    problems = {name: load_problems(source) for name, source in cfg["benchmark"].items()}
    samples(run, "tier1", problems["tier1"], 3, 1)
    with pytest.raises(RuntimeError, match="exactly 4 samples"):
        summarise(run, cfg)


def test_a_question_asked_twice_is_two_problems(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n' * 2 + '{"question": "2?", "answer": "2"}\n')
    source = {"path": str(path), "revision": None, "question": "question", "answer": "answer", "problems": 3}
    assert len({problem.id for problem in load_problems(source)}) == 3


def test_your_own_model_needs_its_paths_named(composer, tmp_path):
    with pytest.raises(Exception, match="missing"):
        composer.point(["model=local"])
    paths = [f"model.path={tmp_path}", f"data.path={tmp_path}/a.jsonl", f"benchmark.local.path={tmp_path}/b.jsonl"]
    cfg = composer.point(["model=local", "model.name=mine", "rollout.max_tokens=4096", *paths]).cfg
    assert (cfg["rank"], cfg["lr"], cfg["batch_size"], cfg["evaluation"]["max_tokens"]) == (32, 1e-5, 128, 4096)
    assert list(cfg["benchmark"]) == ["local"]
