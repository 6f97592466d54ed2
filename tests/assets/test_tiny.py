"""Test the embedded world: its content key, that the recipe makes it, its problems and its tokenizer."""

import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlvr_sweeps.assets import locations
from rlvr_sweeps.assets.arithmetic import Teacher, draw_problem, draw_problems
from rlvr_sweeps.assets.tiny import Recipe, make, make_tokenizer
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.grader import grade
from tests.conftest import ROOT

WORLD = locations.WORLDS_FOLDER / "tiny"
SEEDS = {"tiny": 0, "tiny_1": 1}  # by the name of the world, which is also that of its model file


@pytest.mark.parametrize("name", SEEDS)
def test_the_configuration_pins_the_content(name, composer):
    cfg = composer.point([f"model={name}"]).cfg
    sources = [cfg["model"], cfg["data"], *cfg["benchmark"].values()]
    assert {source["revision"] for source in sources} == {locations.content_key(locations.WORLDS_FOLDER / name)}
    assert {source["path"].partition("/")[0] for source in sources} == {f"embedded:{name}"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_the_code_makes_the_stored_world_except_its_weights(name, tmp_path):
    """Compare problems, tokenizer and configuration; of the weights, which depend on the processor, only the shapes."""
    recipe = f"Recipe(seed={SEEDS[name]}, teaching_steps=1)"
    code = f"from rlvr_sweeps.assets.tiny import *; make({recipe}, Path({str(tmp_path / 'made')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    stored_world = locations.WORLDS_FOLDER / name
    files = {path.relative_to(stored_world) for path in stored_world.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "made") for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert json.loads((stored_world / "recipe.json").read_text()) == asdict(Recipe(seed=SEEDS[name]))
    weights = Path("model/model.safetensors")
    for file in files - {Path("recipe.json"), weights}:
        assert (stored_world / file).read_bytes() == (tmp_path / "made" / file).read_bytes(), file
    stored, new = load_file(stored_world / weights), load_file(tmp_path / "made" / weights)
    assert {name: value.shape for name, value in stored.items()} == {name: value.shape for name, value in new.items()}


@pytest.mark.slow
def test_the_world_is_equal_bit_for_bit_when_made_twice_on_one_machine(tmp_path):
    for name in ("a", "b"):
        code = f"from rlvr_sweeps.assets.tiny import *; make(Recipe(teaching_steps=5), Path({str(tmp_path / name)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert locations.content_key(tmp_path / "a") == locations.content_key(tmp_path / "b")


def test_a_world_with_another_content_key_is_refused(tmp_path, monkeypatch):
    shutil.copytree(WORLD, tmp_path / "tiny")
    monkeypatch.setattr(locations, "WORLDS_FOLDER", tmp_path)
    key = locations.content_key(tmp_path / "tiny")
    assert locations.locate("embedded:tiny", key) == str(tmp_path / "tiny" / "model")
    with pytest.raises(Refused, match=f"has the content key {key}, but this configuration pins 731ca517"):
        locations.locate("embedded:tiny/train.jsonl", "731ca517")
    with pytest.raises(Refused, match="pins None"):
        locations.locate("embedded:tiny", None)
    with pytest.raises(Refused, match="Embedded worlds: tiny"):
        locations.locate("embedded:tyni", key)
    with (tmp_path / "tiny" / "train.jsonl").open("a") as file:
        file.write("\n")
    locations.content_key.cache_clear()
    with pytest.raises(Refused, match=f"this configuration pins {key}"):
        locations.locate("embedded:tiny", key)
    locations.content_key.cache_clear()


def test_problems_are_distinct_and_their_answers_correct():
    evaluated, trained = draw_problems(Recipe())
    held_out = [problem for tier in evaluated.values() for problem in tier]
    assert len(set(held_out + trained)) == len(held_out) + len(trained) == 5 * 40 + 2000
    for problem in held_out:
        value = problem.start
        for op, x in problem.operations:
            value = eval(f"({value}){op}({x})") % 10
        assert problem.answer == value


def test_30_to_80_percent_of_the_teachers_answers_are_correct():
    rng, teacher = random.Random(0), Teacher(Recipe())
    verdicts = []
    for _ in range(2000):
        problem = draw_problem(rng, rng.randint(1, 5))
        verdicts.append(grade(teacher.trace(rng, problem), str(problem.answer)).correct)
    assert 0.3 < sum(verdicts) / len(verdicts) < 0.8


@pytest.mark.parametrize("text", ["Start with 7 A:+8 B:*3 mod 10.", "<think> A:7+8=5</think>\\boxed{5}", "Grüße, 你好 \n\t x²"])
def test_the_saved_tokenizer_loads_unchanged(text, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids, skip_special_tokens=True) == text
    chat = loaded.apply_chat_template(
        [{"role": "user", "content": "Start with 7 mod 10."}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<think>")
    assert loaded.convert_tokens_to_ids("<think>") in loaded(chat)["input_ids"]


def test_an_existing_folder_is_refused(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "rlvr_sweeps.assets.tiny", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 2 and "exists; remove it" in process.stderr


def test_a_failed_make_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("rlvr_sweeps.assets.tiny.draw_problems", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(replace(Recipe(), teaching_steps=1), tmp_path / "world")
    assert list(tmp_path.iterdir()) == []
