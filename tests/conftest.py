"""Shared fixtures: a composer over conf/, a tiny model with random weights, and launches of launch.py in a temporary folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", database=None, derandomize=True)  # the same examples every time
settings.load_profile("fixed")
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the environment of the process that starts them
    os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))  # its list of fonts takes seconds to make
    # DeepSpeed compiles its optimizer there in two minutes, into a folder named after torch, and again when a source changed.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache/torch_extensions"))
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="rlvr-sweeps-tests-")
# A background job of a shell ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent
# Token ids of 32 prompts for methods that start from activations.
PROMPTS = [[(7 * row + 3 * position) % 280 for position in range(20)] for row in range(32)]


def pytest_unconfigure():
    """Remove the cache of the session. It is the session's own, so that nothing that an earlier one stored decides a test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def choices(group: str) -> list[str]:
    """Return the names of the files in a group of conf/."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


# The methods whose proofs run in CI, but those with two processes: test_distributed.py. Of the others, CI runs the proofs that
# take less than a second each.
ALL_PROOFS_IN_CI = (
    "adalora", "dora", "eva", "full", "hra", "ia3", "ln_tuning", "ln_tuning_post", "lora", "lora_fa", "lora_plus", "milora",
    "milora_released", "miss", "miss_qv_r64", "oft", "olora", "pissa", "pissa_niter_16", "randlora", "rslora", "shira",
    "tinylora", "vera", "vera_qv",
)  # fmt: skip


def methods(*without: str) -> list:
    """Return the methods of conf/peft as parameters of an expensive test: exhaustive except for ALL_PROOFS_IN_CI."""
    names = [name for name in choices("peft") if name not in ("none", *without)]
    return [name if name in ALL_PROOFS_IN_CI else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@pytest.fixture(scope="session")
def composer():
    """Return a composer over conf/."""
    from rlvr_sweeps.config.compose import offline_composer

    return offline_composer()


@pytest.fixture
def point(composer, tmp_path):
    """Return a function that composes one point whose runs are in this test's temporary folder."""
    return lambda *overrides: composer.point([*overrides, f"runs_dir={tmp_path}/runs"]).cfg


@pytest.fixture(scope="session")
def tokenizer():
    """Return the tokenizer of the embedded world."""
    from rlvr_sweeps.assets.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    """Return the tiny architecture with random weights, also in biases and norms, which would otherwise be 0 or 1."""
    import torch

    from rlvr_sweeps.assets.tiny import Recipe, make_model

    torch.set_num_threads(1)
    tiny_model = make_model(Recipe(), tokenizer).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tiny_model


