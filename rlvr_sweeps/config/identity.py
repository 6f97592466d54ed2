"""What a run is: the hash of everything in its resolved configuration that can change its science.

`run_id` drops what cannot (where it runs, what watches it, how it is cut into micro-batches, what is evaluated
afterwards), what equals the schema's default (so a new setting leaves old ids alone), and the dials a method does not
read (full fine-tuning has no rank): rank, α and dropout count only through the `peft.config` they are written into.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from rlvr_sweeps.config.schema import Resolved, leaves, schema_defaults
from rlvr_sweeps.config.settings import grading_of, is_trained

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
NOT_IN_EVALUATION = ("*.problems", "evaluation.batch_size", "evaluation.engine", "evaluation.vllm.*")


@cache
def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def digest(facts: Mapping[str, Any], length: int = 8) -> str:
    """The first `length` hex digits of the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:length]


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


def evaluation_spec(cfg: Resolved) -> str:
    """Hash of what is evaluated and how; results are comparable exactly where it is equal."""
    asked = {"evaluation": cfg["evaluation"], "benchmark": cfg["benchmark"]}
    stated = {} if grading_of(cfg) == schema_defaults()["grading"] else {"grading": grading_of(cfg)}
    said = {key: value for key, value in leaves(asked | stated) if not matches(key, NOT_IN_EVALUATION)}
    return digest({key: value for key, value in said.items() if value or not key.endswith(".held_out")})
