"""The embedded world: made the same every time, by one maker at a time, and read like any other model."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from rlvr_sweeps import assets
from rlvr_sweeps.arithmetic import Teacher, draw, problems
from rlvr_sweeps.grading import grade
from rlvr_sweeps.tiny import Recipe, make, make_tokenizer
from tests.conftest import ROOT


def test_the_configuration_pins_this_recipe(composer):
    assert composer.point([]).cfg["model"]["revision"] == Recipe().key


def test_every_bit_repeats(tmp_path):
    recipe = replace(Recipe(), teaching_steps=5)
    for name in ("a", "b"):
        code = f"from rlvr_sweeps.tiny import *; make(Recipe(teaching_steps=5), Path({str(tmp_path / name)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 8
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert recipe.key != Recipe().key


@pytest.mark.slow
def test_two_makers_at_once_make_it_once(tmp_path):
    code = (
        "import rlvr_sweeps.assets as assets\nfrom rlvr_sweeps.compose import offline_composer\n"
        "assets.ensure([offline_composer().point([]).cfg]); print('there')"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    start = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    makers = [subprocess.Popen([sys.executable, "-c", code], **start) for _ in range(2)]
    outputs = [maker.communicate(timeout=600) for maker in makers]
    assert all(output[0].endswith("there\n") for output in outputs), outputs
    assert sum("making the embedded model" in output[1] for output in outputs) == 1
    assert len(list((tmp_path / "rlvr_sweeps").glob("tiny-*"))) == 1


def test_problems_are_distinct_right_and_not_shared():
    evaluated, trained = problems(Recipe())
    held_out = [problem for tier in evaluated.values() for problem in tier]
    assert len(set(held_out + trained)) == len(held_out) + len(trained) == 5 * 40 + 2000
    for problem in held_out:
        value = problem.start
        for op, x in problem.operations:
            value = eval(f"({value}){op}({x})") % 10
        assert problem.answer == value


def test_the_teacher_is_mostly_right_and_sometimes_not():
    rng, teacher = random.Random(0), Teacher(Recipe())
    verdicts = []
    for _ in range(2000):
        problem = draw(rng, rng.randint(1, 5))
        verdicts.append(grade(teacher.trace(rng, problem), str(problem.answer)).correct)
    assert 0.3 < sum(verdicts) / len(verdicts) < 0.8


@pytest.mark.parametrize("text", ["Start with 7 A:+8 B:*3 mod 10.", "<think> A:7+8=5</think>\\boxed{5}", "Grüße, 你好 \n\t x²"])
def test_the_tokenizer_survives_saving_and_auto_loading(text, tmp_path):
    made = make_tokenizer()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = made(text)["input_ids"]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids, skip_special_tokens=True) == text
    chat = loaded.apply_chat_template(
        [{"role": "user", "content": "Start with 7 mod 10."}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<think>")
    assert loaded.convert_tokens_to_ids("<think>") in loaded(chat)["input_ids"]


def test_a_wrong_revision_is_an_error_with_the_way_out(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlvr_sweeps.tiny", "--key", "deadbeef", "--into", str(tmp_path / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and Recipe().key in done.stderr
    with pytest.raises(Exception, match="needs a revision"):
        assets.locate("embedded:tiny", None)


def test_make_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setattr("rlvr_sweeps.tiny.problems", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(replace(Recipe(), teaching_steps=1), tmp_path / "world")
    assert list(tmp_path.iterdir()) == []
