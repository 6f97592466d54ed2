"""What the tests share: a composer over the real conf/, an untaught tiny model, real launches in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
ROOT = Path(__file__).resolve().parent.parent


def choices(group: str) -> list[str]:
    """The names of a conf/ group's files."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.fixture(scope="session")
def composer():
    from rlvr_sweeps.compose import offline_composer

    return offline_composer()


@pytest.fixture
def point(composer, tmp_path):
    """Compose one point; runs go to this test's own folder."""
    return lambda *overrides: composer.point([*overrides, f"runs_dir={tmp_path}/runs"]).cfg


@pytest.fixture(scope="session")
def tokenizer():
    from rlvr_sweeps.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    """The tiny architecture with random weights, biases and norms included, so that nothing is special by being 0 or 1."""
    import torch

    from rlvr_sweeps.tiny import Recipe, make_model

    torch.set_num_threads(1)
    made = make_model(Recipe(), tokenizer).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture
def launch(tmp_path):
    """Run the real launch.py; returns the finished process, its output as text."""

    def run(*arguments: str, expect: int = 0, runs: str | Path = tmp_path / "runs") -> subprocess.CompletedProcess:
        done = subprocess.run(command(*arguments, runs=runs), cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def command(*arguments: str, runs: str | Path = tmp_path / "runs") -> list[str]:
        here = f"hydra.sweep.dir={tmp_path}/launches/" + "${now:%H-%M-%S-%f}"
        return [sys.executable, "launch.py", *arguments, f"runs_dir={runs}", here]

    run.command = command
    run.runs = tmp_path / "runs"
    return run
