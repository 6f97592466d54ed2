"""Compute a run's id: the hash of every setting that can change what is trained.

Three kinds of settings are left out of the hash: those that cannot change the training (NOT_SCIENCE: machine, tracking,
micro-batches, evaluation); those equal to the schema's default, so that a new setting leaves existing ids unchanged; and the
dials that a method does not have (full fine-tuning has no rank): rank, α, dropout and modules enter only through `peft.config`.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from rlvr_sweeps.config.schema import Resolved, leaves, schema_defaults
from rlvr_sweeps.config.settings import grading_of, is_trained, model_precision, rules_of
from rlvr_sweeps.grading.rules import DEFAULT_RULES

NOT_SCIENCE = (  # patterns of dotted keys that are not part of a run's id
    "rank", "alpha", "dropout", "modules", "model.attention_modules",  # they enter through peft.config
    "cluster.*", "distributed.*", "tracking.*", "benchmark.*", "evaluation.*",
    "sweep", "runs_dir", "plan", "retry", "wait", "canary", "budget", "most_seeds", "untested_versions", "analysis",
    "*.title", "peft.not_the_base_in_training", "peft.factored_norm", "*.unavailable", "model.architecture.*",
    "model.opens_think", "model.paper_size", "model.license", "data.problems",
    "rollout.vllm.*", "rollout.sleep", "rollout.continuous", "rollout.check_every", "rollout.tolerance_nats.*",
    "training.per_device_batch_size", "training.save_every", "training.save_minutes",
    "training.gradient_checkpointing", "training.micro_batches",
    "training.worst_case_first", "training.samples_per_step", "signal_check",
    "verifier.name", "verifier.*timeout_s", "verifier.*memory_mb",
)  # fmt: skip
SCIENCE_OF_BASE = ("model.*",)  # an untrained run's id depends on the model only
LATER_DEFAULTS = {
    "held_out": 0,
    **dict.fromkeys(("answer_after", "size", "seed", "test_size", "test_seed", "part")),
}  # of a benchmark
NOT_IN_EVALUATION = ("*.problems", "evaluation.batch_size", "evaluation.engine", "evaluation.vllm.*")  # of evaluation_spec


@cache
def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a dotted key matches one of the shell-style patterns."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def digest(facts: Mapping[str, Any], length: int = 8) -> str:
    """Return the first `length` hex digits of the SHA-256 of `facts` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:length]


def science(cfg: Resolved) -> dict[str, Any]:
    """Return the leaves of the configuration that identify the run, by dotted key."""
    defaults = schema_defaults()
    absent = object()
    return {
        key: value
        for key, value in leaves(cfg)
        if not matches(key, NOT_SCIENCE)
        and (is_trained(cfg) or matches(key, SCIENCE_OF_BASE))
        and defaults.get(key, absent) != value
        and not (key == "rollout.weights" and value == model_precision(cfg))  # what a configuration without this key means
    }


def run_id(cfg: Resolved) -> str:
    """Return the run's id, eight hex digits."""
    return digest(science(cfg))


def run_name(cfg: Resolved) -> str:
    """Return the name of the run's directory: `<model>-<peft>-<algo>-<id>`."""
    algo = cfg["algo"]["name"] if is_trained(cfg) else "none"
    return f"{cfg['model']['name']}-{cfg['peft']['name']}-{algo}-{run_id(cfg)}"


def evaluation_spec(cfg: Resolved) -> str:
    """Return the hash of what is evaluated and how; results are comparable exactly where it is equal.

    Settings that were added later (`grading`, `answers.*`, `verifier.*`, `evaluation.weights`, LATER_DEFAULTS) enter only where
    they differ from their default.
    """
    settings = {"evaluation": cfg["evaluation"], "benchmark": cfg["benchmark"]}
    grading = {} if grading_of(cfg) == schema_defaults()["grading"] else {"grading": grading_of(cfg)}
    rules = {key: value for key, value in asdict(rules_of(cfg)).items() if value != getattr(DEFAULT_RULES, key)}
    settings |= grading | ({"answers": rules} if rules else {}) | verifier_settings(cfg)
    values = {key: value for key, value in leaves(settings) if not matches(key, NOT_IN_EVALUATION)}
    if values.get("evaluation.weights") in (None, model_precision(cfg)):
        values.pop("evaluation.weights", None)
    return digest({key: value for key, value in values.items() if not is_later_default(key, value)})


def verifier_settings(cfg: Resolved) -> dict[str, Any]:
    """Return the settings of the verifier that can change a verdict, by dotted key, where they differ from their default."""
    defaults, absent = schema_defaults(), object()
    settings = leaves({"verifier": cfg.get("verifier", {})})
    return {key: value for key, value in settings if not matches(key, NOT_SCIENCE) and defaults.get(key, absent) != value}


def is_later_default(key: str, value: Any) -> bool:
    """Return whether a leaf `benchmark.NAME.FIELD` has the default of a field that was added later."""
    group, field = key.split(".")[0], key.split(".")[-1]
    return group == "benchmark" and key.count(".") == 2 and field in LATER_DEFAULTS and LATER_DEFAULTS[field] == value
