"""Test `rlvr verify`: verifiers that refuse gold answers, accept corrupted ones, or are right."""

import json
import random

import pytest

from rlvr_sweeps import cli
from rlvr_sweeps.evaluation.verify import corrupt
from rlvr_sweeps.grading import reward_pool

FUNCTIONS = """
def right(completions, answer, **kwargs):
    return [float(c[0]["content"] == f"<answer>{a}</answer>") for c, a in zip(completions, answer)]
def lax(completions, **kwargs): return [1.0]
def strict(completions, **kwargs): return [0.0]
def partial(completions, answer, **kwargs): return [0.5 * (a in c[0]["content"]) for c, a in zip(completions, answer)]
"""


@pytest.fixture
def verify(tmp_path, monkeypatch, capsys):
    """Return a function that tries a function above on 25 problems, and returns the result and the exit code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "data.csv").write_text("question,answer\n" + "".join(f"{n}?,{n + 100}\n" for n in range(25)))
    data = ("data=local", "data.path=data.csv", "verifier=custom")

    def run(name, *arguments):
        code = 0
        try:
            cli.main(["verify", *data, f"verifier.target=./mine.py:{name}", "--json", *arguments])
        except SystemExit as end:
            code = end.code
        reward_pool.close()
        return json.loads(capsys.readouterr().out or "null"), code

    return run


def test_what_looks_wrong_is_said(verify):
    def counts(trial):
        return [sum(row["correct"] for row in trial[part]) for part in ("golds", "corrupted")]

    trial, code = verify("right")
    assert counts(trial) == [20, 0] and len(trial["corrupted"]) == 20 and code == 0 and not trial["complaints"]
    assert trial["completion"] == "<answer>{answer}</answer>"
    trial, code = verify("lax")
    assert counts(trial) == [20, 20] and code == 0
    assert [text.split(".")[0] for text in trial["complaints"]] == [
        "20 of 20 corrupted gold answers are accepted", "Every score is the same, so that nothing could be learned"
    ]  # fmt: skip
    trial, code = verify("strict")
    assert counts(trial) == [0, 0] and code == 1 and "--completion" in trial["complaints"][0]
    trial, code = verify("partial")
    assert code == 1 and "set verifier.correct_at=0.5" in trial["complaints"][0]
    trial, code = verify("right", "--completion", "{answer}", "--count", "3")
    assert counts(trial) == [0, 0] and len(trial["golds"]) == 3 and code == 1
    assert "has no {answer}" in verify("right", "--completion", "42")[1]
    assert verify("missing")[1].startswith("The verifier cannot be used: mine.py has no function 'missing'")


def test_a_corrupted_answer_differs_in_one_place():
    rng = random.Random(0)
    for gold in ("104", "3/4", "B", "(c)", "Paris", "\\frac{1}{2}"):
        wrong = corrupt(gold, rng, [])
        assert len(wrong) == len(gold) and sum(a != b for a, b in zip(wrong, gold, strict=True)) == 1
    assert corrupt("B", rng, []) in "ACD" and corrupt("+", rng, ["+", "-"]) == "-"
