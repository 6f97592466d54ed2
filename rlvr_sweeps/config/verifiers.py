"""Read the verifier of a run from its configuration, with the SHA-256 of its source, and get its verdicts.

Training, evaluation, `rlvr regrade`, `audit` and `verify` all call `verdicts_of`, so that the same function decides everywhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import grading_of, rules_of
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.grading.grader import VERSION, Verdict
from rlvr_sweeps.grading.reward_pool import RewardFunction, VerifierError
from rlvr_sweeps.grading.reward_process import LoadError, source_digest
from rlvr_sweeps.grading.verifiers import MATH, Answered, Part, Verifier, check, verdicts

OWN_PACKAGE = "rlvr_sweeps."  # its functions have a version in conf/verifier instead of a SHA-256


def parts_of(cfg: Resolved) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (prefix of the settings, name, settings) of each verifier of a run; none where the configuration is older."""
    if settings := cfg.get("verifier"):
        yield "verifier", settings["name"], settings
        for name, part in settings["also"].items():
            yield f"verifier.also.{name}", name, part


def verifier_of(cfg: Resolved) -> Verifier:
    """Return the run's verifier; the project's grader where the stored configuration names none."""
    parts = [
        Part(
            name,
            RewardFunction(part["target"], part["source"], part["timeout_s"], part["memory_mb"]),
            part["weight"],
            None if part["columns"] is None else tuple(part["columns"]),
            tuple(part["arguments"].items()),
            part["text"],
            part["version"],
        )
        for _, name, part in parts_of(cfg)
    ]
    fields = {"parts": tuple(parts), "correct_at": cfg["verifier"]["correct_at"]} if parts else {}
    return Verifier(**fields, policy=grading_of(cfg), rules=rules_of(cfg))


def verdicts_of(cfg: Resolved, completions: Sequence[Answered], verifier: Verifier | None = None) -> list[Verdict]:
    """Return the verdict on each completion by the run's verifier, or another; raise Refused where it cannot be used."""
    try:
        return verdicts(verifier or verifier_of(cfg), completions)
    except VerifierError as error:
        raise Refused(f"The verifier cannot be used: {error}") from error


def refuse_unusable(cfg: Resolved, columns: Mapping[str, Any]) -> None:
    """Raise Refused where the verifier cannot be loaded, or reads a column that is not in `columns` of a problem."""
    try:
        check(verifier_of(cfg), Answered("", "", columns))
    except VerifierError as error:
        raise Refused(f"The verifier cannot be used: {error}") from error


def verdict_key(cfg: Resolved) -> Any:
    """Return what identifies the run's verifier in caches of verdicts: the grader's version, and the label of another one."""
    verifier = verifier_of(cfg)
    return VERSION if verifier.is_math else [VERSION, repr(verifier)]


def record_sources(cfg: Resolved) -> None:
    """Set `source` of each verifier to the SHA-256 of its file; raise Refused where settings or the source cannot work.

    A `source` that is set already pins the content.
    """
    for prefix, _, part in parts_of(cfg):
        refuse_unfit(prefix, part)
        if part["target"] == MATH or part["target"].startswith(OWN_PACKAGE):
            continue
        try:
            digest = source_digest(part["target"])
        except LoadError as error:
            raise Refused(f"{prefix}.target={part['target']}: {error}") from error
        if part["source"] not in (None, digest):
            raise Refused(
                f"{prefix}.target={part['target']} has the SHA-256 {digest}, but {prefix}.source={part['source']} pins another "
                f"content. Restore the file, or leave {prefix}.source out."
            )
        part["source"] = digest
    if cfg["verifier"]["correct_at"] != 1.0 and verifier_of(cfg).is_math:
        raise Refused(
            f"verifier.correct_at={cfg['verifier']['correct_at']} is set, but verifier=math alone scores 0 or 1. Leave it "
            "out, or use a verifier with other scores."
        )
    if cfg["verifier"]["also"] and cfg["verifier"]["name"] in cfg["verifier"]["also"]:
        raise Refused(f"verifier.also.{cfg['verifier']['name']} has the name of the verifier itself. Give it another name.")


def refuse_unfit(prefix: str, part: Mapping[str, Any]) -> None:
    """Raise Refused for a weight or limit that cannot work, and for a setting that the project's grader does not read."""
    if not math.isfinite(part["weight"]):
        raise Refused(f"{prefix}.weight={part['weight']} is not possible. Allowed: a finite number.")
    if not (math.isfinite(part["timeout_s"]) and part["timeout_s"] > 0):
        raise Refused(f"{prefix}.timeout_s={part['timeout_s']} is not possible. Allowed: a number of seconds above 0.")
    if part["memory_mb"] < 64:
        raise Refused(f"{prefix}.memory_mb={part['memory_mb']} is not possible. Allowed: a whole number from 64.")
    ignored: dict[str, Any] = {"columns": None, "arguments": {}, "text": False, "version": None}
    for name, default in ignored.items():
        if part["target"] == MATH and part[name] != default:
            raise Refused(
                f"{prefix}.{name} is set, but {prefix}.target=math is the project's grader, which does not read it. Leave it "
                "out, or set the target to a function: pkg.module:function or ./file.py:function."
            )
