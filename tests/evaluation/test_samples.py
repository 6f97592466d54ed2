"""Test majority votes and the commands on stored samples: rlvr regrade, compare and audit."""

import json

import pytest

from rlvr_sweeps import cli
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation import audit, regrade
from rlvr_sweeps.evaluation.samples import majority, score
from rlvr_sweeps.evaluation.scores import majority_at_k
from rlvr_sweeps.files import read_json, read_rows, write_json, write_text
from rlvr_sweeps.grading.grader import VERSION
from rlvr_sweeps.grading.sandbox import opinions
from rlvr_sweeps.reporting.differences import compare


@pytest.mark.parametrize(
    ("right", "rivals", "expected"),
    [([3], [[2, 2]], 1), ([2], [[3]], 0), ([2], [[2]], 0.5), ([1], [[1, 1]], 1 / 3), ([0], [[]], 0), ([4], [[]], 1)],
)
def test_majority_against_values_by_hand(right, rivals, expected):
    assert majority_at_k(right, rivals) == pytest.approx(expected)


def test_votes_for_equal_answers_in_different_spellings_are_added():
    answers = [("1/2", True), (r"\frac12", True), ("0.3", False), ("0.30", False), (r"\frac{3}{10}", False), (None, False)]
    rows = [{"problem": "p", "answer": answer, "correct": correct} for answer, correct in answers]
    assert majority(rows) == 0  # two for the right answer, three for 0.3
    assert majority(rows[:4]) == 0.5
    assert majority(rows[:3]) == 1


def row(problem, sample, **values):
    """Return a row of samples, with the given values in place of the defaults."""
    return {"problem": problem, "sample": sample, "correct": True, "answer": "1", "reason": "correct", "tokens": 3,
            "truncated": False} | values  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [[], [row("a", 0)], [row("a", 0), row("a", 0)], [row("a", 0), row("a", 2)], [row("a", 0), row("a", 1), row("b", 0)],
     [row("a", 0), row("a", 1), row("a", 2)]],
    ids=["none", "too few", "a repeated sample", "a missing sample", "too few of one problem", "too many"],
)  # fmt: skip
def test_scores_require_exactly_k_samples_of_each_problem(rows):
    with pytest.raises(RuntimeError, match="exactly 2 samples"):
        score(rows, 2, "here")


def test_the_summary_has_the_share_of_each_reason(evaluated):
    summary = json.loads(evaluated(right=1).summary_path.read_text())
    assert summary["tier2/share_correct"] == 0.25 and summary["tier2/share_wrong_form"] == 0.75
    assert summary["tier2/pass1"] == 0.25 and summary["tier2/pass2"] == pytest.approx(0.5) and summary["tier2/pass"] == 1
    assert summary["grader"] == VERSION and summary["avg_over_samples"] == pytest.approx((1 + 0.25) / 2)


def write_wrong_verdicts(run):
    """Give two samples of tier1 a wrong verdict, by an older version of the grader."""
    rows = read_rows(run.samples_path("tier1"))
    for index in (0, 5):
        rows[index] |= {"correct": False, "reason": "wrong"}
    regrade.write_samples(run, "tier1", rows)
    write_json(run.summary_path, json.loads(run.summary_path.read_text()) | {"grader": VERSION - 1, "engine": "transformers"})


def test_regrading_prints_the_changes_and_copies_the_old_samples(evaluated, capsys):
    run = evaluated()
    correct = json.loads(run.summary_path.read_text())
    write_wrong_verdicts(run)
    before = run.samples_path("tier1").read_text()
    cli.main(["regrade", "--dry-run", str(run.path)])
    assert "2 wrong → correct" in capsys.readouterr().out
    assert run.samples_path("tier1").read_text() == before
    cli.main(["regrade", str(run.path)])
    assert json.loads(run.summary_path.read_text()) == correct | {"engine": "transformers"}
    (old,) = run.path.glob("old/*/tier1.jsonl")
    assert old.read_text() == before
    assert run.state() == "done"
    cli.main(["regrade", str(run.path)])
    assert "no verdict changed" in capsys.readouterr().out.splitlines()[-1]


