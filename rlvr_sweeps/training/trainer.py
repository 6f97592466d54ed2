"""TRL's GRPOTrainer with this project's rollouts, optimizer and bookkeeping; the loss is TRL's."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict

from rlvr_sweeps.assets.problems import token_ids
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import LOSSES_OVER_COMPLETIONS, cuts_by_length, training_of
from rlvr_sweeps.files import write_json
from rlvr_sweeps.training.dynamic_sampling import Group, PromptStream, Row, fill
from rlvr_sweeps.training.methods.adalora import AdaLoraSchedule
from rlvr_sweeps.training.methods.adapters import loraplus_optimizer
from rlvr_sweeps.training.methods.merging import merged
from rlvr_sweeps.training.micro_batches import count_positions, passes_of, weigh
from rlvr_sweeps.training.patches import engine_of_ours
from rlvr_sweeps.training.sampler_agreement import Scores, importance, refuse_disagreement
from rlvr_sweeps.training.seeded_sampling import sample, seed_of


class RlvrTrainer(GRPOTrainer):
    """Its own prompt stream, dynamic sampling, rollouts from merged weights with a seed per completion, LoRA+, AdaLoRA."""

    optimizer: Any
    _last_loaded_step: int  # TRL's: the step whose weights vLLM holds, -1 before the first
    _step: int  # TRL's: how often the loss was called
    vllm_importance_sampling_correction: bool
    STREAM = "prompts.json"

    def __init__(self, cfg: Resolved, model: Any, rows: Sequence[Row], **kwargs: Any) -> None:
        self.cfg = cfg
        self.seconds: dict[str, float] = defaultdict(float)
        self.columns: dict[str, float] = {}  # what this step adds to its row of metrics.jsonl
        self.prompts = PromptStream(rows, cfg["seed"])
        self.by_length = cuts_by_length(cfg)
        self.scores = Scores()
        self.in_pass: dict[str, Any] | None = None
        self.adalora = AdaLoraSchedule(model) if cfg["peft"]["config"].get("peft_type") == "ADALORA" else None
        with engine_of_ours(cfg):
            # TRL's loader hands out blanks, as many as there are rows: their number is all that counts
            super().__init__(model=model, train_dataset=Dataset.from_dict({"prompt": [""] * len(rows)}), **kwargs)
        if self.adalora:
            self.add_callback(self.adalora)

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, fed from the prompt stream instead of `inputs`, whose number alone counts."""
        with self.timed("sampling"):
            return self.sampled_and_scored(inputs)

    def sampled_and_scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.num_generations
        pool = fill(self.roll, len(inputs) // size * world, self.cfg["algo"]["sampling_rounds"])
        self.columns |= pool.metrics()
        each = len(pool.trained) // world
        mine = pool.trained[rank * each : (rank + 1) * each]
        logprobs = [row for group in mine for row in group.logprobs or []] or None
        generated: Any = (
            [ids for group in mine for ids in group.prompt_ids], [ids for group in mine for ids in group.completion_ids],
            None, [completion for group in mine for completion in group.completions], logprobs, {}, None, [],
        )  # fmt: skip
        rewards = torch.cat([group.rewards for group in pool.trained]).to(self.accelerator.device)
        # TRL generates and scores inside; here both are done, and it is given the results.
        self._generate: Any = lambda _: generated
        self._calculate_rewards: Any = lambda *_: rewards
        corrected = self.vllm_importance_sampling_correction
        self.vllm_importance_sampling_correction = corrected and not self.scores_once  # if on, TRL scores everything here
        try:
            scored = super()._generate_and_score_completions([row for group in mine for row in group.rows])
        finally:
            self.vllm_importance_sampling_correction = corrected
            del self._generate, self._calculate_rewards
        if self.use_vllm and corrected and not self.scores_once:
            self.scores.note(scored["old_per_token_logps"], scored)
        return scored

    @property
    def scores_once(self) -> bool:
        """Whether the update's own forward pass gives what the importance correction needs: one update per rollout."""
        asked = self.use_vllm and training_of(self.cfg, "log_probabilities") == "once" and self.num_iterations == 1
        return bool(asked and self.vllm_importance_sampling_mode == "token_truncate" and self.loss_type != "vespo")

    def roll(self, groups: int) -> list[Group]:
        """One round: `groups` prompts, the same on all processes, G completions each, shared out and gathered again."""
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.num_generations
        draws = self.prompts.take(groups)[rank * groups // world : (rank + 1) * groups // world]
        rows = [row for _, row in draws for _ in range(size)]
        self.seeds = [seed_of(self.cfg["seed"], "rollout", place, index) for place, _ in draws for index in range(size)]
        prompts = [row["prompt"] for row in rows]
        with self.timed("rollout"):
            prompt_ids, completion_ids, _, completions, logprobs, *_ = self._generate(prompts)
        with self.timed("reward"):
            rewards = self._calculate_rewards(rows, prompts, completions, completion_ids).cpu()
        everyone = gather_object(list(zip(rows, prompt_ids, completion_ids, completions, logprobs or rows, strict=True)))
        found = []
        for start in range(0, groups * size, size):
            rows, prompt_ids, completion_ids, completions, scores = map(list, zip(*everyone[start : start + size], strict=True))
            reward = rewards[start : start + size]
            found.append(Group(rows, prompt_ids, completion_ids, completions, scores if logprobs else None, reward))
        return found

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        rollout, policy = self.cfg["rollout"], self.accelerator.unwrap_model(self.model_wrapped)
        if self.use_vllm:
            self.sync(policy)
            return self.vllm_generation.sample(prompt_ids, self.seeds, self.eos_token_ids)
        with ExitStack() as weights:
            with self.timed("sync"):
                weights.enter_context(merged(policy))
            weights.enter_context(self.autocast())
            completions = sample(
                policy, prompt_ids, self.seeds, max_tokens=rollout["max_tokens"], temperature=rollout["temperature"],
                top_p=rollout["top_p"], pad_id=self.processing_class.pad_token_id, end_ids=self.eos_token_ids,
            )  # fmt: skip
        return completions, None

    def sync(self, policy: Any) -> None:
        """Bring vLLM to the policy of this step, and ask now and then whether it is there."""
        step, rollout = self.state.global_step, self.cfg["rollout"]
        if step == self._last_loaded_step:
            return
        first = self._last_loaded_step < 0
        with self.timed("sync"):
            self.vllm_generation.sync_weights()
        self._last_loaded_step = step
        if first or (rollout["check_every"] and step % rollout["check_every"] == 0):
            text = token_ids(self.processing_class, self.prompts.rows[0]["prompt"])
            with self.autocast():
                tolerance = rollout["tolerance_nats"]["bfloat16" if self.cfg["model"]["autocast_bf16"] else "float32"]
                self.columns["sync_gap_nats"] = refuse_disagreement(policy, self.vllm_generation, text, tolerance)

    def autocast(self) -> Any:
        """bfloat16 matrix products where the model asks for them; accelerate has none of its own under DeepSpeed."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.cfg["model"]["autocast_bf16"])

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            with self.autocast(), self.timed("logprobs"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.autocast():
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        count_positions(self.columns, args[2])
        if self.in_pass:
            limits = (self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max)
            self.in_pass["importance_sampling_ratio"] = importance(found[0].detach(), self.in_pass, *limits)
            self.scores.note(found[0].detach(), self.in_pass)
        return found

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    # Update

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One of a step's calls; the first samples. With passes cut by length there may be fewer passes than calls."""
        calls = self.args.steps_per_generation
        place = self._step % calls
        if self.by_length and place == 0:
            model.train()
            batch = shuffle_sequence_dict(self._generate_and_score_completions(inputs))
            self._buffered_inputs: Any = passes_of(batch, self.cfg, calls, self.accelerator.gather)
        if self.by_length and self._buffered_inputs[place] is None:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.scores.noted and place == calls - 1:
            self.columns |= self.scores.mismatch(self.accelerator)
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self.by_length and self.model.training:
            return self._buffered_inputs[self._step % self.args.steps_per_generation]
        return super()._prepare_inputs(generation_batch)

    def create_optimizer(self, model: Any = None) -> Any:
        ratio = self.cfg["peft"]["lr_ratio"]
        if ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
        settings = {"weight_decay": self.args.weight_decay, **settings}
        self.optimizer = loraplus_optimizer(model or self.model, ratio, optimizer, **settings)
        return self.optimizer

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.in_pass = inputs if self.scores_once and self.vllm_importance_sampling_correction else None
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.in_pass = None
        calls, share = self.current_gradient_accumulation_steps, inputs.get("share")
        part = share.completions if share else 1 / calls
        if self.loss_type in LOSSES_OVER_COMPLETIONS:
            loss = loss * (part * calls)
        if share:
            weigh(self._metrics["train"], share, self.importance_sampling_level)
        if self.adalora:
            penalty = self.adalora.orthogonality()
            self.columns |= {"rank_mean": self.adalora.mean_rank(), "orthogonality_loss": float(penalty.detach())}
            loss = loss + penalty * part
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self.args.device.type == "cpu":  # of several processes: "cpu:0", a place that torch.load does not know
            self.args.__dict__["_setup_devices"] = torch.device("cpu")
        super()._load_optimizer_and_scheduler(checkpoint)

    # State beyond TRL's

    def save_state_beside(self, checkpoint: Path) -> None:
        write_json(checkpoint / self.STREAM, {"position": self.prompts.position})
        if self.adalora:
            self.adalora.save(checkpoint)

    def load_state_beside(self, checkpoint: Path) -> None:
        self.prompts.position = json.loads((checkpoint / self.STREAM).read_text())["position"]
        if self.adalora:
            self.adalora.load(checkpoint)
