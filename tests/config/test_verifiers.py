"""Test the settings of verifiers: what is refused, what is recorded, and configurations that are older than they are."""

import hashlib

import pytest

from rlvr_sweeps.config.verifiers import verifier_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.verifiers import Verifier
from tests.conftest import choices


@pytest.mark.parametrize("name", sorted(set(choices("verifier")) - {"custom"}))
def test_ready_verifiers_need_no_source(composer, name):
    verifier = verifier_of(composer.point([f"verifier={name}", "grading=any"]).cfg)
    assert verifier.parts[0].function.source is None and verifier.is_math == (name == "math") and verifier.policy == "any"


def test_a_configuration_without_verifier_has_the_default(composer):
    cfg = composer.point([]).cfg
    assert verifier_of({key: value for key, value in cfg.items() if key != "verifier"}) == verifier_of(cfg) == Verifier()


def test_source_and_weights_are_recorded_and_pinned(composer, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(completions, **kwargs): return [0.5]\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    also = f"+verifier.also={{mine: {{target: '{path}:reward', weight: 0.25}}}}"
    cfg = composer.point([also]).cfg
    assert cfg["verifier"]["also"]["mine"]["source"] == digest
    assert verifier_of(cfg).label() == f"math version 4 + 0.25 {path}:reward@{digest[:12]}"
    custom = ["verifier=custom", f"verifier.target={path}:reward"]
    assert composer.point([*custom, f"verifier.source={digest}"]).cfg == composer.point(custom).cfg
    with pytest.raises(Refused, match="pins another content"):
        composer.point([*custom, "verifier.source=1234"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["verifier=custom", "verifier.target=./nothing.py:f"], r"verifier\.target=\./nothing\.py:f: .* does not exist"),
        (["verifier=custom", "verifier.target=f"], "names no function"),
        (["verifier=choice", "verifier.weight=inf"], r"verifier\.weight=inf is not possible"),
        (["verifier=choice", "verifier.timeout_s=0"], r"verifier\.timeout_s=0\.0 is not possible"),
        (["verifier=choice", "verifier.memory_mb=1"], r"verifier\.memory_mb=1 is not possible"),
        (["verifier.columns=[a]"], r"verifier\.columns is set, but verifier\.target=math is the project's grader"),
        (["verifier.correct_at=0.5"], r"verifier=math alone scores 0 or 1"),
        (["data.answer=null"], r"data\.answer=null, but verifier=math compares with gold answers"),
        (["+verifier.also={math: {target: math}}"], r"verifier\.also\.math has the name of the verifier itself"),
    ],
)
def test_settings_that_cannot_work_are_refused(composer, overrides, message):
    with pytest.raises(Refused, match=message):
        composer.point(overrides)