@pytest.fixture
def launch(tmp_path):
    """Return a function that runs launch.py and returns the finished process, with its output as text."""

    def run(*arguments: str, expect: int = 0, runs: str | Path = tmp_path / "runs") -> subprocess.CompletedProcess:
        process = subprocess.run(command(*arguments, runs=runs), cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    def command(*arguments: str, runs: str | Path = tmp_path / "runs") -> list[str]:
        sweep_dir = f"hydra.sweep.dir={tmp_path}/launches/" + "${now:%H-%M-%S-%f}"
        return [sys.executable, "launch.py", *arguments, f"runs_dir={runs}", sweep_dir]

    run.command = command
    run.runs = tmp_path / "runs"
    return run


@pytest.fixture(scope="session")
def world(composer):
    """Return the configuration of a run on the embedded world."""
    return composer.point([]).cfg


@pytest.fixture(scope="session")
def twelve(world, tmp_path_factory):
    """Write twelve training problems, so few that some steps pass the end of an epoch; return the path of the .jsonl file."""
    from rlvr_sweeps.assets.problems import load_problems

    return write_problems(tmp_path_factory.mktemp("problems") / "twelve.jsonl", load_problems(world["data"])[:12])


@pytest.fixture(scope="session")
def three(world, tmp_path_factory):
    """Write three training problems of one operation, for short trainings; return the path of the .jsonl file.

    The first has an answer that the model never gives, so dynamic sampling replaces its groups. The base model solves the other
    two in about 40 % of its samples.
    """
    from dataclasses import replace

    from rlvr_sweeps.assets.problems import load_problems

    problems = load_problems(world["data"])
    chosen = [replace(problems[3], answer="11"), problems[36], problems[37]]
    return write_problems(tmp_path_factory.mktemp("problems") / "three.jsonl", chosen)


def write_problems(path, problems):
    """Write problems as a .jsonl file; return its path."""
    rows = ({"question": problem.question, "answer": problem.answer} for problem in problems)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHORTEST = (
    "signal_check=off",
    "batch_size=16",
    "rollout.group_size=8",
    "rollout.max_tokens=14",
    "steps=5",
    "training.save_every=2",
)


def prepare(composer, problems, runs_dir, *overrides):
    """Make the directory of a run that trains on a .jsonl file of problems; return the run and its configuration."""
    from rlvr_sweeps.runs.directory import Run

    cfg = composer.point([*overrides, f"data.path={problems}", "data.problems=null", f"runs_dir={runs_dir}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    return run, cfg


@pytest.fixture
def prepared(composer, twelve, tmp_path):
    """Return a function like `prepare` for a small run on twelve problems."""
    small = ("signal_check=off", "batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24", "training.save_every=4")
    return lambda *overrides, runs="runs": prepare(composer, twelve, tmp_path / runs, *small, *overrides)


@pytest.fixture
def shortest(composer, three, tmp_path):
    """Return a function like `prepare` for a run of five steps of two prompts on three problems."""
    return lambda *overrides, runs="runs": prepare(composer, three, tmp_path / runs, *SHORTEST, *overrides)


def write_right(run, benchmark, problems, k, right):
    """Write k samples of each problem, of which the first `right` are correct."""
    rows = [
        {
            "problem": problem.id, "sample": index, "correct": index < right, "tokens": 5, "truncated": False,
            "text": f"</think>\\boxed{{{problem.answer if index < right else 'none'}}}", "gold": problem.answer,
            "answer": problem.answer if index < right else "none", "reason": "correct" if index < right else "wrong form",
        }
        for problem in problems
        for index in range(k)
    ]  # fmt: skip
    path = run.samples_path(benchmark)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evaluated(point, tmp_path):
    """Return a function that writes the files of a trained run, evaluated on three problems with four samples of each.

    All samples of tier1 are correct, and `right` of the four on tier2.
    """
    from rlvr_sweeps.assets.problems import load_problems
    from rlvr_sweeps.runs.directory import Run

    path = tmp_path / "problems.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in (1, 2, 3)))

    def make(*overrides, right=2):
        used = [f"benchmark.{tier}.{key}" for tier in ("tier1", "tier2") for key in (f"path={path}", "problems=3", "k=4")]
        removed = [f"~benchmark.tier{n}" for n in (3, 4, 5)]
        cfg = point(*used, *removed, "analysis=none", *overrides)
        run = Run.of(cfg)
        run.prepare(cfg)
        for tier, count in (("tier1", 4), ("tier2", right))[: len(cfg["benchmark"])]:
            write_right(run, tier, load_problems(cfg["benchmark"][tier]), 4, count)
        finish_evaluated(run, cfg)
        return run

    return make


def finish_evaluated(run, cfg):
    """Write what a trained and evaluated run has besides its samples."""
    from rlvr_sweeps.evaluation.samples import summarise
    from rlvr_sweeps.files import write_json

    write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
    write_json(run.merged_path / "config.json", {})
    run.finish("train", cfg, 1.0)
    write_json(run.summary_path, summarise(run, cfg))
    run.finish("evaluate", cfg, 1.0)


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--window-size=1400,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Yield a headless Chromium that logs its console and every request."""
    binaries = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(binaries):
        pytest.skip("SKIPPED: pages were not opened in a browser. As root on Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binaries[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(binaries[1]))
    yield browser
    browser.quit()


def requested(driver):
    """Return the URLs that the browser has requested since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
