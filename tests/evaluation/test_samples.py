"""What is done with stored samples: votes, regrading, comparing, auditing."""

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


@pytest.mark.parametrize(
    ("right", "rivals", "won"),
    [([3], [[2, 2]], 1), ([2], [[3]], 0), ([2], [[2]], 0.5), ([1], [[1, 1]], 1 / 3), ([0], [[]], 0), ([4], [[]], 1)],
)
def test_majority_by_hand(right, rivals, won):
    assert majority_at_k(right, rivals) == pytest.approx(won)


def test_votes_for_one_answer_count_together_however_it_is_written():
    spelled = [("1/2", True), (r"\frac12", True), ("0.3", False), ("0.30", False), (r"\frac{3}{10}", False), (None, False)]
    rows = [{"problem": "p", "answer": answer, "correct": correct} for answer, correct in spelled]
    assert majority(rows) == 0  # two for the right answer, three for 0.3
    assert majority(rows[:4]) == 0.5
    assert majority(rows[:3]) == 1


def row(problem, sample, **other):
    return {"problem": problem, "sample": sample, "correct": True, "answer": "1", "reason": "correct", "tokens": 3,
            "truncated": False} | other  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [[], [row("a", 0)], [row("a", 0), row("a", 0)], [row("a", 0), row("a", 2)], [row("a", 0), row("a", 1), row("b", 0)],
     [row("a", 0), row("a", 1), row("a", 2)]],
    ids=["none", "too few", "one twice", "a gap", "one problem short", "too many"],
)  # fmt: skip
def test_exactly_k_samples_of_each_problem(rows):
    with pytest.raises(RuntimeError, match="exactly 2 samples"):
        score(rows, 2, "here")


def test_reasons_are_shares(evaluated):
    summary = json.loads(evaluated(right=1).summary_path.read_text())
    assert summary["tier2/share_correct"] == 0.25 and summary["tier2/share_wrong_form"] == 0.75
    assert summary["tier2/pass1"] == 0.25 and summary["tier2/pass2"] == pytest.approx(0.5) and summary["tier2/pass"] == 1
    assert summary["grader"] == VERSION and summary["avg_over_samples"] == pytest.approx((1 + 0.25) / 2)


def spoil(run):
    """As if an older grader had been wrong about two samples of tier1."""
    rows = read_rows(run.samples_path("tier1"))
    for place in (0, 5):
        rows[place] |= {"correct": False, "reason": "wrong"}
    regrade.write_samples(run, "tier1", rows)
    write_json(run.summary_path, json.loads(run.summary_path.read_text()) | {"grader": VERSION - 1, "engine": "transformers"})


def test_regrading_finds_what_changed_and_keeps_the_old(evaluated, capsys):
    run = evaluated()
    true = json.loads(run.summary_path.read_text())
    spoil(run)
    before = run.samples_path("tier1").read_text()
    cli.main(["regrade", "--dry-run", str(run.path)])
    assert "2 wrong → correct" in capsys.readouterr().out
    assert run.samples_path("tier1").read_text() == before
    cli.main(["regrade", str(run.path)])
    assert json.loads(run.summary_path.read_text()) == true | {"engine": "transformers"}
    (old,) = run.path.glob("old/*/tier1.jsonl")
    assert old.read_text() == before
    assert run.state() == "done"
    cli.main(["regrade", str(run.path)])
    assert "no verdict changed" in capsys.readouterr().out.splitlines()[-1]


def test_regrading_keeps_its_hands_off_what_was_asked_again(evaluated):
    """k is 5 since: the old samples must not be judged by the new request, nor lost."""
    run = evaluated()
    before = {path: path.read_text() for path in (run.summary_path, run.right_path, run.samples_path("tier1"))}
    cfg = run.config()
    cfg["benchmark"]["tier1"]["k"] = 5
    run.prepare(cfg)
    assert "another evaluation since" in refused("regrade", run.path)
    assert {path: path.read_text() for path in before} == before


