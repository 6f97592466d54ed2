"""The schema of a run: what may be set, its type, its default. Composed by Hydra from conf/.

What the paper varies is typed here; what an upstream library owns (`peft.config`, `*.trl`, `rollout.vllm`) is a
passthrough dict that the library's own constructor validates. The order of the defaults list is in conf/config.yaml.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

# "All linear modules" (Sec. 2.2) and every norm, as Qwen2 and Llama name them; other architectures say theirs in their file.
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORM_MODULES = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass
class ModelConf:
    name: str = MISSING  # in directory names and tables
    path: str = MISSING  # hub id, local directory, or embedded:NAME
    revision: str | None = None  # hub commit, or the embedded recipe's content key
    system_prompt: str | None = None
    linear_modules: list[str] = field(default_factory=lambda: list(LINEAR_MODULES))
    norm_modules: list[str] = field(default_factory=lambda: list(NORM_MODULES))
    architecture: dict[str, Any] = field(default_factory=dict)  # of config.json, where it must be known before the weights
    opens_think: bool = False  # its chat template must end a prompt by opening <think>
    autocast_bf16: bool = False  # weights and optimizer stay float32; matrix products run in bfloat16


@dataclass
class PeftConf:
    name: str = MISSING
    title: str = MISSING  # how tables call it
    trains: str = "adapter"  # adapter | everything | nothing
    config: dict[str, Any] = field(default_factory=dict)  # -> peft.get_peft_config
    initialisation: str | None = None  # principal (PiSSA) | minor (MiLoRA) | activations (EVA)
    lr_ratio: float | None = None  # LoRA+'s λ = η_B / η_A
    not_the_base_in_training: str | None = None  # why the train-mode policy at step 0 is not the base, where it is not
    factored_norm: bool = True  # DoRA's, without making BA; false: as PEFT computes it
    trained: list[str] = field(default_factory=list)  # names the adapter's trained parameters hold; any other is frozen
    unavailable: str | None = None  # why launching this method is refused, where it is


@dataclass
class AlgoConf:
    name: str = MISSING
    title: str = MISSING
    trl: dict[str, Any] = field(default_factory=dict)  # -> trl.GRPOConfig
    sampling_rounds: int = 1  # rounds of rollouts a step may take to fill its batch with mixed groups; 1: what comes, comes
    overlong_buffer: int = 0  # soft overlong punishment over the last so many tokens; 0: none


@dataclass
class SourceConf:
    """Where problems come from: a hub data set, a local .jsonl file, or embedded:NAME/FILE."""

    path: str = MISSING
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    question: str = "question"  # the field that holds the problem
    answer: str = "answer"  # the field that holds the gold answer
    problems: int | None = None  # how many there must be; anything else is an error


@dataclass
class DataConf(SourceConf):
    name: str = MISSING
    max_prompt_tokens: int = 512  # longer prompts are left out, and counted in train.json
    holdout: int = 0  # problems that are not trained on, chosen by the hash of their id


@dataclass
class BenchmarkConf(SourceConf):
    k: int = MISSING  # samples per problem
    held_out: int = 0  # the problems of a training set that data.holdout keeps out, and no others; 0: all


@dataclass
class RolloutConf:
    engine: str = MISSING  # hf | vllm
    group_size: int = 8  # completions per prompt, the paper's G
    max_tokens: int = MISSING
    temperature: float = 1.0
    top_p: float = 1.0
    trl: dict[str, Any] = field(default_factory=dict)  # -> trl.GRPOConfig
    vllm: dict[str, Any] = field(default_factory=dict)  # -> vllm.LLM; what follows from the run is refused
    sync: str = "merged"  # vllm: what the engine is given, merged weights or the adapter alone
    check_every: int = 0  # vllm: steps between two comparisons of its log-probabilities with the trainer's, beside the first
    tolerance_nats: dict[str, float] = field(default_factory=dict)  # vllm: by dtype, the mean difference that stops the run


@dataclass
class EvaluationConf:
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    seed: int = MISSING
    engine: str = "auto"  # vllm | transformers | auto: vLLM where it is installed and there is a GPU
    batch_size: int = 256  # transformers: completions decoded together; no effect on what is sampled
    vllm: dict[str, Any] = field(default_factory=dict)  # -> vllm.LLM


@dataclass
class TrainingConf:
    per_device_batch_size: int = MISSING  # completions per forward pass
    save_every: int = MISSING  # steps between checkpoints
    gradient_checkpointing: bool = False
    micro_batches: str = "by_length"  # how a step is cut into forward passes; equal: as TRL does, padded to the step's longest
    log_probabilities: str = "once"  # vllm: the trainer's come from the update's own pass; twice: from one before, as TRL does
    worst_case_first: str = "gpu"  # a dry step of full-length completions before the first: where there is a GPU, always, never
    trl: dict[str, Any] = field(default_factory=dict)  # -> trl.GRPOConfig


@dataclass
class DistributedConf:
    name: str = MISSING
    processes: int = 1  # one per GPU
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own configuration; empty: none
    unavailable: str | None = None


@dataclass
class ResourcesConf:
    """What one job of Slurm asks for. None: what hydra.launcher says, or the site's default."""

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    timeout_min: int = 1440
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None


