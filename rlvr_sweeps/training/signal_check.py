"""Check before the first step that the start policy is neither always right nor always wrong: otherwise nothing is learned.

A group of completions with equal rewards has no advantage. A model that never writes a box, under a grading that requires one,
would train for hours at reward 0. The completions and verdicts are stored on this machine by everything that determines them
(weights, prompts, golds, grading, decoding), so that the runs of a sweep, and a canary before them, sample them once.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, get_args

from transformers import TrainerCallback

from rlvr_sweeps import patches
from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import grading_of, rules_of, signal_check_of
from rlvr_sweeps.config.verifiers import verdict_key, verdicts_of, verifier_of
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import Row, read_json, text_digest, write_json
from rlvr_sweeps.grading.extraction import END_OF_THINKING, POLICIES, MissingReason, Policy, extract
from rlvr_sweeps.grading.grader import grade_all
from rlvr_sweeps.grading.verifiers import Answered
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.rollouts import without_middle
from rlvr_sweeps.training.seeded_sampling import seed_of

COMPLETIONS = 16  # of distinct problems, as far as there are so many
FURTHER = 48  # more, before a run is stopped that has answers in the required form: a rare success may be among them
SHOWN_CHARACTERS = 300  # of each completion in the message


class SignalCheck(TrainerCallback):
    """Stop a run before its first step (`signal_check=stop`) or print a warning (`warn`) where there is no learning signal."""

    def __init__(self, run: Run, trainer: Any, model_key: str) -> None:
        self.run, self.trainer, self.model_key = run, trainer, model_key

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise Refused where every completion of the start policy has the same verdict."""
        mode = signal_check_of(self.trainer.cfg)
        if mode == "off" or state.global_step:
            return
        self.trainer.announce("grading completions of the start policy")
        rows = self.graded(COMPLETIONS)
        if without_signal(rows) and any(row["reason"] not in get_args(MissingReason) for row in rows):
            rows = self.graded(COMPLETIONS + FURTHER)
        if state.is_world_process_zero:
            write_json(self.run.signal_path, {"completions": rows})
        if without_signal(rows):
            text = explanation(rows, self.trainer.cfg)
            if mode == "stop":
                raise Refused(text)
            if state.is_world_process_zero:
                print(f"warning: {text}", flush=True)

    def graded(self, count: int) -> list[Row]:
        """Return `count` graded completions of the start policy, from this machine's cache where they are there."""
        trainer, cfg = self.trainer, self.trainer.cfg
        problems = list(trainer.prompts.rows)
        random.Random("signal").shuffle(problems)
        chosen = [problems[index % len(problems)] for index in range(count)]
        decoding = [cfg["rollout"][name] for name in ("engine", "temperature", "top_p", "max_tokens")]
        prompts = [trainer.prompt_ids(row["prompt"]) for row in chosen]
        request = [
            self.model_key,
            prompts,
            [row["gold"] for row in chosen],
            grading_of(cfg),
            asdict(rules_of(cfg)),
            decoding,
            verdict_key(cfg),
            *([row["columns"] for row in chosen] if "columns" in chosen[0] else []),
        ]
        path = cache_dir() / "signal" / f"{text_digest(json.dumps(request))[:32]}.json"
        stored: list[Row] | None = None
        with suppress(OSError, Damaged):
            stored = read_json(path)
        if stored is None:
            stored = self.sample(chosen, prompts)
            if trainer.accelerator.is_main_process:
                with suppress(OSError):
                    write_json(path, stored)
        return stored

    def sample(self, problems: Sequence[Row], prompts: list[list[int]]) -> list[Row]:
        """Sample and grade one completion of the start policy for each problem; no random number of the training is used."""
        trainer, cfg = self.trainer, self.trainer.cfg
        seeds = [seed_of("signal", index) for index in range(len(problems))]
        completions, _ = trainer.sample(prompts, seeds)
        if trainer.use_vllm:
            patches.set_synced_step(trainer, -1)
            trainer.compared_step = None  # the first step compares the two samplers itself and records the difference
        texts = trainer.processing_class.batch_decode(completions, skip_special_tokens=True)
        answered = [Answered(text, row["gold"], row.get("columns", {})) for text, row in zip(texts, problems, strict=True)]
        verdicts = verdicts_of(cfg, answered)
        ends = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
        return [
            {
                "problem": row["problem"], "prompt": row["prompt"][-1]["content"], "gold": row["gold"], "text": text,
                "answer": verdict.answer, "correct": verdict.correct, "score": verdict.reward, "reason": verdict.reason,
                "tokens": len(ids), "truncated": ids[-1] not in ends,
            }
            for row, text, verdict, ids in zip(problems, texts, verdicts, completions, strict=True)
        ]  # fmt: skip


