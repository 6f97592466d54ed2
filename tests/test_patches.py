"""rlvr_sweeps/patches.py against the installed upstream versions: a failing test states what changed and what to read."""

import ast
import hashlib
import importlib.util
import inspect
import re
from importlib.metadata import version

import pytest

from rlvr_sweeps import patches
from tests.conftest import ROOT

# The upstream code that a patch replaces, calls or depends on: digest of its source in the pinned version.
SOURCES = {
    "trl.trainer.grpo_trainer:GRPOTrainer.training_step": "9e18632f7dd8",
    "trl.trainer.grpo_trainer:GRPOTrainer._prepare_inputs": "f824e7fb0714",
    "trl.trainer.grpo_trainer:GRPOTrainer._generate": "2a27fdf8f5e6",
    "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions": "1fa48922792d",
    "trl.trainer.grpo_trainer:GRPOTrainer._calculate_rewards": "736ae29b0838",
    "trl.trainer.grpo_trainer:GRPOTrainer._get_per_token_logps_and_entropies": "ea73c3909275",
    "trl.trainer.grpo_trainer:GRPOTrainer._compute_loss": "80295546bbdb",
    "trl.trainer.grpo_trainer:GRPOTrainer._load_optimizer_and_scheduler": "5c1772becdfd",
    "trl.trainer.grpo_trainer:GRPOTrainer.log": "1e7772819cc8",
    "trl.generation.vllm_generation:VLLMGeneration.__init__": "3b2cda6d35bb",
    "trl.generation.vllm_generation:VLLMGeneration._init_vllm": "0e584002e0f6",
    "trl.generation.vllm_generation:VLLMGeneration._iter_named_params": "baab615d5c7b",
    "trl.generation.vllm_generation:VLLMGeneration.sync_weights": "63d669fb3230",
    "transformers.trainer:Trainer._load_from_checkpoint": "4711d0506786",
    "transformers.trainer:Trainer._load_optimizer_and_scheduler": "bdcb956f06c4",
    "peft.tuners.lora.dora:DoraLinearLayer": "7378d6129607",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": "d41e9cf4aa57",
    "vllm.v1.engine.output_processor:OutputProcessor.abort_requests": "6dd03abb8ea3",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._parse_overrides_and_create_caching_repo": "64a9ff8144ed",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._apply_overrides_to_config": "d2862382c3a7",
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper": "5aab9613b1cc",
    "omegaconf.grammar_parser:parse": "74350f0d8eff",
    "omegaconf.base:Container._maybe_resolve_interpolation": "16ec61f56811",
    "omegaconf._utils:OmegaConfDumper.str_representer": "d1251a40ee13",
    "latex2sympy2_extended.latex2sympy2:_Latex2Sympy.create_parser": "42eb8609ed9c",
    "latex2sympy2_extended.latex2sympy2:_Latex2Sympy.parse": "3f9c529b2e6c",
    "latex2sympy2_extended.latex2sympy2:_Latex2Sympy.parse_number": "187dd6174122",
    "trackio:init": "7681dc04c8a9",
    "trackio.run:Run._batch_sender": "dac70b7d8582",
}  # fmt: skip
FUNCTIONS = [
    function for _, function in inspect.getmembers(patches, inspect.isfunction) if function.__module__ == patches.__name__
]
PINS = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
DISTRIBUTIONS = {"hydra": "hydra-core", "vllm": "vllm"}


def upstream(path):
    """Return the object at `module:Class.method`; skip the test where the library is not installed."""
    module, _, names = path.partition(":")
    pytest.importorskip("vllm" if "vllm_rollouts" in module else module.partition(".")[0])
    target = importlib.import_module(module)
    for name in names.split("."):
        assert hasattr(target, name), f"{path} does not exist in the installed version: see its use in rlvr_sweeps/patches.py."
        target = inspect.getattr_static(target, name)
    return target


def digest(path):
    """Return a hash of the source of `module:Class.function` as it is in the file, also if this process has patched it."""
    code = upstream(path)
    module, _, name = path.partition(":")
    lines = inspect.getsource(importlib.import_module(module)).splitlines(keepends=True)
    node = ast.parse("".join(lines))
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        if node is None:  # inherited, or imported from another module
            source = inspect.getsource(inspect.unwrap(getattr(code, "__func__", code)))
            return hashlib.sha256(source.encode()).hexdigest()[:12]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return hashlib.sha256("".join(lines[first - 1 : node.end_lineno]).encode()).hexdigest()[:12]


@pytest.mark.parametrize("path", SOURCES)
def test_upstream_source_has_the_recorded_digest(path):
    assert digest(path) == SOURCES[path], (
        f"The source of {path} is not that of the version rlvr_sweeps/patches.py was written for. Read what changed, adapt the "
        "patch or the override that names it, then record the new digest in SOURCES."
    )


