"""Test the reward for multiple choice."""

import pytest

from rlvr_sweeps.grading.ready.choice import gold_letter, read_letter, reward


@pytest.mark.parametrize(
    ("text", "grading", "letter"),
    [
        ("</think>\\boxed{B}", "boxed_after_thinking", "B"), ("\\boxed{B}", "boxed_after_thinking", None),
        ("\\boxed{(c)}", "boxed", "C"), ("\\boxed{\\text{D. Paris}}", "boxed", "D"), ("\\boxed{Paris}", "boxed", None),
        ("The answer is (B).", "boxed", None), ("The answer is (B).", "any", "B"), ("Answer: C", "any", "C"), ("b", "any", "B"),
        ("A is wrong, so it is\nB) Paris", "any", "B"), ("I think so.", "any", "I"), ("no idea", "any", None),
        ("\\boxed{A} or the answer is B", "any", "A"), ("**D**", "any", "D"), ("A </think> C", "any", "C"),
    ],
)  # fmt: skip
def test_the_letter_that_a_completion_chooses(text, grading, letter):
    assert read_letter(text, grading) == letter


def test_the_reward_compares_letters_and_indices():
    completions = [[{"role": "assistant", "content": text}] for text in ("Answer: B", "Answer: A")]
    assert reward(completions, answer=["b", "B"], grading="any") == [1.0, 0.0]
    assert reward(completions, answer=[1, "1"], choices=[["x", "y"]] * 2, grading="any") == [1.0, 0.0]
    with pytest.raises(ValueError, match="no letter, and no index"):
        gold_letter("Paris", None)