def without_signal(rows: Sequence[Row]) -> bool:
    """Return whether all scores are equal."""
    return len({row.get("score", row["correct"]) for row in rows}) == 1


def explanation(rows: Sequence[Row], cfg: Resolved) -> str:
    """Return why there is no learning signal: a line with the shares of reasons and what to change, then three completions."""
    verdict = "right" if rows[0]["correct"] else "wrong"
    counts = Counter(row["reason"] for row in rows).most_common()
    shares = ", ".join(f"{count / len(rows):.0%} {reason}" for reason, count in counts)
    shown = "\n".join(f"  {position}. {without_middle(row['text'], SHOWN_CHARACTERS)!r} (gold answer {row['gold'][:80]!r})"
                      for position, row in enumerate(rows[:3], 1))  # fmt: skip
    return (
        f"All {len(rows)} sampled completions of the start policy are {verdict} ({shares}), so no group of completions has a "
        f"learning signal. {advice(rows, cfg)} To train nevertheless: signal_check=warn retry=true.\nThree of them:\n{shown}"
    )


def missing_form(texts: Sequence[str], cfg: Resolved) -> str | None:
    """Return how many completions lack a box, or the end of thinking, that the grading requires; None where none does."""
    if (grading := grading_of(cfg)) == "any" or not verifier_of(cfg).is_math:
        return None
    lacking = {END_OF_THINKING: sum(END_OF_THINKING not in text for text in texts) if grading == "boxed_after_thinking" else 0}
    lacking["\\boxed{}"] = sum(extract(text, "boxed")[0] is None for text in texts)
    counts = " and ".join(f"{count} without {form}" for form, count in lacking.items() if count)
    return f"grading={grading} requires what is missing in them: {counts}." if counts else None


def advice(rows: Sequence[Row], cfg: Resolved) -> str:
    """Return what to change, with the number of completions that another grading would accept."""
    if rows[0]["correct"]:
        return "Use harder problems (data=), since these are solved already."
    own: Policy = grading_of(cfg)
    texts, golds = [row["text"] for row in rows], [row["gold"] for row in rows]
    sentences = [sentence] if (sentence := missing_form(texts, cfg)) else []
    # Policies are ordered from strict to lax; reward functions read the whole completion.
    laxer: tuple[Policy, ...] = POLICIES[POLICIES.index(own) + 1 :] if verifier_of(cfg).is_math else ()
    for policy in laxer:
        if count := sum(verdict.correct for verdict in grade_all(texts, golds, policy, rules_of(cfg))):
            sentences.append(f"With grading={policy}, {count} of {len(rows)} would be right.")
            break
    if any(row["truncated"] for row in rows):
        cut_off = sum(row["truncated"] for row in rows)
        sentences.append(
            f"{cut_off} of {len(rows)} were cut off at rollout.max_tokens={cfg['rollout']['max_tokens']}: raise it."
        )
    if any(row["reason"] in get_args(MissingReason) for row in rows) and own != "any":
        sentences.append("A system prompt can ask for the answer's form: model.system_prompt='… \\boxed{}'.")
    if not sentences or any(row["reason"] not in get_args(MissingReason) for row in rows):
        sentences.append("Use easier problems (data=) or a stronger model (model=).")
    return " ".join(sentences)
