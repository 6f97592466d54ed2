"""Test the rules on which graders differ (`answers.*`): each value of each rule, and the named sets in conf/answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_sweeps.config.identity import evaluation_spec
from rlvr_sweeps.config.settings import rules_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.grader import compare_all, grade
from rlvr_sweeps.grading.rules import CHOICES, DEFAULT_RULES, Rules
from rlvr_sweeps.paths import conf_dir
from rlvr_sweeps.runs.directory import Run

COLUMN, ROW = r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1&2\end{bmatrix}"
TWO_BOXES = r"\boxed{2} and \boxed{3}, that is \boxed{2}"


def is_correct(answer, gold, **rules):
    """Return whether an answer is correct under rules that differ from the default in these."""
    (reason,) = compare_all([(answer, gold)], Rules(**rules)).values()
    return reason == "correct"


@pytest.mark.parametrize(("boxes", "answer"), [("last", "2"), ("first", "2"), ("all", "2, 3")])
def test_which_of_several_boxes_is_the_answer(boxes, answer):
    assert grade(TWO_BOXES, "3,2", "boxed", Rules(boxes=boxes)).answer == answer
    assert grade(TWO_BOXES, "3,2", "boxed", Rules(boxes=boxes)).correct == (boxes == "all")


@pytest.mark.parametrize(("boxes", "answer"), [("last", "1"), ("first", r"\boxed{1}+1"), ("all", r"\boxed{1}+1")])
def test_boxes_in_boxes(boxes, answer):
    assert grade(r"\boxed{\boxed{1}+1}", "1", "boxed", Rules(boxes=boxes)).answer == answer


@pytest.mark.parametrize(
    ("answer", "gold"), [("2^{10}", "1024"), (r"\log_2 8", "3"), ("10+7", "17"), (r"\binom{5}{2}", "10"), (r"\sqrt{9}", "3")]
)
def test_arithmetic_for_a_number(answer, gold):
    assert not is_correct(answer, gold)
    assert is_correct(answer, gold, arithmetic="accept")
    assert not is_correct(answer, gold + "1", arithmetic="accept")


@pytest.mark.parametrize("answer", [r"\int_0^1 2x\,dx", "2=1", "x", r"\text{one}", "1+1=1"])
def test_accepted_arithmetic_has_no_operator_and_no_variable(answer):
    assert not is_correct(answer, "1", arithmetic="accept")


@pytest.mark.parametrize(
    ("answer", "gold", "accepted_by"),
    [
        (r"28\%", "0.28", {"strict", "either", "unsigned"}),
        ("0.28", r"28\%", {"strict", "either", "unsigned"}),
        (r"28\%", "28", {"either", "unsigned"}),
        ("28", r"28\%", {"either", "unsigned"}),
        ("0.28", "28", {"unsigned"}),
        ("28", "0.28", {"unsigned"}),
        ("2.8", "28", set()),
        (r"28\%", "2.8", set()),
    ],
)
def test_percentages(answer, gold, accepted_by):
    assert {percent for percent in CHOICES["percent"] if is_correct(answer, gold, percent=percent)} == accepted_by


@pytest.mark.parametrize(
    ("answer", "gold", "accepted_by"),
    [
        ("4.51", "4.5", {"one_percent"}),
        ("4.56", "4.5", set()),
        (r"1.005 \times 10^{5}", "1e5", {"one_percent"}),
        ("101", "100", set()),  # an integer is exact
        (r"\frac{67}{200}", r"\frac13", set()),
        ("10001", "10000", {"qwen2_5_math"}),
        ("10002", "10000", set()),
        ("1.41425", r"\sqrt{2}", {"qwen2_5_math"}),
        ("1.4142", r"\sqrt{2}", {"qwen2_5_math"}),
        ("1.414214", r"\sqrt{2}", {"exact", "one_percent", "qwen2_5_math"}),
        ("0.33333", r"\frac13", {"qwen2_5_math"}),
        ("1.41425x", r"\sqrt{2}x", set()),  # a tolerance is of values
        ("(1.0001,2)", "(1,2)", {"qwen2_5_math"}),
    ],
)
def test_tolerances(answer, gold, accepted_by):
    assert {tolerance for tolerance in CHOICES["tolerance"] if is_correct(answer, gold, tolerance=tolerance)} == accepted_by


@pytest.mark.parametrize(
    ("answer", "gold"), [(COLUMN, "(1,2)"), ("(1,2)", COLUMN), (ROW, "(1,2)"), (r"\langle 1,2\rangle", ROW)]
)
def test_vectors_and_tuples(answer, gold):
    assert is_correct(answer, gold)
    assert not is_correct(answer, gold, vectors="strict")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (COLUMN, "(2,1)"),
        (COLUMN, "[1,2]"),
        (COLUMN, "1,2"),
        (COLUMN, ROW),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "(1,2,3,4)"),
    ],
)
def test_a_vector_is_no_other_tuple_interval_list_or_matrix(answer, gold):
    assert not is_correct(answer, gold)


@given(
    st.integers(-999, 999), st.integers(-999, 999), st.sampled_from(CHOICES["arithmetic"]), st.sampled_from(CHOICES["percent"])
)
def test_no_rule_without_a_tolerance_makes_two_integers_equal(first, second, arithmetic, percent):
    expected = first == second or (percent == "unsigned" and (first == 100 * second or second == 100 * first))
    assert is_correct(str(first), str(second), arithmetic=arithmetic, percent=percent) == expected


def test_named_sets_are_complete_and_the_default_is_the_default(composer):
    names = sorted(path.stem for path in (conf_dir() / "answers").glob("*.yaml"))
    sets = {name: rules_of(composer.point([f"answers={name}"]).cfg) for name in names}
    assert sets["default"] == DEFAULT_RULES
    assert len(set(sets.values())) == len(sets)
    with pytest.raises(Refused, match=r"answers.percent=maybe is not possible. Allowed: either, strict, unsigned"):
        composer.point(["answers.percent=maybe"])


def test_rules_that_differ_make_another_run_and_another_evaluation(composer):
    default, strict = composer.point([]).cfg, composer.point(["answers=strict"]).cfg
    assert Run.of(default).id != Run.of(strict).id
    assert evaluation_spec(default) != evaluation_spec(strict)
    assert evaluation_spec(default) == evaluation_spec({key: value for key, value in default.items() if key != "answers"})