def test_other_rules_are_tried_and_change_nothing(evaluated, capsys):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    rows[0] |= {"text": rf"</think>\boxed{{{rows[0]['gold']}+0}}"}
    regrade.write_samples(run, "tier1", rows)
    regrade.regrade(run)
    before = [path.read_text() for path in (run.summary_path, run.samples_path("tier1"))]
    cli.main(["regrade", "--answers", "math_verify", str(run.path)])
    printed = capsys.readouterr().out
    assert "1 wrong → correct" in printed and "average 70.83 → 75.00 %" in printed
    assert [path.read_text() for path in (run.summary_path, run.samples_path("tier1"))] == before
    with pytest.raises(SystemExit):
        cli.main(["regrade", "--answers", "unknown", str(run.path)])
    assert "invalid choice: 'unknown'" in capsys.readouterr().err


def test_regrading_refuses_samples_of_another_evaluation(evaluated):
    """k was set to 5 afterwards: the stored samples must neither be scored with it nor be deleted."""
    run = evaluated()
    before = {path: path.read_text() for path in (run.summary_path, run.right_path, run.samples_path("tier1"))}
    cfg = run.config()
    cfg["benchmark"]["tier1"]["k"] = 5
    run.prepare(cfg)
    assert "another evaluation since" in refused("regrade", run.path)
    assert {path: path.read_text() for path in before} == before


def test_regrading_continues_after_a_kill(evaluated, monkeypatch):
    run = evaluated()
    correct = json.loads(run.summary_path.read_text())
    write_wrong_verdicts(run)
    monkeypatch.setattr(regrade, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        regrade.regrade(run)
    monkeypatch.undo()
    assert len(read_rows(run.samples_path("tier1"))) == 12 and run.summary_path.exists()
    regrade.regrade(run)
    assert json.loads(run.summary_path.read_text()) == correct | {"engine": "transformers"}


def test_answers_are_printed_verbatim(evaluated, capsys):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    for index, answer in enumerate(["[a,b]", r"\left[/x\right]", "\ud800"]):
        rows[index] |= {"text": f"</think>\\boxed{{{answer}}}"}
    regrade.write_samples(run, "tier1", rows)
    cli.main(["regrade", str(run.path)])
    out = capsys.readouterr().out
    assert "[a,b]" in out and r"\left[/x\right]" in out and r"\ud800" in out


def test_regrading_refuses_a_running_or_unevaluated_run(evaluated, point):
    run = evaluated()
    with run.claim(), pytest.raises(Refused, match="is running"):
        regrade.regrade(run)
    run.summary_path.unlink()
    with pytest.raises(Refused, match="not evaluated"):
        regrade.regrade(run)


def test_runs_are_compared_by_name_id_and_groups_of_seeds(evaluated, tmp_path, capsys):
    runs = [evaluated(f"seed={seed}", right=right) for seed, right in ((1, 1), (2, 2), (3, 4))]
    folder = ["--runs-dir", str(tmp_path / "runs"), "--json"]
    cli.main(["compare", runs[0].name, runs[2].id, *folder])
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tier1"]["difference"] == 0 and rows["tier2"]["difference"] == 0.75
    assert rows["overall"]["difference"] == pytest.approx(0.375) and rows["overall"]["a_avg"] == pytest.approx(0.625)
    cli.main(["compare", f"{runs[0].name},{runs[1].name}", runs[2].name, *folder])
    assert json.loads(capsys.readouterr().out)[0]["seeds"] == [2, 1]
    cli.main(["compare", runs[0].name, runs[1].name, runs[2].name, "--runs-dir", str(tmp_path / "runs")])
    text = capsys.readouterr().out
    assert "p (Holm)" in text and "two trained models, not two methods" in text


def refused(*arguments):
    """Return the message with which `rlvr` refuses."""
    with pytest.raises(SystemExit) as refusal:
        cli.main([str(argument) for argument in arguments])
    return str(refusal.value)


def test_compare_refuses_runs_with_different_evaluations(evaluated, tmp_path):
    first, second, third = evaluated("seed=1"), evaluated("seed=2", "evaluation.temperature=1"), evaluated("seed=3")
    assert "benchmarks, k, decoding, grading or verifier" in refused("compare", first.path, second.path)
    write_wrong_verdicts(third)
    assert "versions of the grader" in refused("compare", first.path, third.path)
    assert "needs two runs" in refused("compare", first.path)
    assert "the same run is not two seeds" in refused("compare", f"{first.path},{first.path}", third.path)
    dora = evaluated("peft=dora")
    assert "are not seeds of one row: they differ in" in refused("compare", f"{first.path},{dora.path}", first.path)
    first.right_path.unlink()
    assert f"rlvr regrade {first.name}" in refused("compare", first.path, third.path)
    assert f"Did you mean {first.name}" in refused("compare", first.name[:-1], "x", "--runs-dir", tmp_path / "runs")


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [("17", "17", "same"), (r"\frac{1}{2}", "0.5", "same"), ("x^2+2x+1", "(x+1)^2", "same"), ("18", "17", "different"),
     ("x", "|x|", "different"), ("4.5e33", r"4.5 \cdot 10^{33}", "same"),
         (r"2\pi", r"\pi", "different"), ("(1,2)", "(1,2)", None), ("hm?", "17", None)],
)  # fmt: skip
def test_opinions_of_the_second_comparison(answer, gold, expected):
    assert opinions([(answer, gold)]) == [expected]


