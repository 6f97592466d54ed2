"""The promises about structure: who imports what, how long a module is, that the README's map is true."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MODULES = sorted(path for path in (ROOT / "rlvr_sweeps").glob("*.py"))
COMPUTE = {
    "dropout",
    "worst_case",
    "dora",
    "analyse",
    "adalora",
    "adapters",
    "agreement",
    "callbacks",
    "counts",
    "engines",
    "evaluate",
    "reach",
    "record",
    "rollouts",
    "sampling",
    "spectra",
    "stopping",
    "svd",
    "sync",
    "train",
    "trainer",
    "vllm_rollouts",
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets")


@pytest.mark.parametrize("name", [path.stem for path in MODULES if path.stem not in COMPUTE])
def test_nothing_heavy_is_imported_outside_of_compute(name):
    code = f"import sys, rlvr_sweeps.{name}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr


PURE = {
    "scores",
    "differences",
    "second",
    "literals",
    "spelling",
    "units",
    "expressions",
    "structure",
    "answers",
    "judging",
    "grading",
}


def test_the_pure_modules_import_pure_ones_alone():
    for name in PURE:
        tree = ast.parse((ROOT / f"rlvr_sweeps/{name}.py").read_text())
        imports = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {module for module in imports if module and module.startswith("rlvr_sweeps")} <= {
            f"rlvr_sweeps.{p}" for p in PURE
        }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_is_one_room(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    assert ast.get_docstring(ast.parse(text))


def test_the_readmes_map_names_every_module_and_no_other():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`(\w+)\.py`", readme[readme.index("## Map") :]))
    assert named == {path.stem for path in MODULES if path.stem != "__init__"} | {"launch"}
