"""The trainer: TRL's GRPOTrainer with rollouts, optimizer and metrics of this package; the loss is TRL's."""

import itertools
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict

from rlvr_sweeps import patches
from rlvr_sweeps.assets.problems import token_ids
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import (
    LOSSES_OVER_COMPLETIONS,
    completions_per_row,
    cuts_passes,
    model_precision,
    samples_at_once,
    sampling_precision,
    sampling_weights,
    steps_per_call,
    training_of,
)
from rlvr_sweeps.files import Row, write_json
from rlvr_sweeps.training.continuous_sampling import DISCARDED, EXCHANGES, ContinuousSampling, Graded, Rounds
from rlvr_sweeps.training.dynamic_sampling import Group, Pool, PromptStream, fill, pool_of, pools_of
from rlvr_sweeps.training.methods.adalora import AdaLoraSchedule
from rlvr_sweeps.training.methods.adapters import loraplus_optimizer
from rlvr_sweeps.training.methods.merging import merged
from rlvr_sweeps.training.methods.reach import update_kept
from rlvr_sweeps.training.micro_batches import count_positions, passes_of, weigh
from rlvr_sweeps.training.models import PublishedWeights
from rlvr_sweeps.training.random_state import kept_random_state
from rlvr_sweeps.training.right_padding import RightPadded
from rlvr_sweeps.training.sampler_agreement import (
    Scores,
    gap,
    importance,
    refuse_disagreement,
    refuse_sampling_gap,
    sampler_weights,
)
from rlvr_sweeps.training.seeded_sampling import sample, seed_of
from rlvr_sweeps.training.shared_prompts import SharedPrompts, refuse_other_attention
from rlvr_sweeps.training.weight_rounding import Rounding, rounding_of