@dataclass
class ClusterConf:
    name: str = MISSING
    runs_per_gpu: int = 1  # on this machine: small runs at once on each GPU, their memory shared out by the plan
    gpu: str | None = "auto"  # what memory and time are reckoned for: a kind of conf/hardware.yaml, this machine's, or null
    train: ResourcesConf = field(default_factory=ResourcesConf)
    evaluate: ResourcesConf = field(default_factory=ResourcesConf)
    retries: int = 2  # of a stage that NCCL, a port or the memory of its node ended


@dataclass
class TrackingConf:
    name: str = MISSING
    mode: str = "auto"  # online | offline | auto: online where there is a key
    entity: str | None = None  # None: the key's own
    project: str = "rlvr_sweeps"
    init_timeout_s: float = 30.0  # for the server to answer; after that, offline
    finish_timeout_s: float = 30.0  # for the last rows to go up; the most that a stage waits


@dataclass
class EarlyStoppingConf:
    """Off: a run takes all its steps. On, it is science: every value that is not a default is in the run's id."""

    name: str = "none"
    window: int = 16  # steps over which reward and truncation are averaged
    collapse: bool = False  # the rule of rlvr_sweeps/training/early_stopping.py
    standard_errors: float = 3.0
    truncated_share: float = 0.9
    first_rung: int | None = None  # steps; None: no successive halving
    reduction: int = 3  # at each rung the best 1/reduction go on
    study: str | None = None  # runs of one study compete


@dataclass
class Config:
    # Dials. alpha is derived from rank unless given; see conf/config.yaml.
    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = MISSING
    lr: float = MISSING
    batch_size: int = MISSING  # completions per optimizer step, over all processes
    steps: int = MISSING
    seed: int = MISSING

    model: ModelConf = field(default_factory=ModelConf)
    peft: PeftConf = field(default_factory=PeftConf)
    algo: AlgoConf = field(default_factory=AlgoConf)
    data: DataConf = field(default_factory=DataConf)
    benchmark: dict[str, BenchmarkConf] = field(default_factory=dict)
    rollout: RolloutConf = field(default_factory=RolloutConf)
    training: TrainingConf = field(default_factory=TrainingConf)
    evaluation: EvaluationConf = field(default_factory=EvaluationConf)
    distributed: DistributedConf = field(default_factory=DistributedConf)
    cluster: ClusterConf = field(default_factory=ClusterConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)
    early_stopping: EarlyStoppingConf = field(default_factory=EarlyStoppingConf)

    grading: str = (
        "boxed_after_thinking"  # where an answer must stand; the others are boxed and any (rlvr_sweeps/grading/grader.py)
    )
    analysis: str = "none"  # spectra of the update: none | final | checkpoints (at each of them too)
    untested_versions: bool = False  # run on versions of torch, TRL, vLLM, … that are no known set (rlvr_sweeps/versions.py)
    sweep: str | None = None  # a label: which sweep asked; no part of a run's identity
    runs_dir: str = "runs"
    plan: bool = False  # print what would run, and stop
    retry: bool = False  # run failed runs again
    wait: bool = False  # cluster=slurm: stay until everything has ended
    canary: bool = False  # cluster=slurm: one short run first, on which the others depend


def multiply(*factors: float) -> float | int:
    """Exact product; an int where the result is whole, so that `${mul:2,${rank}}` is the integer α PEFT expects."""
    product = Fraction(1)
    for factor in factors:
        product *= Fraction(str(factor))
    return int(product) if product.denominator == 1 else float(product)


def floor_divide(numerator: int, denominator: int) -> int:
    """Whole quotient, rounded down."""
    return numerator // denominator


def where(value: Any, case: Any, then: Any, otherwise: Any) -> Any:
    """`then` where the value is the case, as in `${where:${peft.trains},everything,0.15,0.3}`."""
    return then if value == case else otherwise


def register() -> None:
    """Make the schema and the resolvers known to Hydra; safe to call twice."""
    ConfigStore.instance().store(name="schema", node=Config, provider="rlvr_sweeps")
    OmegaConf.register_new_resolver("mul", multiply, replace=True)
    OmegaConf.register_new_resolver("floordiv", floor_divide, replace=True)
    OmegaConf.register_new_resolver("where", where, replace=True)


Resolved = dict[str, Any]  # a run's configuration as plain data, every interpolation resolved


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is one leaf, an empty mapping none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def schema_defaults() -> dict[str, Any]:
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    return {key: value for key, value in leaves({str(key): value for key, value in schema.items()}) if value != MISSING}
