"""The structure of the package: which wing may import which, and which modules may import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GROUND = {"errors", "files", "paths", "gpus", "versions", "patches"}
# Each wing and the wings it may import; the ground modules are open to all but `grading`, which uses `patches` only.
MAY_IMPORT: dict[str, set[str]] = {
    "grading": set(),
    "assets": {"grading"},
    "config": {"grading", "assets"},
    "runs": {"config"},
    "planning": {"assets", "config", "runs"},
    "training": {"grading", "assets", "config", "runs", "planning"},
    "evaluation": {"grading", "assets", "config", "runs", "planning", "training"},
    "reporting": {"config", "runs", "training", "evaluation"},
    "launching": {"assets", "config", "runs", "planning", "training", "evaluation", "reporting"},
    "cli": {"assets", "config", "runs", "planning", "evaluation", "reporting", "launching"},
}
TORCH = (  # modules that run in a stage's process; every other module must not import torch
    "training/", "evaluation/analyse", "evaluation/engines", "evaluation/evaluate", "reporting/tables/parameters",
)  # fmt: skip
TORCH_FREE_IN_TRAINING = (
    "training/__init__",
    "training/methods/__init__",
    "training/micro_batches",
    "training/successive_halving",
)
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "vllm", "deepspeed")

PACKAGE = ROOT / "rlvr_sweeps"
MODULES = sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the wings and ground modules of this package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rlvr_sweeps":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlvr_sweeps."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rlvr_sweeps.")}
    return names - {"__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_wing_may(module):
    wing = module.split("/")[0]
    if wing == "__init__":
        allowed = {"reporting"}  # for `load`, within the function: see the test below
    elif wing in GROUND:
        allowed = GROUND
    else:
        allowed = {wing} | MAY_IMPORT[wing] | (GROUND if wing != "grading" else {"patches"})
    excess = imported(PACKAGE / f"{module}.py") - allowed
    assert not excess, (
        f"rlvr_sweeps/{module}.py imports {sorted(excess)}, which its wing may not import: see MAY_IMPORT in this file."
    )


def test_the_matrix_has_no_cycle():
    order = list(MAY_IMPORT)
    for wing, allowed in MAY_IMPORT.items():
        assert all(order.index(imported_wing) < order.index(wing) for imported_wing in allowed), wing


def test_every_wing_is_in_the_matrix():
    assert {module.split("/")[0] for module in MODULES} - {"__init__"} == set(MAY_IMPORT) | GROUND


def is_torch_free(module: str) -> bool:
    """Return whether a module must not import torch."""
    return module in TORCH_FREE_IN_TRAINING or not module.startswith(TORCH)


def test_torch_free_modules_import_nothing_heavy():
    """Import the modules in turn in one process; the error message has the first that imports a heavy library."""
    names = [f"rlvr_sweeps.{module}".replace("/", ".").removesuffix(".__init__") for module in MODULES if is_torch_free(module)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [library for library in {HEAVY!r} if library in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_the_package_itself_imports_nothing():
    code = (
        "import sys, rlvr_sweeps\n"
        "imported = [name for name in sys.modules if name.startswith(('rlvr_sweeps.', 'pandas', 'numpy'))]\n"
        "assert not imported, imported\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_evaluation_imports_neither_trl_nor_peft():
    code = (
        "import sys, rlvr_sweeps.evaluation.analyse, rlvr_sweeps.evaluation.evaluate\n"
        "assert not {'trl', 'peft'} & set(sys.modules), 'import from training.models instead'\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring(module):
    assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))