class RlvrTrainer(GRPOTrainer):
    """TRL's GRPO with dynamic sampling, rollouts from merged weights with one seed per completion, LoRA+ and AdaLoRA.

    A step samples before TRL's scoring begins, since dynamic sampling must know the rewards of a round to decide on the next.
    TRL then receives the chosen rollouts through its documented hooks: the completions by `rollout_func`, the rewards as a
    dataset column that its reward functions read. The loss is TRL's.
    """

    optimizer: Any
    vllm_importance_sampling_correction: bool
    PROMPTS_FILE = "prompts.json"
    PENDING_FILE = "pending.pt"

    def __init__(self, cfg: Resolved, model: Any, rows: Sequence[Row], reward_funcs: Sequence[Any], **kwargs: Any) -> None:
        self.cfg = cfg
        self.seconds: dict[str, float] = defaultdict(float)
        self.columns: dict[str, float] = {}  # this step's additions to its row of metrics.jsonl
        self.prompts = PromptStream(rows, cfg["seed"])
        self.score_functions = reward_funcs
        self.rollouts: list[Group] = []  # this process's groups of the step, for TRL
        self.readable: list[Row] = []  # some of the step's completions, for rollouts.jsonl
        self.announce: Callable[[str], object] = str  # called with what the trainer does at present; by default without effect
        self.check_stop: Callable[[], object] = str  # called within a step, raises where training must end; by default nothing
        self.truncated_share: float | None = None  # of the step's completions, those that reached the token limit
        self.pending: list[Pool] = []  # with rollout.lag=1: sampled already, for the next step
        self.compared_step: int | None = None  # when vLLM was last compared with the policy, in this process
        self.published: PublishedWeights | None = None  # W0, set by the train stage, to measure vLLM's share of ΔW
        self.cuts_passes = cuts_passes(cfg)
        self.passes: list[dict[str, Any] | None] = []  # with cuts_passes: the step's forward passes
        self.completions_per_row = completions_per_row(cfg)
        if self.completions_per_row > 1:
            refuse_other_attention(model)
        self.calls = 0  # of training_step
        self.scores = Scores()
        self.batch_in_loss: dict[str, Any] | None = None
        self.adalora = AdaLoraSchedule(model) if cfg["peft"]["config"].get("peft_type") == "ADALORA" else None
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # experimental; the version is pinned
            if cfg["rollout"]["engine"] == "vllm":
                from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

                stack.enter_context(patches.trl_vllm_engine(partial(VllmRollouts, cfg)))
            super().__init__(
                model=model,
                # Only the number of rows is used: prompts come from `self.prompts`.
                train_dataset=Dataset.from_dict({"prompt": [""] * len(rows)}),
                reward_funcs=[stored_reward(index, function.__name__) for index, function in enumerate(reward_funcs)],
                rollout_func=stored_rollouts,
                **kwargs,
            )
        if self.adalora:
            self.add_callback(self.adalora)

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's scored batch of the step's rollouts. Only `len(inputs)` is used; prompts come from `self.prompts`."""
        with self.timed("sampling"):
            return self.sample_and_score(len(inputs))

    def sample_and_score(self, completions: int) -> dict[str, Any]:
        """Sample until the step is filled and let TRL score this process's `completions`."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        groups = completions // self.num_generations * world
        if not self.pending:
            steps = min(steps_per_call(self.cfg), self.state.max_steps - self.state.global_step)
            self.pending = self.sample_at_once(groups, steps) if samples_at_once(self.cfg) else [self.sample_in_rounds(groups)]
            if self.use_vllm:
                self.vllm_generation.fall_asleep()
        pool = self.pending.pop(0)
        self.announce("updating")
        self.columns |= pool.metrics()
        ends = {*self.eos_token_ids, self.processing_class.pad_token_id}
        is_truncated = [ids[-1] not in ends for group in pool.sampled for ids in group.completion_ids]
        self.truncated_share = float(torch.tensor(is_truncated).float().mean())
        shown = int(training_of(self.cfg, "samples_per_step"))
        self.readable = pool.readable(shown, f"{self.cfg['seed']}-{self.state.global_step}", ends) if shown else []
        self.state.num_input_tokens_seen += pool.tokens_sampled() - pool.tokens_trained()  # TRL adds those that are trained on
        per_process = len(pool.trained) // world
        self.rollouts = pool.trained[rank * per_process : (rank + 1) * per_process]
        rows = [
            row | {"rewards": rewards}
            for group in self.rollouts
            for row, rewards in zip(group.rows, group.rewards.tolist(), strict=True)
        ]
        is_corrected = self.vllm_importance_sampling_correction
        if self.use_vllm:
            patches.set_synced_step(self, self.state.global_step)  # or TRL would load weights into vLLM with nothing to sample
        # With the correction on, TRL scores all completions in a forward pass of its own.
        self.vllm_importance_sampling_correction = is_corrected and not self.scores_once
        try:
            scored = super()._generate_and_score_completions(rows)
        finally:
            self.vllm_importance_sampling_correction = is_corrected
        if self.use_vllm and is_corrected and not self.scores_once:
            self.scores.add(scored["old_per_token_logps"], scored)
        return scored

    def sample_in_rounds(self, groups: int) -> Pool:
        """Return the groups of a step, sampled in rounds of `groups` prompts."""
        most, rounds = self.cfg["algo"]["sampling_rounds"], itertools.count(1)

        def roll(groups: int) -> list[Group]:
            number = next(rounds)
            self.announce(f"sampling round {number} of at most {most}" if most > 1 else "sampling")
            if number > 1:
                self.check_stop()
            return self.roll(groups)

        return fill(roll, groups, most)

    def sample_at_once(self, groups: int, steps: int = 1) -> list[Pool]:
        """Return the groups of each of `steps` steps, sampled in one call of the engine; of one, as `sample_in_rounds` does.

        Each process decodes its share of every round. They exchange which groups are mixed, so that all stop at the same time.
        """
        from rlvr_sweeps.training.vllm_rollouts import ContinuousEngine

        world, rank, most = self.accelerator.num_processes, self.accelerator.process_index, self.cfg["algo"]["sampling_rounds"]
        start, size, rounds = self.prompts.position, self.num_generations, Rounds(groups, most, steps)
        own = [index for index in range(rounds.most * groups) if index % groups * world // groups == rank]

        def draw(index: int) -> tuple[list[Row], list[list[int]], list[int]]:
            row, position = self.prompts.at(start + index), start + index
            seeds = [seed_of(self.cfg["seed"], "rollout", position, number) for number in range(size)]
            return [row] * size, [self.prompt_ids(row["prompt"])] * size, seeds

        def exchange(known: dict[int, bool]) -> dict[int, bool]:
            of_all = dict(gather_object(list(known.items())))
            if most > 1 and any(of_all.values()):
                mixed = sum(rounds.is_mixed.values()) + sum(of_all.values())
                enough = min(mixed, rounds.wanted)
                self.announce(f"sampling, {enough} of {rounds.wanted} groups with right and wrong completions")
            self.check_stop()
            return of_all

        self.announce("sampling")
        with self.timed("rollout"):
            self.sync(self.accelerator.unwrap_model(self.model_wrapped))
            sampling = ContinuousSampling(
                ContinuousEngine(self.vllm_generation, self.eos_token_ids), rounds, own, draw=draw, read=self.texts,
                grade=self.grade, exchange=exchange,
                exchange_every=max(1, self.max_completion_length // EXCHANGES),
            )  # fmt: skip
            with kept_random_state():  # vLLM draws numbers, as in VllmRollouts.generate_outputs
                own_groups = sampling.run()
        self.seconds["rollout"] -= sampling.waited_s
        self.seconds["reward"] += sampling.waited_s
        self.prompts.position = start + rounds.needed
        by_index = dict(gather_object(list(own_groups.items())))
        sampled = [by_index[index] for index in range(rounds.needed)]
        first, *later = pools = pools_of(sampled, rounds.bound, groups, most, steps)
        if most > 1:
            counts = gather_object([sampling.discarded])
            first.discarded = {name: sum(count[name] for count in counts) for name in DISCARDED}
            for pool in later:
                pool.discarded = dict.fromkeys(DISCARDED, 0)
        return pools

    @property
    def scores_once(self) -> bool:
        """Whether the update's own forward pass gives what the importance correction needs: one update per rollout."""
        is_set = self.use_vllm and training_of(self.cfg, "log_probabilities") == "once" and self.num_iterations == 1
        return bool(is_set and self.vllm_importance_sampling_mode == "token_truncate" and self.loss_type != "vespo")

    def roll(self, groups: int) -> list[Group]:
        """Sample and score one round: `groups` prompts, G completions each, shared out to the processes.

        Returns the groups of all processes, in the same order on each.
        """
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.num_generations
        draws = self.prompts.take(groups)[rank * groups // world : (rank + 1) * groups // world]
        rows = [row for _, row in draws for _ in range(size)]
        seeds = [seed_of(self.cfg["seed"], "rollout", position, index) for position, _ in draws for index in range(size)]
        with self.timed("rollout"):
            prompt_ids = [ids for _, row in draws for ids in [self.prompt_ids(row["prompt"])] * size]
            completion_ids, logprobs = self.sample(prompt_ids, seeds)
            completions = self.texts(completion_ids)
        with self.timed("reward"):
            rewards, reasons, correct = self.grade(rows, completions, completion_ids)
        samples = zip(rows, prompt_ids, completion_ids, completions, logprobs or rows, rewards, reasons, correct, strict=True)
        all_samples = gather_object(list(samples))
        rolled = []
        for start in range(0, groups * size, size):
            columns: list[list[Any]] = [list(column) for column in zip(*all_samples[start : start + size], strict=True)]
            rows, prompt_ids, completion_ids, completions, scores, rewards, reasons, correct = columns
            own_scores, table = scores if logprobs else None, torch.tensor(rewards)
            rolled.append(Group(rows, prompt_ids, completion_ids, completions, own_scores, table, reasons, correct))
        return rolled

    def prompt_ids(self, conversation: list[dict[str, str]]) -> list[int]:
        """Return the token ids of a prompt, with `training.trl.chat_template_kwargs` as TRL applies them."""
        ids: list[int] = self.processing_class.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=False, **self.chat_template_kwargs
        )
        return ids

    def texts(self, completion_ids: list[list[int]]) -> list[Any]:
        """Return completions as conversations of one message."""
        texts = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": text}] for text in texts]

    def grade(self, rows: list[Row], completions: list[Any], ids: list[list[int]]) -> Graded:
        """Return the rewards of every completion, and the verifier's reason and verdict."""
        rewards, verdicts = self.score(rows, completions, ids), self.score_functions[0].verdicts
        return rewards, [verdict.reason for verdict in verdicts], [verdict.correct for verdict in verdicts]

    def score(self, rows: list[Row], completions: list[Any], completion_ids: list[list[int]]) -> list[list[float]]:
        """Return the rewards of every completion, one of each reward function."""
        names = rows[0].keys() - {"prompt"}
        columns = {name: [row[name] for row in rows] for name in names}
        scores = [
            function(completions=completions, completion_ids=completion_ids, **columns) for function in self.score_functions
        ]
        return [list(row) for row in zip(*scores, strict=True)]

    def sample(self, prompt_ids: list[list[int]], seeds: list[int]) -> tuple[list[list[int]], list[list[float]] | None]:
        """Return one completion of the policy per prompt, as token ids, and vLLM's log-probabilities of them or None."""
        rollout, policy = self.cfg["rollout"], self.accelerator.unwrap_model(self.model_wrapped)
        if self.use_vllm:
            self.sync(policy)
            return self.vllm_generation.sample(prompt_ids, seeds, self.eos_token_ids)
        with ExitStack() as weights:
            with self.timed("sync"):
                weights.enter_context(merged(policy, self.rounding()))
            weights.enter_context(self.autocast(sampling_precision(self.cfg, "rollout") == "bfloat16"))
            completions = sample(
                policy, prompt_ids, seeds, max_tokens=rollout["max_tokens"], temperature=rollout["temperature"],
                top_p=rollout["top_p"], pad_id=self.processing_class.pad_token_id, end_ids=self.eos_token_ids,
            )  # fmt: skip
        return completions, None

    def sync(self, policy: Any) -> None:
        """Load this step's policy into vLLM; raise Refused where they disagree.

        They are compared at the first sync of this process, after every `rollout.check_every` steps, and each time that vLLM
        wakes from sleep.
        """
        step, rollout = self.state.global_step, self.cfg["rollout"]
        if step == patches.synced_step(self):
            return
        sampler = self.vllm_generation
        sampler.rounding = self.rounding()
        with self.timed("sync"):
            sampler.sync_weights()
        patches.set_synced_step(self, step)
        every, last = rollout["check_every"], self.compared_step
        is_due = bool(every) and (step % every == 0 if last is None else step // every > last // every)
        if last is None or rollout.get("sleep") or is_due:
            self.compared_step = step
            text = token_ids(self.processing_class, self.prompts.rows[0]["prompt"])
            sampling = sampling_precision(self.cfg, "rollout")
            tolerance = max(rollout["tolerance_nats"][name] for name in (model_precision(self.cfg), sampling))
            with self.autocast():
                self.columns["sync_gap_nats"] = refuse_disagreement(policy, sampler, text, tolerance)
            with self.autocast(False):
                self.columns["policy_gap_nats"] = gap(policy, sampler, text)
            self.columns["sampling_gap_nats"] = refuse_sampling_gap(sampler, text, rollout["tolerance_nats"][sampling])
            if self.published and is_due:
                kept = update_kept(sampler_weights(policy, sampler), self.published)
                self.columns |= {} if kept is None else {"update_kept": kept}

    def rounding(self) -> Rounding | None:
        """Return the rounding of the weights that sample this step: `rollout.weights`."""
        return rounding_of(sampling_weights(self.cfg, "rollout"), self.cfg["seed"], "weights", self.state.global_step)

    def autocast(self, enabled: bool | None = None) -> Any:
        """Return bfloat16 autocast, by default as the model's configuration sets it; accelerate's is off under DeepSpeed."""
        is_enabled = self.cfg["model"]["autocast_bf16"] if enabled is None else enabled
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=is_enabled)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Return TRL's values, computed under autocast without padding on the left.

        In the update, count positions and compute the importance weights.
        """
        rest, is_update = (input_ids, attention_mask, logits_to_keep, *args), torch.is_grad_enabled()
        rows = (
            SharedPrompts(model, logits_to_keep, self.completions_per_row)
            if is_update and self.completions_per_row > 1
            else RightPadded(model, logits_to_keep)
        )
        with self.autocast(), nullcontext() if is_update else self.timed("logprobs"):
            scored = super()._get_per_token_logps_and_entropies(rows, *rest, **kwargs)
        if not is_update:
            return scored
        count_positions(self.columns, rows.positions, rows.tokens)
        if self.batch_in_loss:
            logps, batch = scored[0].detach(), self.batch_in_loss
            limits = (self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max)
            batch["importance_sampling_ratio"] = importance(logps, batch, *limits)
            self.scores.add(logps, batch)
        return scored

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time inside to `self.seconds[phase]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    # Update

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one of a step's calls; the first one samples. With passes cut by length some calls have no pass and return 0."""
        calls = self.args.steps_per_generation
        index, self.calls = self.calls % calls, self.calls + 1
        if self.cuts_passes:
            if index == 0:
                model.train()
                batch = self._generate_and_score_completions(inputs)
                batch = shuffle_sequence_dict(batch) if self.completions_per_row == 1 else batch  # groups stay together
                self.passes = passes_of(batch, self.cfg, calls, self.accelerator.gather)
            inputs = self.passes[index]
            if inputs is None:
                return torch.zeros((), device=self.accelerator.device)
        if index > 0:
            self.check_stop()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.scores.pairs and index == calls - 1:
            self.columns |= self.scores.mismatch(self.accelerator)
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Return the pass that `training_step` was called with, where passes are cut by length; else TRL's."""
        if self.cuts_passes and self.model.training:
            return generation_batch
        return super()._prepare_inputs(generation_batch)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make LoRA+'s optimizer where the method has a learning-rate ratio; else TRL's."""
        ratio = self.cfg["peft"]["lr_ratio"]
        if ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
        settings = {"weight_decay": self.args.weight_decay, **settings}
        self.optimizer = loraplus_optimizer(model or self.model, ratio, optimizer, **settings)
        return self.optimizer

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return TRL's loss of one pass, weighted by the pass's share of the step, and AdaLoRA's penalty."""
        self.batch_in_loss = inputs if self.scores_once and self.vllm_importance_sampling_correction else None
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.batch_in_loss = None
        calls, share = self.current_gradient_accumulation_steps, inputs.get("share")
        part = share.completions if share else 1 / calls
        if self.loss_type in LOSSES_OVER_COMPLETIONS:
            loss = loss * (part * calls)
        if share:
            weigh(patches.step_metrics(self), share, self.importance_sampling_level)
        if self.adalora:
            penalty = self.adalora.orthogonality()
            self.columns |= {"rank_mean": self.adalora.mean_rank(), "orthogonality_loss": float(penalty.detach())}
            loss = loss + penalty * part
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Load TRL's states; several CPU processes need a device that torch.load accepts."""
        patches.use_loadable_cpu_device(self.args)
        super()._load_optimizer_and_scheduler(checkpoint)

    # State beyond TRL's

    def save_own_state(self, checkpoint: Path) -> None:
        """Write the position in the prompt stream, the groups of the next step, and AdaLoRA's state, into TRL's folder."""
        write_json(checkpoint / self.PROMPTS_FILE, {"position": self.prompts.position})
        if self.pending:
            pools = [
                {"rounds": pool.rounds, "groups": [stored_group(group) for group in pool.sampled]} for pool in self.pending
            ]
            torch.save(pools, checkpoint / self.PENDING_FILE)
        if self.adalora:
            self.adalora.save(checkpoint)

    def load_own_state(self, checkpoint: Path) -> None:
        """Restore what `save_own_state` wrote."""
        self.prompts.position = json.loads((checkpoint / self.PROMPTS_FILE).read_text())["position"]
        pending = checkpoint / self.PENDING_FILE
        self.pending = self.restored_pools(torch.load(pending)) if pending.exists() else []
        if self.adalora:
            self.adalora.load(checkpoint)

    def restored_pools(self, stored: list[Row]) -> list[Pool]:
        """Return pools from the form in a checkpoint. Their groups are the last ones before the present position."""
        position, size, most = self.prompts.position, self.num_generations, self.cfg["algo"]["sampling_rounds"]
        position -= sum(len(pool["groups"]) for pool in stored)
        pools = []
        for pool in stored:
            sampled = []
            for group in pool["groups"]:
                row, ids = self.prompts.at(position), group["completion_ids"]
                prompt_ids, rewards = self.prompt_ids(row["prompt"]), group["rewards"]
                judged = rewards, group["reasons"], group["correct"]
                sampled.append(Group([row] * size, [prompt_ids] * size, ids, self.texts(ids), group["logprobs"], *judged))
                position += 1
            pools.append(pool_of(sampled, pool["rounds"], self.cfg["batch_size"] // size, most))
            pools[-1].discarded = dict.fromkeys(DISCARDED, 0) if most > 1 else {}
        return pools


def stored_group(group: Group) -> Row:
    """Return what a checkpoint keeps of a group that is sampled already; the rest follows from its position in the stream."""
    return {
        "completion_ids": group.completion_ids, "logprobs": group.logprobs, "rewards": group.rewards,
        "reasons": group.reasons, "correct": group.correct,
    }  # fmt: skip


def stored_rollouts(_: list[Any], trainer: RlvrTrainer) -> dict[str, Any]:
    """Return the rollouts of the step to TRL: its `rollout_func`."""
    groups = trainer.rollouts
    return {
        "prompt_ids": [ids for group in groups for ids in group.prompt_ids],
        "completion_ids": [ids for group in groups for ids in group.completion_ids],
        "logprobs": [row for group in groups for row in group.logprobs or []] or None,
    }


def stored_reward(index: int, name: str) -> Any:
    """Return a reward function for TRL, called `name`, that returns the rewards computed during sampling."""

    def reward(rewards: list[list[float]], **_: Any) -> list[float]:
        return [row[index] for row in rewards]

    reward.__name__ = name
    return reward
