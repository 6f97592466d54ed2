"""Define every setting of a run: its name, type, default and meaning. Hydra composes the values from conf/.

Settings that the paper varies are typed fields. Settings of an upstream library (`peft.config`, `*.trl`, `*.vllm`) are dicts
that the library's own constructor validates. MISSING: no default here, a file of conf/ sets the value. Which fields are part of
a run's id: identity.py. The order in which the files of conf/ are merged: conf/config.yaml.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

# "All linear modules" (Sec. 2.2) and every norm, by their names in Qwen2 and Llama; conf/model has the names of others.
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION_MODULES = LINEAR_MODULES[:4]
NORM_MODULES = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass
class ModelConf:
    """The base model: conf/model/*.yaml. Settings that also set data, benchmarks and batch are in the same files."""

    name: str = MISSING  # in directory names and tables
    path: str = MISSING  # hub id, folder, .gguf file, package:NAME/FILE.gguf (installed package), or embedded:NAME
    revision: str | None = None  # commit on the hub; content key of an embedded model or GGUF file. None: the newest
    system_prompt: str | None = None  # first message of every prompt; None: no such message
    linear_modules: list[str] = field(default_factory=lambda: list(LINEAR_MODULES))  # names of the layers that adapters target
    attention_modules: list[str] = field(default_factory=lambda: list(ATTENTION_MODULES))  # those of them in the attention
    norm_modules: list[str] = field(default_factory=lambda: list(NORM_MODULES))  # names of the layers that ln_tuning targets
    architecture: dict[str, Any] = field(default_factory=dict)  # values of config.json, for plans before the model is there
    opens_think: bool = False  # whether the chat template must end a prompt with an opening <think>; checked before a run
    autocast_bf16: bool = False  # matrix products in bfloat16; weights and optimizer state stay float32
    rounded_to_bf16: bool = False  # begin with the weights rounded to bfloat16, the values that most published models have
    license: str | None = None  # of the base model, by the hub's name (apache-2.0); for the model card of `rlvr export`
    paper_size: str | None = None  # the size by which the paper names this model ("1.5B"); None: not a model of the paper


@dataclass
class PeftConf:
    """The fine-tuning method: conf/peft/*.yaml."""

    name: str = MISSING  # in directory names
    title: str = MISSING  # in tables and figures
    trains: str = "adapter"  # adapter | everything (full fine-tuning) | nothing (the Base row: only evaluated)
    config: dict[str, Any] = field(default_factory=dict)  # passed to peft.get_peft_config; empty without an adapter
    # Of A and B: principal (PiSSA) | minor (MiLoRA) | activations (EVA) | gradients (LoRA-GA) | residual (PEFT's own, whose
    # first update is subtracted from the frozen weights: Uni-LoRA, VB-LoRA); None: PEFT's own
    initialisation: str | None = None
    lr_ratio: float | None = None  # LoRA+: learning rate of B divided by that of A (λ = η_B / η_A); None: the same rate
    not_the_base_in_training: str | None = None  # reason why the train-mode policy at step 0 differs from the base model
    factored_norm: bool = True  # DoRA: compute the weight norm without forming B·A; false: as PEFT computes it
    trained: list[str] = field(default_factory=list)  # name parts of the adapter's trained parameters; others are frozen
    unavailable: str | None = None  # reason why a launch with this method is refused; None: it can be launched


@dataclass
class AlgoConf:
    """The training objective: conf/algo/*.yaml."""

    name: str = MISSING  # in directory names
    title: str = MISSING  # in tables and figures
    trl: dict[str, Any] = field(default_factory=dict)  # passed to trl.GRPOConfig, over training.trl
    sampling_rounds: int = 1  # most rollout rounds per step to fill the batch with mixed-reward groups; 1: no dynamic sampling
    overlong_buffer: int = 0  # tokens before rollout.max_tokens over which DAPO's soft length penalty grows; 0: no penalty


@dataclass
class SourceConf:
    """A set of problems: a hub data set, a .jsonl, .csv or .parquet file, embedded:NAME/FILE, or reasoning_gym:TASK."""

    # hub id, path of a file, hf://OWNER/NAME/FILE (a file on the hub), embedded:NAME/FILE, or reasoning_gym:TASK
    path: str = MISSING
    revision: str | None = None  # commit on the hub, the embedded recipe's hash, or the version of reasoning-gym
    subset: str | None = None  # configuration of a hub data set that has several
    split: str = "train"  # split of a hub data set
    question: str = "question"  # name of the field that holds the problem: a text, or a list of messages {role, content}
    answer: str | None = "answer"  # name of the field that holds the gold answer (LaTeX without a box); None: there is none
    answer_after: str | None = None  # the answer is the text after the last of these marks in the field ("####" in GSM8K)
    columns: dict[str, str] = field(default_factory=dict)  # name that a verifier reads -> field; others keep their names
    problems: int | None = None  # expected number of problems, any other number is an error; None: not checked
    # reasoning_gym:TASK: problem i is made from seed + i; repeated questions and those of the test set are left out. Of a file,
    # test_size problems, chosen by test_seed, are the test set (benchmark=split), which training leaves out.
    parameters: dict[str, Any] = field(default_factory=dict)  # the task's own configuration, without its size and seed
    size: int | None = None  # number of problems that are generated
    seed: int | None = None  # of the first problem
    test_parameters: dict[str, Any] = field(default_factory=dict)  # of the test set, whose questions are left out of this set
    test_size: int | None = None  # None: nothing is left out
    test_seed: int | None = None  # None, for a file: 0


@dataclass
class DataConf(SourceConf):
    """The training problems: conf/data/*.yaml."""

    name: str = MISSING  # in reports
    task: str | None = None  # task of reasoning-gym, from which path and benchmark=reasoning_gym follow
    max_prompt_tokens: int = 512  # longer prompts are not trained on; train.json counts them
    holdout: int = 0  # number of problems kept out of training, chosen by the hash of their id (see benchmark `heldout`)


@dataclass
class BenchmarkConf(SourceConf):
    """One evaluation set: conf/benchmark/*.yaml. A run has a dict of them, by name."""

    k: int = MISSING  # samples per problem
    part: str | None = None  # test: of a file, only the problems that test_size and test_seed choose; None: see test_size
    held_out: int = 0  # only in `heldout`: equal to data.holdout, selects those training problems; 0: the whole set


@dataclass
class RolloutConf:
    """Sampling during training: conf/rollout/*.yaml."""

    engine: str = MISSING  # hf (transformers, no GPU needed) | vllm. Evaluation calls the first one `transformers`
    group_size: int = 8  # completions per prompt, the paper's G
    max_tokens: int = MISSING  # limit of one completion
    temperature: float = 1.0
    top_p: float = 1.0
    trl: dict[str, Any] = field(default_factory=dict)  # passed to trl.GRPOConfig; only its vLLM and correction settings
    vllm: dict[str, Any] = field(default_factory=dict)  # passed to vllm.LLM; arguments that follow from the run are refused
    continuous: bool = False  # vllm: all sampling rounds of a step in one call of the engine; the trained groups are the same
    lag: int = 0  # vllm: 1: a call of the engine samples two steps' groups; the second trains on samples one update old
    sleep: bool = False  # vllm on a GPU: it releases weights and KV cache during the update, and is compared after each waking
    sync: str = "merged"  # vllm: weights sent to the engine each step: merged | adapter (A and B alone, LoRA variants only)
    # Weights that sample: float32 (products too) | bfloat16 (the nearest value) | stochastic (bfloat16, rounded up or down at
    # random so that the mean is exact). conf/config.yaml sets it; None, in stored configurations: as model.autocast_bf16.
    weights: str | None = None
    check_every: int = 0  # vllm: steps between comparisons of its log-probabilities with the trainer's; 0: the first only
    tolerance_nats: dict[str, float] = field(default_factory=dict)  # vllm: by dtype, the mean difference that stops a run


@dataclass
class EvaluationConf:
    """Sampling in the evaluation: conf/evaluation/*.yaml. Nothing here is part of the run's id."""

    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING  # limit of one completion
    seed: int = MISSING  # every sample's own seed is derived from it
    engine: str = "auto"  # vllm | transformers | auto: vllm where it is installed and there is a GPU
    weights: str | None = None  # weights that sample, as rollout.weights
    batch_size: int = 256  # transformers: completions decoded together; it does not change what is sampled
    vllm: dict[str, Any] = field(default_factory=dict)  # passed to vllm.LLM


@dataclass
class TrainingConf:
    """How a step is computed. Set in conf/config.yaml and conf/model/*.yaml."""

    per_device_batch_size: int = MISSING  # completions of full length per forward pass and process
    save_every: int = MISSING  # steps between checkpoints
    save_minutes: float | None = 20.0  # the longest time without a checkpoint, so that no more is ever lost; null: no limit
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    # by_length: passes of similar lengths | by_prompt: a row holds a group, and its prompt once | equal: as TRL cuts, padded to
    # the step's longest
    micro_batches: str = "by_length"
    log_probabilities: str = "once"  # vllm: from the update's own pass (once) | from an extra pass before it, as TRL (twice)
    worst_case_first: str = "gpu"  # dry step at full length before step 1, to find memory errors: gpu (if any) | always | never
    samples_per_step: int = 4  # completions of each step that rollouts.jsonl keeps, half of them right where possible; 0: none
    trl: dict[str, Any] = field(default_factory=dict)  # passed to trl.GRPOConfig


@dataclass
class DistributedConf:
    """Training processes: conf/distributed/*.yaml."""

    name: str = MISSING  # in tables of a plan
    processes: int = 1  # one per GPU
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's configuration; empty: DeepSpeed is not used
    unavailable: str | None = None  # reason why a launch with this choice is refused; None: it can be launched


@dataclass
class ResourcesConf:
    """Resources of one Slurm job. None: the value of hydra.launcher, or the site's default."""

    nodes: int = 1
    gpus_per_node: int | str = 0  # a number, or Slurm's type and a number: h100:2
    cpus_per_task: int | None = None
    mem_gb: int | None = None  # per node
    timeout_min: int = 1440  # time limit; a run that needs longer is requeued and continues from its last checkpoint
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None


@dataclass
class ClusterConf:
    """Where runs execute: conf/cluster/*.yaml."""

    name: str = MISSING  # local | slurm | submitit
    runs_per_gpu: int = 1  # cluster=local: runs at once on each GPU; each has an equal share of its memory, and of vLLM's share
    threads: int | None = None  # of each process of a run without a GPU; None: the cores that it has, as recorded when it began
    gpu: str | None = "auto"  # GPU that the plan estimates for: a name of conf/hardware.yaml | auto (this machine's) | null
    train: ResourcesConf = field(default_factory=ResourcesConf)  # of a training job
    evaluate: ResourcesConf = field(default_factory=ResourcesConf)  # of an evaluation job
    report: ResourcesConf = field(default_factory=lambda: ResourcesConf(cpus_per_task=1, timeout_min=30))  # of the report job
    retries: int = 2  # restarts of a Slurm job after a transient failure (NCCL error, port in use, process killed)


@dataclass
class TrackingConf:
    """Trackers that mirror the run directory: conf/tracking/*.yaml."""

    name: str = MISSING  # none | wandb | tensorboard | trackio
    also: list[str] = field(default_factory=list)  # further trackers of the same run: [tensorboard]
    mode: str = "auto"  # online | offline | auto. W&B: online where an API key is configured; Trackio: where space_id is set
    entity: str | None = None  # W&B; None: the default entity of the API key
    project: str = "rlvr_sweeps"  # W&B and Trackio
    space_id: str | None = None  # Trackio: a Hugging Face Space, user/name; None: the local database of TRACKIO_DIR
    init_timeout_s: float = 30.0  # wait for the server's first answer; offline after that
    finish_timeout_s: float = 30.0  # wait at the end of a stage for the last rows to be uploaded


@dataclass
class EarlyStoppingConf:
    """Rules that end a run early: conf/early_stopping/*.yaml. By default none; rules that are set are part of the run's id."""

    name: str = "none"
    window: int = 16  # steps over which reward and truncated share are averaged
    collapse: bool = False  # stop collapsed runs, by the three rules of rlvr_sweeps/training/early_stopping.py
    standard_errors: float = 3.0  # collapse: how far the reward must fall below its first window
    truncated_share: float = 0.9  # collapse: stop above this share of completions cut off at rollout.max_tokens
    first_rung: int | None = None  # step of ASHA's first comparison; any number switches ASHA on, None: off
    reduction: int = 3  # ASHA: the best 1/reduction of a rung continue; the next rung is at reduction × the steps
    study: str | None = None  # ASHA: name of the study; its runs compete with each other


@dataclass
class AnswersConf:
    """The rules on which graders differ: conf/answers/*.yaml. Their meaning is in rlvr_sweeps/grading/rules.py."""

    boxes: str = "last"  # which of several boxes is the answer: last | first | all, as a list
    arithmetic: str = "refuse"  # an expression to compute, such as 2^{10}, where the gold answer is a number: refuse | accept
    percent: str = "either"  # 28% equals 0.28 and 28 (either), or only 0.28 (strict); unsigned: 0.28 equals 28 too
    tolerance: str = "exact"  # exact | one_percent (of gold answers written as decimals) | qwen2_5_math (a relative 1e-4)
    vectors: str = "either"  # a row or column equals a tuple (either), or only a matrix (strict)


@dataclass
class PartConf:
    """One verifier: a reward function with TRL's signature, or the project's grader (docs/verifier.md)."""

    target: str = "math"  # math | pkg.module:function | ./file.py:function
    source: str | None = None  # SHA-256 of the file of the function, filled in by a launch; another content is refused
    version: int | None = None  # to raise when something changes that is not in that file
    weight: float = 1.0  # of its score in the sum
    columns: list[str] | None = None  # columns of the problems that it gets; None: all
    arguments: dict[str, Any] = field(default_factory=dict)  # constants that each call gets as keyword arguments
    text: bool = False  # completions as texts; false: as conversations, as TRL passes them for prompts that are conversations
    timeout_s: float = 5.0  # CPU seconds of one completion; a call may wait ten times as long
    memory_mb: int = 2048  # memory that its process may add


@dataclass
class VerifierConf(PartConf):
    """What decides whether a completion is right, in training and evaluation: conf/verifier/*.yaml."""

    name: str = "math"  # in messages
    correct_at: float = 1.0  # score from which an answer counts as correct
    also: dict[str, PartConf] = field(default_factory=dict)  # further verifiers by name; the weighted scores are added


@dataclass
class Config:
    """A run. The command line sets any field: `rank=8`, `rollout.max_tokens=2048`."""

    # Dials: each can be an axis of a grid. Which of the first four a method has, its file in conf/peft states.
    rank: int = MISSING  # of the adapter
    alpha: float = MISSING  # the adapter's scale is alpha / rank; 2 × rank where it is not set
    dropout: float = MISSING  # on the adapter's input
    modules: str = "all"  # layers that the adapter targets: all linear modules of the model | attention | mlp
    lr: float = MISSING  # constant learning rate
    batch_size: int = MISSING  # completions (not prompts) per optimizer step, over all processes
    steps: int = MISSING  # optimizer steps
    seed: int = MISSING  # of initialisation, data order, sampling and dropout

    model: ModelConf = field(default_factory=ModelConf)
    peft: PeftConf = field(default_factory=PeftConf)
    algo: AlgoConf = field(default_factory=AlgoConf)
    data: DataConf = field(default_factory=DataConf)
    benchmark: dict[str, BenchmarkConf] = field(default_factory=dict)  # by name
    rollout: RolloutConf = field(default_factory=RolloutConf)
    training: TrainingConf = field(default_factory=TrainingConf)
    evaluation: EvaluationConf = field(default_factory=EvaluationConf)
    distributed: DistributedConf = field(default_factory=DistributedConf)
    cluster: ClusterConf = field(default_factory=ClusterConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)
    early_stopping: EarlyStoppingConf = field(default_factory=EarlyStoppingConf)

    verifier: VerifierConf = field(default_factory=VerifierConf)
    answers: AnswersConf = field(default_factory=AnswersConf)
    grading: str = "boxed_after_thinking"  # where the answer must be: also boxed | any; see rlvr_sweeps/grading/extraction.py
    signal_check: str = "stop"  # where the start policy is always wrong or always right: stop the run | warn | off
    # Spectra of the update: none | final | checkpoints (at each checkpoint too). conf/config.yaml sets `final`; `none` is the
    # default here so that stored configurations without this key mean what they were run with.
    analysis: str = "none"
    untested_versions: bool = False  # run with package versions that are no tested set (rlvr_sweeps/versions.py)
    sweep: str | None = None  # label of the sweep, a name in conf/sweep; set by sweep=NAME, not part of a run's id
    runs_dir: str = "runs"  # folder of the run directories
    plan: bool = False  # print what the launch would do, and do nothing
    retry: bool = False  # also run failed runs again
    wait: bool = False  # cluster=slurm: return only when all jobs have ended
    budget: str | None = None  # of a sweep with claims: runs (40) or GPU-hours (12h), spent where a seed can decide a claim
    most_seeds: int = 12  # with budget=: the most seeds of a row
    canary: bool = False  # cluster=slurm: submit one short run first; the others depend on its success


def multiply(*factors: float) -> float | int:
    """Return the exact product, an int where it is integral: `${mul:2,${rank}}` is then the integer α that PEFT expects."""
    product = Fraction(1)
    for factor in factors:
        product *= Fraction(str(factor))
    return int(product) if product.denominator == 1 else float(product)


def floor_divide(numerator: int, denominator: int) -> int:
    """Return the integer quotient, rounded down."""
    return numerator // denominator


def where(value: Any, case: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` if the value equals the case, else `otherwise`: `${where:${peft.trains},everything,0.15,0.3}`."""
    return then if value == case else otherwise


def target_modules(modules: str, *, _root_: Any) -> list[str]:
    """Return the model's linear modules that the dial `modules` selects: `${targets:${modules}}`.

    An unknown value selects all; the checks refuse it.
    """
    linear, attention = list(_root_.model.linear_modules), set(_root_.model.attention_modules)
    return [name for name in linear if modules not in ("attention", "mlp") or (name in attention) == (modules == "attention")]


def register() -> None:
    """Register the schema and the resolvers with Hydra; a second call changes nothing."""
    ConfigStore.instance().store(name="schema", node=Config, provider="rlvr_sweeps")
    OmegaConf.register_new_resolver("mul", multiply, replace=True)
    OmegaConf.register_new_resolver("floordiv", floor_divide, replace=True)
    OmegaConf.register_new_resolver("where", where, replace=True)
    OmegaConf.register_new_resolver("targets", target_modules, replace=True)


Resolved = dict[str, Any]  # a run's configuration as plain data, every interpolation resolved


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf; a list is one leaf, an empty dict has none."""
    for key, value in tree.items():
        if isinstance(value, dict):  # a tenth of the time of a check for Mapping; thousands of runs have hundreds of leaves
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def schema_defaults() -> dict[str, Any]:
    """Return the schema's default of every leaf by its dotted key; leaves without one (MISSING) are left out."""
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    return {key: value for key, value in leaves({str(key): value for key, value in schema.items()}) if value != MISSING}