def test_regrading_that_was_killed_goes_on(evaluated, monkeypatch):
    run = evaluated()
    true = json.loads(run.summary_path.read_text())
    spoil(run)
    monkeypatch.setattr(regrade, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        regrade.regrade(run)
    monkeypatch.undo()
    assert len(read_rows(run.samples_path("tier1"))) == 12 and run.summary_path.exists()
    regrade.regrade(run)
    assert json.loads(run.summary_path.read_text()) == true | {"engine": "transformers"}


def test_answers_are_shown_as_they_are(evaluated, capsys):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    for place, answer in enumerate(["[a,b]", r"\left[/x\right]", "\ud800"]):
        rows[place] |= {"text": f"</think>\\boxed{{{answer}}}"}
    regrade.write_samples(run, "tier1", rows)
    cli.main(["regrade", str(run.path)])
    out = capsys.readouterr().out
    assert "[a,b]" in out and r"\left[/x\right]" in out and r"\ud800" in out


def test_regrading_needs_samples_and_a_run_at_rest(evaluated, point):
    run = evaluated()
    with run.claim(), pytest.raises(Refused, match="is running"):
        regrade.regrade(run)
    run.summary_path.unlink()
    with pytest.raises(Refused, match="not evaluated"):
        regrade.regrade(run)


def test_comparing_by_name_id_and_seeds(evaluated, tmp_path, capsys):
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
    """What `rlvr` says as it refuses."""
    with pytest.raises(SystemExit) as refusal:
        cli.main([str(argument) for argument in arguments])
    return str(refusal.value)


def test_what_was_evaluated_differently_is_not_compared(evaluated, tmp_path):
    one, other, third = evaluated("seed=1"), evaluated("seed=2", "evaluation.temperature=1"), evaluated("seed=3")
    assert "benchmarks, k, decoding or grading" in refused("compare", one.path, other.path)
    spoil(third)
    assert "versions of the grader" in refused("compare", one.path, third.path)
    assert "needs two runs" in refused("compare", one.path)
    assert "the same run is not two seeds" in refused("compare", f"{one.path},{one.path}", third.path)
    dora = evaluated("peft=dora")
    assert "are no seeds of one row: they differ in" in refused("compare", f"{one.path},{dora.path}", one.path)
    one.right_path.unlink()
    assert f"rlvr regrade {one.name}" in refused("compare", one.path, third.path)
    assert f"Did you mean {one.name}" in refused("compare", one.name[:-1], "x", "--runs-dir", tmp_path / "runs")


@pytest.mark.parametrize(
    ("answer", "gold", "said"),
    [("17", "17", "same"), (r"\frac{1}{2}", "0.5", "same"), ("x^2+2x+1", "(x+1)^2", "same"), ("18", "17", "different"),
     ("x", "|x|", "different"), ("4.5e33", r"4.5 \cdot 10^{33}", "same"),
         (r"2\pi", r"\pi", "different"), ("(1,2)", "(1,2)", None), ("hm?", "17", None)],
)  # fmt: skip
def test_the_second_reader(answer, gold, said):
    assert opinions([(answer, gold)]) == [said]


def test_an_audit_lists_disagreements(evaluated, capsys):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    rows[0] |= {"answer": "2+2", "gold": "4", "correct": False, "reason": "wrong form"}
    rows[1] |= {"answer": "5", "gold": "6", "correct": True, "reason": "correct"}  # a grader's mistake
    rows[2] |= {"answer": r"9^{9^{9^9}}", "gold": r"\sqrt{2}", "correct": False, "reason": "too large"}  # hangs a reader
    write_text(run.samples_path("tier1"), "".join(json.dumps(one) + "\n" for one in rows))
    found, total = audit.audit([run], size=50, seed=0)
    assert total == len(found) and sum(one["opinion"] is None for one in found) >= 1
    assert {(one["answer"], one["gold"]) for one in found if audit.disagrees(one)} == {("2+2", "4"), ("5", "6")}
    cli.main(["audit", str(run.path), "--sample", "50"])
    assert "2 disagreements" in capsys.readouterr().out
    assert read_json(run.summary_path)["grader"] == VERSION  # an audit changes nothing
