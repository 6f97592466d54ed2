"""Every use of a private part of an upstream library, in one function each.

Each docstring states the upstream version (the pin in constraints.txt), the reason, a link, and when the function may be
removed. An override in a subclass cannot be a function of this module: OVERRIDDEN lists the overridden methods that upstream
does not document, and IMPORTED the private names that a class statement needs. tests/test_patches.py compares all of them with
the installed versions. Upstream libraries are imported only inside the functions, so that every wing may import this module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class Override(NamedTuple):
    """A method of an upstream class, not documented there for subclasses, that a class of this package overrides."""

    upstream: str  # the overridden method, as module:Class.method
    by: str  # the class that overrides it, as module:Class
    why: str  # the reason


GRPO, TRAINER = "trl.trainer.grpo_trainer:GRPOTrainer", "rlvr_sweeps.training.trainer:RlvrTrainer"
VLLM, ROLLOUTS = "trl.generation.vllm_generation:VLLMGeneration", "rlvr_sweeps.training.vllm_rollouts:VllmRollouts"

# TRL 1.16.0 (trl/trainer/grpo_trainer.py, trl/generation/vllm_generation.py) and PEFT 0.21.2 (peft/tuners/lora/dora.py).
OVERRIDDEN = (
    Override(
        f"{GRPO}._generate_and_score_completions", TRAINER,
        "Dynamic sampling scores several rounds of rollouts and then selects those to train on. rollout_func cannot do "
        "this: TRL calls it with fixed prompts, and computes rewards and token counts once, from its return value.",
    ),
    Override(
        f"{GRPO}._get_per_token_logps_and_entropies", TRAINER,
        "Adds rows without attention mask, bfloat16 autocast under DeepSpeed, a timer, and the update's importance weights.",
    ),
    Override(
        f"{GRPO}._prepare_inputs", TRAINER,
        "Splits completions into forward passes by length; TRL splits them into equal numbers.",
    ),
    Override(
        f"{GRPO}._compute_loss", TRAINER,
        "Adds AdaLoRA's orthogonality loss, and weights a forward pass by the number of its completions.",
    ),
    Override(
        f"{GRPO}._load_optimizer_and_scheduler", TRAINER,
        "Lets several CPU processes resume: see use_loadable_cpu_device.",
    ),
    Override(
        f"{VLLM}._init_vllm", ROLLOUTS,
        "TRL passes a fixed selection of vLLM's arguments. An override must set `llm` and `_llm_weights_sleeping`.",
    ),
    Override(
        f"{VLLM}._iter_named_params", ROLLOUTS,
        "TRL merges an adapter into its base and subtracts it again, which rounds a bfloat16 base at every step.",
    ),
    Override(f"{VLLM}.sync_weights", ROLLOUTS, "`rollout.sync=adapter` loads the adapter beside the base's weights."),
    Override(
        "peft.tuners.lora.dora:DoraLinearLayer.forward", "rlvr_sweeps.training.methods.dora:FactoredDora",
        "Computes the norm of W + s·BA from its factors; PEFT computes the product BA in every forward pass.",
    ),
)  # fmt: skip

# Hydra 1.3.8 and hydra-submitit-launcher 1.2.0: (module:name, the module of this project that imports it, the reason).
IMPORTED = (
    (
        "hydra._internal.core_plugins.basic_sweeper:BasicSweeper", "hydra_plugins.rlvr_launcher",
        "GridSweeper extends Hydra's default sweeper; https://github.com/facebookresearch/hydra/blob/v1.3.8/hydra/_internal/core_plugins/basic_sweeper.py",
    ),
    (
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher:SlurmLauncher", "hydra_plugins.rlvr_launcher",
        "RlvrSlurmLauncher accepts the same options; https://github.com/facebookresearch/hydra/tree/v1.3.8/plugins/hydra_submitit_launcher",
    ),
)  # fmt: skip


# TRL


@contextmanager
def trl_vllm_engine(engine: Callable[..., Any]) -> Iterator[None]:
    """Make GRPOTrainer's constructor call `engine` instead of its own VLLMGeneration.

    TRL 1.16.0 takes no engine as an argument, and without one `use_vllm` and its importance correction are off.
    https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py
    Remove when the constructor accepts an engine.
    """
    from trl.trainer import grpo_trainer

    original = grpo_trainer.VLLMGeneration
    grpo_trainer.VLLMGeneration = engine
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = original


def synced_step(trainer: Any) -> int:
    """Return the last step for which vLLM has the weights that it needs; -1 before the first sync.

    TRL 1.16.0 stores it as `_last_loaded_step` and syncs before `rollout_func` if it is not the current step.
    https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py
    Remove together with `set_synced_step` when `rollout_func` can do the sync itself.
    """
    return int(trainer._last_loaded_step)


def set_synced_step(trainer: Any, step: int) -> None:
    """Record that vLLM has the weights that `step` needs, so that TRL 1.16.0 does not sync them before `rollout_func`.

    https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py
    Remove together with `synced_step`.
    """
    trainer._last_loaded_step = step


def step_metrics(trainer: Any) -> dict[str, list[float]]:
    """Return the values that TRL will average into the log of this step, by name; entries may be changed in place.

    TRL 1.16.0 averages over forward passes with equal weights; passes split by length need unequal weights, and the documented
    `log` receives only the averages. https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py
    Remove when TRL weights passes by their tokens.
    """
    metrics: dict[str, list[float]] = trainer._metrics["train"]
    return metrics


def log_probabilities(trainer: Any, model: Any, ids: Any, mask: Any, completion_length: int) -> Any:
    """Return the log-probabilities of the last `completion_length` tokens, with gradient: (rows, completion_length).

    TRL 1.16.0 has no public name for the forward pass of its loss, which the worst-case memory check runs.
    https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py
    Remove when TRL publishes `_get_per_token_logps_and_entropies`.
    """
    logps, *_ = trainer._get_per_token_logps_and_entropies(model, ids, mask, completion_length, compute_entropy=True)
    return logps


# transformers


def attention_implementation(config: Any) -> str:
    """Return the name of the attention that a model of this configuration computes, such as "sdpa".

    transformers 5.17.0 has a public setter (`set_attn_implementation`) and no public reader.
    https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/configuration_utils.py
    Remove when there is one.
    """
    return str(config._attn_implementation)


def load_checkpoint_weights(trainer: Any, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the trainer's model without training.

    transformers 5.17.0 loads a checkpoint only inside `Trainer.train`, which would call the callbacks of a finished run again.
    https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py
    Remove when Trainer has a public method for it.
    """
    trainer._load_from_checkpoint(str(checkpoint))