def test_an_audit_lists_disagreements(evaluated, capsys):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    rows[0] |= {"answer": "2+2", "gold": "4", "correct": False, "reason": "wrong form"}
    rows[1] |= {"answer": "5", "gold": "6", "correct": True, "reason": "correct"}  # a wrong verdict
    rows[2] |= {
        "answer": r"9^{9^{9^9}}",
        "gold": r"\sqrt{2}",
        "correct": False,
        "reason": "too large",
    }  # ends at the time limit
    write_text(run.samples_path("tier1"), "".join(json.dumps(row) + "\n" for row in rows))
    audited, total = audit.audit([run], size=50, seed=0)
    assert total == len(audited) and sum(row["opinion"] is None for row in audited) >= 1
    assert {(row["answer"], row["gold"]) for row in audited if audit.disagrees(row)} == {("2+2", "4"), ("5", "6")}
    cli.main(["audit", str(run.path), "--sample", "50"])
    assert "2 disagreements" in capsys.readouterr().out
    assert read_json(run.summary_path)["grader"] == VERSION  # an audit writes nothing


def test_float_scores_are_averaged_and_those_from_correct_at_are_right():
    """Avg@k is the mean score; Pass@k and the majority count right samples, also a right one without an answer."""
    columns = {"tokens": 5, "truncated": False, "gold": "", "text": "", "reason": "wrong"}
    scores = {"a": [(1.0, True, None), (0.25, False, "x"), (0.25, False, "y")], "b": [(0.5, False, None)] * 3}
    rows = [
        {"problem": problem, "sample": index, "score": value, "correct": right, "answer": answer, **columns}
        for problem, samples in scores.items()
        for index, (value, right, answer) in enumerate(samples)
    ]
    scored = score(rows, 3, "rows")
    assert scored["avg"] == pytest.approx(0.5) and scored["pass"] == 0.5 and scored["pass1"] == pytest.approx(1 / 6)
    assert scored["majority"] == pytest.approx(1 / 6)  # a tie of three answers, and a problem without votes
    assert scored["avg_se"] == pytest.approx(0.25 / 2)  # the three scores of a have the variance 3/16, those of b none


def test_comparisons_of_float_scores_use_their_means(evaluated, tmp_path):
    runs = [evaluated("seed=1"), evaluated("seed=2")]
    for run, mean in zip(runs, (0.25, 0.75), strict=True):
        right = read_json(run.right_path)
        for entry in right.values():
            entry["mean"] = dict.fromkeys(entry["right"], mean)
        write_json(run.right_path, right)
    rows = compare.compare([str(run.path) for run in runs], tmp_path / "runs")
    assert [(row["a_avg"], row["b_avg"], row["difference"]) for row in rows] == [(0.25, 0.75, 0.5)] * len(rows)