@pytest.mark.parametrize("override", patches.OVERRIDDEN, ids=lambda override: override.upstream)
def test_an_overridden_method_exists_upstream_and_takes_the_same_arguments(override):
    name = override.upstream.rpartition(".")[2]
    original = inspect.signature(upstream(override.upstream))
    own_class = upstream(override.by)
    assert name in vars(own_class), f"{override.by} does not override {name}: delete the row from OVERRIDDEN."
    own = inspect.signature(vars(own_class)[name])
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in own.parameters.values()):
        return  # passes all arguments on
    required = [name for name, parameter in original.parameters.items() if parameter.default is inspect.Parameter.empty]
    assert set(required) <= set(own.parameters) or len(original.parameters) == len(own.parameters), (
        f"{override.upstream}{original} has other arguments than {override.by}.{name}{own}: adapt the override."
    )


def test_every_private_override_is_listed():
    listed = {(override.by, override.upstream.rpartition(".")[2]) for override in patches.OVERRIDDEN}
    for by in {override.by for override in patches.OVERRIDDEN}:
        module, _, name = by.partition(":")
        if module.endswith("vllm_rollouts") and not importlib.util.find_spec("vllm"):
            continue
        own_class = getattr(importlib.import_module(module), name)
        inherited = {member for base in own_class.__mro__[1:] for member in vars(base)}
        private = {member for member in vars(own_class) if re.match(r"_[a-z]", member) and member in inherited}
        private = {member for member in private if inspect.isfunction(vars(own_class)[member])}
        assert private <= {member for owner, member in listed if owner == by}, f"{by}: list {private} in patches.OVERRIDDEN."


@pytest.mark.parametrize("row", patches.IMPORTED, ids=lambda row: row[0])
def test_an_imported_private_name_exists(row):
    assert inspect.isclass(upstream(row[0]))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_patch_states_version_link_and_when_it_may_be_removed(function):
    text = inspect.getdoc(function)
    assert "https://github.com/" in text, f"{function.__name__}: add a link to the upstream code or issue."
    assert "Remove " in text, f"{function.__name__}: add when the function may be removed."
    library, number = re.search(r"(\w+) (\d+\.\d+\.\d+)", text).groups()
    pin = PINS[DISTRIBUTIONS.get(library.lower(), library.lower())]
    assert number == pin, (
        f"patches.{function.__name__} was checked with {library} {number}, and constraints.txt has {pin}. Read the upstream "
        "code at the new version, then state that version in the docstring."
    )


@pytest.mark.parametrize("library", ["trl", "transformers", "peft", "hydra-core", "omegaconf", "submitit", "optuna", "pebble"])
def test_the_installed_version_is_the_pinned_one(library):
    pytest.importorskip(library.partition("-")[0])
    assert version(library) == PINS[library], f"constraints.txt pins {library}=={PINS[library]}: run make venv."


def test_attributes_that_patches_use_exist():
    """Attributes exist on instances only, so the source of the class that sets them is searched."""
    used = {
        "trl.trainer.grpo_trainer:GRPOTrainer": ["self._last_loaded_step = -1", "self._metrics[mode]", "self.rollout_func = "],
        "transformers.training_args:TrainingArguments": ["def _setup_devices(self)", "@cached_property"],
        "peft.tuners.lora.layer:LoraLayer": ["self._caches"],
        "submitit.core.utils:FailedJobError": ["class FailedJobError"],
        "pebble.common.types:Consts": ["sleep_unit"],
        "optuna.trial._frozen:FrozenTrial": ["self._trial_id = trial_id"],  # last: the vLLM environment has no Optuna
    }
    for path, names in used.items():
        source = inspect.getsource(upstream(path))
        for name in names:
            assert name in source, f"{path} has no `{name}` in the installed version: see its use in rlvr_sweeps/patches.py."


def test_no_private_name_of_an_upstream_library_is_used_elsewhere():
    """Outside patches.py no private module is imported and no private attribute of another object is used."""
    # of os, of named tuples, and torch's counter of writes to a tensor
    documented = {"_exit", "_asdict", "_fields", "_version"}
    files = {*(ROOT / "rlvr_sweeps").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")} - {ROOT / "rlvr_sweeps/patches.py"}
    uses = []
    for path in sorted(files):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and node.attr not in documented:
                owner = ast.unparse(node.value)
                uses += [] if owner in ("self", "super()") else [f"{path.relative_to(ROOT)}:{node.lineno}: {owner}.{node.attr}"]
            if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)_[a-z]", node.module or ""):
                names = {f"{node.module}:{alias.name}" for alias in node.names} - {row[0] for row in patches.IMPORTED}
                uses += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in names]
    assert not uses, f"Private names belong behind a function of rlvr_sweeps/patches.py: {uses}"