def save_checkpoint(trainer: Any) -> None:
    """Save a checkpoint of the last finished step, on all ranks, and call the callbacks of a save.

    transformers 5.17.0 saves only inside `Trainer.train`, which has ended when a stop request interrupts a step.
    https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py
    Remove when Trainer has a public method for it.
    """
    trainer._save_checkpoint(trainer.model, None)
    trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def use_loadable_cpu_device(args: Any) -> None:
    """Replace the device `cpu:0`, which several CPU processes have, by `cpu`; do nothing on a GPU.

    transformers 5.17.0 passes TrainingArguments.device to torch.load, which rejects `cpu:0`; the device is a cached property
    without a setter. https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/training_args.py
    Remove when resuming with two CPU processes works without it (tests/training/test_distributed.py).
    """
    import torch

    if args.device.type == "cpu":
        args.__dict__["_setup_devices"] = torch.device("cpu")


# PEFT


def forget_merge(layer: Any) -> None:
    """Mark a tuner layer as not merged, after its base weights were restored without PEFT's `unmerge`.

    PEFT 0.21.2 keeps DoRA's norm, the base weights of HiRA and PEANuT, and a factor of DEFT from a merge to the unmerge;
    without an unmerge they would stay in memory.
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners (layer.py of lora, hira, peanut, deft)
    Remove when PEFT can return merged weights without changing the layer.
    """
    from peft.tuners.deft.layer import DeftLayer
    from peft.tuners.hira.layer import HiraLayer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.peanut.layer import PeanutLayer

    layer.merged_adapters.clear()
    if isinstance(layer, LoraLayer):
        layer._caches.clear()
    elif isinstance(layer, HiraLayer | PeanutLayer):
        layer._base_weight_before_merge = None
    elif isinstance(layer, DeftLayer):
        layer._cached_merge_factor.clear()


