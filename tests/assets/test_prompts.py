"""Test the cache of tokenised prompts."""

import copy

import pytest

from rlvr_sweeps.assets.problems import Problem, all_prompt_ids, prompt_ids

PROBLEMS = [Problem(str(number), f"{number}+{number}=", str(2 * number)) for number in range(5)]


@pytest.fixture
def cached_files(tmp_path, monkeypatch):
    """Return a function that lists the files of the cache, which is in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: list(tmp_path.rglob("prompts/*.json"))


@pytest.fixture
def counting_tokenizer(tokenizer):
    """Return a tokenizer that counts the conversations it tokenises."""

    class Counting(type(tokenizer)):
        conversations = 0

        def apply_chat_template(self, *args, **kwargs):
            Counting.conversations += 1
            return super().apply_chat_template(*args, **kwargs)

    counting_tokenizer = copy.deepcopy(tokenizer)
    counting_tokenizer.__class__ = Counting
    return counting_tokenizer


def test_the_second_run_reads_the_first_runs_token_ids(counting_tokenizer, cached_files):
    first = all_prompt_ids(counting_tokenizer, PROBLEMS, "Add.")
    assert counting_tokenizer.conversations == len(PROBLEMS) and len(cached_files()) == 1
    assert all_prompt_ids(counting_tokenizer, PROBLEMS, "Add.") == first
    assert counting_tokenizer.conversations == len(PROBLEMS)
    assert first == [prompt_ids(counting_tokenizer, problem, "Add.") for problem in PROBLEMS]


def test_another_system_prompt_template_or_token_is_tokenised_again(counting_tokenizer, cached_files):
    results = [all_prompt_ids(counting_tokenizer, PROBLEMS, None), all_prompt_ids(counting_tokenizer, PROBLEMS, "Add.")]
    counting_tokenizer.chat_template += "!"
    results.append(all_prompt_ids(counting_tokenizer, PROBLEMS, None))
    counting_tokenizer.add_tokens(["+3"])
    results.append(all_prompt_ids(counting_tokenizer, PROBLEMS, None))
    assert len(cached_files()) == 4 and all(results.count(ids) == 1 for ids in results)
    assert results[-1] == [prompt_ids(counting_tokenizer, problem, None) for problem in PROBLEMS]


def test_a_template_with_the_date_is_not_cached(counting_tokenizer, cached_files):
    counting_tokenizer.chat_template = "{% set day = strftime_now('%d') %}" + counting_tokenizer.chat_template
    for runs in (1, 2):
        all_prompt_ids(counting_tokenizer, PROBLEMS, None)
        assert counting_tokenizer.conversations == runs * len(PROBLEMS)
    assert not cached_files()


def test_without_a_writable_cache_prompts_are_tokenised_again(counting_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert all_prompt_ids(counting_tokenizer, PROBLEMS, None) == [
        prompt_ids(counting_tokenizer, problem, None) for problem in PROBLEMS
    ]
