"""What a run is: the hash of everything in its resolved configuration that can change its science.

`run_id` drops what cannot (where it runs, what watches it, how it is cut into micro-batches, what is evaluated
afterwards), what equals the schema's default (so a new setting leaves old ids alone), and the dials a method does not
read (full fine-tuning has no rank): rank, α and dropout count only through the `peft.config` they are written into.
"""

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import MISSING, OmegaConf

from rlvr_sweeps.config import Config
from rlvr_sweeps.grading import Policy

Resolved = dict[str, Any]  # a run's configuration as plain data, every interpolation resolved

NOT_SCIENCE = (
    "rank", "alpha", "dropout",  # read through peft.config
    "cluster.*", "distributed.*", "tracking.*", "benchmark.*", "evaluation.*",
    "sweep", "runs_dir", "plan", "retry", "wait", "canary", "untested_versions", "analysis",
    "*.title", "peft.not_the_base_in_training", "peft.factored_norm", "*.unavailable", "model.architecture.*",
    "model.opens_think", "data.problems",
    "rollout.vllm.*", "rollout.check_every", "rollout.tolerance_nats.*",
    "training.per_device_batch_size", "training.save_every", "training.gradient_checkpointing", "training.micro_batches",
    "training.worst_case_first",
)  # fmt: skip
SCIENCE_OF_BASE = ("model.*",)  # nothing is trained: neither objective, data nor seed has a say
HELD_OUT = "heldout"  # the benchmark of training prompts that were held out: no exam, no part of the overall average
NOT_IN_EVALUATION = ("*.problems", "evaluation.batch_size", "evaluation.engine", "evaluation.vllm.*")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is one leaf, an empty mapping none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def digest(facts: Mapping[str, Any], length: int = 8) -> str:
    """The first `length` hex digits of the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:length]


@cache
def schema_defaults() -> dict[str, Any]:
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    return {key: value for key, value in leaves({str(key): value for key, value in schema.items()}) if value != MISSING}


def science(cfg: Resolved) -> dict[str, Any]:
    """The leaves that make this run this run."""
    defaults = schema_defaults()
    absent = object()
    return {
        key: value
        for key, value in leaves(cfg)
        if not matches(key, NOT_SCIENCE)
        and (is_trained(cfg) or matches(key, SCIENCE_OF_BASE))
        and defaults.get(key, absent) != value
    }


def run_id(cfg: Resolved) -> str:
    return digest(science(cfg))


def run_name(cfg: Resolved) -> str:
    """The run's directory: `<model>-<peft>-<algo>-<id>`."""
    algo = cfg["algo"]["name"] if is_trained(cfg) else "none"
    return f"{cfg['model']['name']}-{cfg['peft']['name']}-{algo}-{run_id(cfg)}"


def is_trained(cfg: Resolved) -> bool:
    """False for peft=none, the Base row."""
    return bool(cfg["peft"]["trains"] != "nothing")


def exams(benchmarks: Iterable[str]) -> list[str]:
    """The benchmarks that the overall average is over."""
    return [name for name in benchmarks if name != HELD_OUT]


def grading_of(cfg: Resolved) -> Policy:
    """The grading policy; a run from before there was a choice has the default."""
    policy: Policy = cfg.get("grading", schema_defaults()["grading"])
    return policy


def analysis_of(cfg: Resolved) -> str:
    """When the update's spectra are taken; a run from before there was a choice asks for none."""
    return str(cfg.get("analysis", schema_defaults()["analysis"]))


def training_of(cfg: Resolved, setting: str) -> str:
    """How a run trains; a configuration without the setting, of an older version, goes on by the default."""
    return str(cfg["training"].get(setting, schema_defaults()[f"training.{setting}"]))


def evaluation_spec(cfg: Resolved) -> str:
    """Hash of what is evaluated and how; results are comparable exactly where it is equal."""
    asked = {"evaluation": cfg["evaluation"], "benchmark": cfg["benchmark"]}
    stated = {} if grading_of(cfg) == schema_defaults()["grading"] else {"grading": grading_of(cfg)}
    said = {key: value for key, value in leaves(asked | stated) if not matches(key, NOT_IN_EVALUATION)}
    return digest({key: value for key, value in said.items() if value or not key.endswith(".held_out")})
