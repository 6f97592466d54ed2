"""Test the summary of samples, the rows of summaries, and that samples do not depend on processes or interruptions."""

import json
import subprocess
import time

import pytest

from rlvr_sweeps.assets.problems import load_problems
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.samples import summarise
from rlvr_sweeps.files import read_rows
from rlvr_sweeps.reporting.rows import cells
from rlvr_sweeps.runs.directory import all_runs
from rlvr_sweeps.runs.reading import find_runs
from tests.conftest import ROOT, write_right


def test_a_benchmark_without_spread_keeps_the_overall_error(evaluated):
    """All samples of tier1 are correct: its standard error is 0, and the overall error is that of tier2."""
    row = json.loads(evaluated().summary_path.read_text())
    assert row["tier1/avg"] == 1 and row["tier1/avg_se"] == 0
    assert row["avg"] == 0.75 and row["avg_se"] == pytest.approx(row["tier2/avg_se"] / 2) and row["avg_se"] > 0


def test_seeds_become_one_row_with_the_error_of_their_mean(evaluated, tmp_path):
    for seed, right in ((1, 1), (2, 2), (3, 3)):
        evaluated(f"seed={seed}", right=right)
    (cell,) = cells(find_runs(tmp_path / "runs"))
    assert len(cell.runs) == 3 and cell.value("avg") == pytest.approx((0.625 + 0.75 + 0.875) / 3)
    assert cell.error("avg") == pytest.approx(0.125 / 3**0.5)


def test_a_seed_in_the_settings_of_a_method_does_not_split_its_row(evaluated, tmp_path):
    for seed in (1, 2):
        evaluated("peft=shira", f"seed={seed}")
    assert len(cells(find_runs(tmp_path / "runs"))) == 1


def test_runs_evaluated_differently_are_not_averaged(evaluated, tmp_path):
    evaluated("seed=1")
    evaluated("seed=2", "evaluation.temperature=1")
    assert [len(cell.runs) for cell in cells(find_runs(tmp_path / "runs"))] == [1, 1]


def test_too_few_or_too_many_samples_are_an_error(evaluated):
    run = evaluated()
    problems = load_problems(run.config()["benchmark"]["tier1"])
    write_right(run, "tier1", problems, 3, 1)
    with pytest.raises(RuntimeError, match="exactly 4 samples"):
        summarise(run, run.config())
    write_right(run, "tier1", problems[:2], 4, 1)
    with pytest.raises(RuntimeError, match=r"samples of 2 problems; benchmark\.tier1\.problems is 3"):
        summarise(run, run.config())


def test_two_equal_questions_are_two_problems(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n' * 2 + '{"question": "2?", "answer": "2"}\n')
    source = {
        "path": str(path), "revision": None, "subset": None, "split": "train", "question": "question", "answer": "answer",
        "problems": 3,
    }  # fmt: skip
    assert len({problem.id for problem in load_problems(source)}) == 3


def test_the_answer_is_what_follows_the_mark_in_its_field(tmp_path, composer):
    """GSM8K's field holds a solution, "####" and the number."""
    path = tmp_path / "gsm8k.jsonl"
    rows = [{"question": "1?", "answer": "2 + 3 = 5 #### no\n#### 1,080"}, {"question": "2?", "answer": "#### 7"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    published = composer.point(["model=qwen3_0_6b", "rollout=hf"]).cfg["data"]
    source = published | {"path": str(path), "revision": None, "problems": 2}
    assert [problem.answer for problem in load_problems(source)] == ["1,080", "7"]
    path.write_text('{"question": "1?", "answer": "7"}\n')
    with pytest.raises(Refused, match=r"an answer without '####' \(answer_after\): '7'"):
        load_problems(source)


def test_a_local_model_requires_its_paths(composer, tmp_path):
    with pytest.raises(Refused, match=r"model.name, model.path, data.path, benchmark.local.path, rollout.max_tokens"):
        composer.point(["model=local"])
    paths = [f"model.path={tmp_path}", f"data.path={tmp_path}/a.jsonl", f"benchmark.local.path={tmp_path}/b.jsonl"]
    cfg = composer.point(["model=local", "model.name=mine", "rollout.max_tokens=4096", *paths]).cfg
    assert (cfg["rank"], cfg["lr"], cfg["batch_size"], cfg["evaluation"]["max_tokens"]) == (32, 1e-5, 128, 4096)
    assert list(cfg["benchmark"]) == ["local"]


def kill_during_evaluation(launch, *grid):
    """Launch an evaluation, kill it when some samples are written but not all, and return its run."""
    process = subprocess.Popen(launch.command(*grid), cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if any((run.path / "eval" / "shards").exists() for run in all_runs(launch.runs)):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    (run,) = all_runs(launch.runs)
    while run.is_claimed():
        time.sleep(0.05)
    return run


@pytest.mark.slow
def test_samples_do_not_depend_on_processes_or_interruptions(world, launch, tmp_path):
    """Evaluate the base model with one process, with two, and with two that are killed and continued by three."""
    base = ("peft=none", "evaluation.batch_size=32", *(f"~benchmark.tier{n}" for n in (3, 4, 5)))
    launch(*base, runs=tmp_path / "one_process")
    launch(*base, "distributed=ddp", "distributed.processes=2", runs=tmp_path / "two_processes")
    stopped = kill_during_evaluation(launch, *base, "distributed=ddp", "distributed.processes=2")
    assert stopped.state() == "lost"
    launch(*base, "distributed=ddp", "distributed.processes=3")
    (by_one,), (by_two,) = all_runs(tmp_path / "one_process"), all_runs(tmp_path / "two_processes")
    for tier in by_one.config()["benchmark"]:
        text = by_one.samples_path(tier).read_text()
        assert text == by_two.samples_path(tier).read_text() == stopped.samples_path(tier).read_text()
    assert not stopped.shard_paths("tier1")
    starts = [row for row in read_rows(stopped.attempts_path) if row["event"] == "start"]
    assert len(starts) == 2
