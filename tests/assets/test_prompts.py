"""Prompts as token ids, computed once for all runs that ask the same."""

import copy

import pytest

from rlvr_sweeps.assets.problems import Problem, all_prompt_ids, prompt_ids

PROBLEMS = [Problem(str(number), f"{number}+{number}=", str(2 * number)) for number in range(5)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: list(tmp_path.rglob("prompts/*.json"))


@pytest.fixture
def reader(tokenizer):
    """A tokenizer that counts its conversations."""

    class Counting(type(tokenizer)):
        conversations = 0

        def apply_chat_template(self, *args, **kwargs):
            Counting.conversations += 1
            return super().apply_chat_template(*args, **kwargs)

    reader = copy.deepcopy(tokenizer)
    reader.__class__ = Counting
    return reader


def test_the_second_run_reads_what_the_first_has_tokenised(reader, kept):
    first = all_prompt_ids(reader, PROBLEMS, "Add.")
    assert reader.conversations == len(PROBLEMS) and len(kept()) == 1
    assert all_prompt_ids(reader, PROBLEMS, "Add.") == first
    assert reader.conversations == len(PROBLEMS)
    assert first == [prompt_ids(reader, problem, "Add.") for problem in PROBLEMS]


def test_another_system_prompt_template_or_token_is_another_request(reader, kept):
    asked = [all_prompt_ids(reader, PROBLEMS, None), all_prompt_ids(reader, PROBLEMS, "Add.")]
    reader.chat_template += "!"
    asked.append(all_prompt_ids(reader, PROBLEMS, None))
    reader.add_tokens(["+3"])
    asked.append(all_prompt_ids(reader, PROBLEMS, None))
    assert len(kept()) == 4 and all(asked.count(ids) == 1 for ids in asked)
    assert asked[-1] == [prompt_ids(reader, problem, None) for problem in PROBLEMS]


def test_a_template_that_asks_for_the_time_is_read_each_time(reader, kept):
    reader.chat_template = "{% set day = strftime_now('%d') %}" + reader.chat_template
    for runs in (1, 2):
        all_prompt_ids(reader, PROBLEMS, None)
        assert reader.conversations == runs * len(PROBLEMS)
    assert not kept()


def test_a_cache_that_cannot_be_written_costs_the_time_again(reader, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert all_prompt_ids(reader, PROBLEMS, None) == [prompt_ids(reader, problem, None) for problem in PROBLEMS]