def change_class(module: Any, new_class: type) -> None:
    """Make a module an instance of `new_class`, a subclass of its class with the same state.

    PEFT 0.21.2 creates its DoRA and dropout modules itself; `LoraConfig._register_custom_module` replaces only whole layers,
    and is also private. https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/dora.py
    Remove when PEFT computes DoRA's norm from the factors.
    """
    assert issubclass(new_class, type(module)), f"{new_class.__name__} is not a subclass of {type(module).__name__}"
    module.__class__ = new_class


# vLLM


def keep_cpu_weights_unpacked() -> None:
    """Make vLLM for CPUs compute linear layers with torch's kernel; must be called before the engine is created.

    vLLM 0.31.0 packs a layer's weights for its own kernels when it loads them, and a later `load_weights` does not reach the
    packed copy. https://github.com/vllm-project/vllm/blob/v0.31.0/vllm/model_executor/layers/utils.py
    Remove when a CPU engine accepts new weights (https://github.com/vllm-project/vllm/issues/54477).
    """
    import torch
    import vllm.model_executor.layers.utils as layers

    def use_torch_linear(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001 - vLLM passes it by this name
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = use_torch_linear


def vllm_model_runner(llm: Any) -> Any:
    """Return what computes the steps of an engine that runs in this process: it has `model`, `sampler` and the KV cache.

    vLLM 0.31.0 has no public way to read an engine's weights, or the class of its model runner. TRL writes the weights through
    the same attributes.
    https://github.com/vllm-project/vllm/issues/5723
    Remove when vLLM publishes the weights of an engine.
    """
    return llm.llm_engine.model_executor.driver_worker.model_runner


def unfinished_tokens(llm: Any) -> int:
    """Return the number of tokens that an engine in this process has decoded for its unfinished requests.

    vLLM 0.31.0 returns nothing for an aborted request; the tokens thrown away are counted before.
    https://github.com/vllm-project/vllm/blob/v0.31.0/vllm/v1/engine/output_processor.py
    Remove when abort_request returns what was decoded.
    """
    states = llm.llm_engine.output_processor.request_states.values()
    return sum(state.detokenizer.num_output_tokens() for state in states)


def vllm_module(llm: Any) -> Any:
    """Return the torch module, with fused layers, of an engine that runs in this process.

    vLLM 0.31.0: see `vllm_model_runner`. https://github.com/vllm-project/vllm/issues/5723
    Remove when vLLM publishes the weights of an engine.
    """
    return vllm_model_runner(llm).model


# Hydra and OmegaConf


def hydra_repository(loader: Any, config_name: str) -> Any:
    """Return the configuration repository of a Hydra loader, which distinguishes group names from keys and caches files.

    Hydra 1.3.8 creates a new one in every `load_configuration`, which reads all configuration files again.
    https://github.com/facebookresearch/hydra/blob/v1.3.8/hydra/_internal/config_loader_impl.py
    Remove when Hydra composes a grid without reading each file once per point.
    """
    _, repository = loader._parse_overrides_and_create_caching_repo(config_name, [])
    return repository


def apply_overrides(loader: Any, overrides: Sequence[Any], cfg: Any) -> None:
    """Apply parsed value overrides to a composed configuration, in place, by Hydra's own rules.

    Hydra 1.3.8 does this only inside `load_configuration`.
    https://github.com/facebookresearch/hydra/blob/v1.3.8/hydra/_internal/config_loader_impl.py
    Remove together with `hydra_repository`.
    """
    loader._apply_overrides_to_config(overrides, cfg)


def reuse_interpolation_trees() -> None:
    """Make OmegaConf parse each interpolation once per process; a second call changes nothing.

    OmegaConf 2.3.1 parses `${...}` with ANTLR whenever it is resolved: a third of the time in which a grid is composed. The
    trees are only read.
    https://github.com/omry/omegaconf/blob/v2.3.1/omegaconf/base.py
    Remove when OmegaConf caches parsed interpolations.
    """
    from omegaconf import base

    names = vars(base)
    if not hasattr(names["parse"], "cache_info"):
        names["parse"] = cache(names["parse"])


def expand_grid(overrides: Sequence[Any]) -> list[list[str]]:
    """Return the points of a grid of parsed overrides, in the order of Hydra's default sweeper.

    Hydra 1.3.8 has this only in a private module.
    https://github.com/facebookresearch/hydra/blob/v1.3.8/hydra/_internal/core_plugins/basic_sweeper.py
    Remove when the sweeper's module is public.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (points,) = BasicSweeper.split_arguments(list(overrides), None)
    return points


def omegaconf_string_representer() -> Callable[..., Any]:
    """Return OmegaConf's YAML representer of strings, which quotes those that it would read as a number or a boolean.

    OmegaConf 2.3.1 uses it only in its own slow dumper.
    https://github.com/omry/omegaconf/blob/v2.3.1/omegaconf/_utils.py
    Remove when OmegaConf.to_yaml uses libyaml.
    """
    from omegaconf._utils import OmegaConfDumper

    representer: Callable[..., Any] = OmegaConfDumper.str_representer
    return representer


# submitit


def failed_submission() -> type[Exception]:
    """Return the class of the exception that submitit raises if sbatch fails.

    submitit 1.5.4 exports it only from `submitit.core.utils`.
    https://github.com/facebookincubator/submitit/blob/1.5.4/submitit/core/utils.py
    Remove when submitit exports it.
    """
    from submitit.core.utils import FailedJobError

    return FailedJobError


# Optuna


def stored_trial(study: Any, trial: Any) -> Any:
    """Return a trial that can report values, made from a stored trial of a study.

    Optuna 5.0.0 gives the storage id of a stored trial only as `_trial_id`, and creates a `Trial` from that id.
    https://github.com/optuna/optuna/blob/v5.0.0/optuna/trial/_frozen.py
    Remove when Optuna resumes a trial by its number.
    """
    from optuna.trial import Trial

    return Trial(study, trial._trial_id)


# The grader's parser and process pool


def replace_latex_number_parser(parse_number: Callable[[Any, str], object]) -> None:
    """Make latex2sympy2_extended convert numbers with `parse_number(converter, text)`.

    latex2sympy2_extended 1.11.0 calls sympy.Number on the text, which evaluates it as Python.
    https://github.com/huggingface/latex2sympy2_extended/blob/main/src/latex2sympy2_extended/latex2sympy2.py
    Remove when the parser converts digits without evaluation.
    """
    from latex2sympy2_extended import latex2sympy2

    latex2sympy2._Latex2Sympy.parse_number = parse_number


def parse_latex_in_two_stages() -> None:
    """Make latex2sympy2_extended parse with ANTLR's fast prediction first, and with its full one where that fails.

    latex2sympy2_extended 1.11.0 always uses the full prediction (LL), which is up to seven times as slow. The fast one (SLL)
    either gives the same tree or reports a syntax error, as ANTLR documents.
    https://github.com/antlr/antlr4/blob/4.9.3/runtime/Java/src/org/antlr/v4/runtime/atn/PredictionMode.java
    Remove when the parser does so itself.
    """
    from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]
    from latex2sympy2_extended import latex2sympy2

    create_parser = latex2sympy2._Latex2Sympy.create_parser
    if create_parser.__name__ == "create_two_stage_parser":
        return

    def create_two_stage_parser(self: Any, text: str) -> Any:
        parser = create_parser(self, text)
        parser._interp.predictionMode = PredictionMode.SLL

        def math() -> Any:
            try:
                return type(parser).math(parser)
            except Exception:  # the parser's error listener raises it for a syntax error
                return create_parser(self, text).math()

        parser.math = math
        return parser

    latex2sympy2._Latex2Sympy.create_parser = create_two_stage_parser


def set_pool_interval(seconds: float) -> None:
    """Set the interval, in seconds, at which pebble's process pools check for ended workers.

    Pebble 5.2.3 has no argument for this interval, and its default of 0.1 s delays every short task.
    https://github.com/noxdafox/pebble/blob/5.2.3/pebble/common/types.py
    Remove when ProcessPool has an argument for it.
    """
    from pebble import CONSTS

    CONSTS.sleep_unit = seconds


def send_what_trackio_kept(run: Any) -> None:
    """Let a Trackio run send the rows that an earlier process could not send to its server, and that Trackio keeps in a file.

    Trackio 0.43.0 sends them for a Hugging Face Space only, not for a server of one's own (TRACKIO_SERVER_URL).
    https://github.com/gradio-app/trackio/blob/trackio%400.43.0/trackio/__init__.py
    Remove when trackio.init looks for kept rows for every server.
    """
    from trackio.sqlite_storage import SQLiteStorage

    run._has_local_buffer = SQLiteStorage.has_pending_data(run.project)
