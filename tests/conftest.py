"""What the tests share: a composer over the real conf/, an untaught tiny model, real launches in a folder of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fresh", database=None)  # examples of earlier runs do not decide a test
settings.load_profile("fresh")
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
ROOT = Path(__file__).resolve().parent.parent


PROMPTS = [[(7 * row + 3 * place) % 280 for place in range(20)] for row in range(32)]  # for methods that look at activations


def choices(group: str) -> list[str]:
    """The names of a conf/ group's files."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.fixture(scope="session")
def composer():
    from rlvr_sweeps.config.compose import offline_composer

    return offline_composer()


@pytest.fixture
def point(composer, tmp_path):
    """Compose one point; runs go to this test's own folder."""
    return lambda *overrides: composer.point([*overrides, f"runs_dir={tmp_path}/runs"]).cfg


@pytest.fixture(scope="session")
def tokenizer():
    from rlvr_sweeps.assets.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    """The tiny architecture with random weights, biases and norms included, so that nothing is special by being 0 or 1."""
    import torch

    from rlvr_sweeps.assets.tiny import Recipe, make_model

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


@pytest.fixture(scope="session")
def world(composer):
    """A run's configuration on the embedded world."""
    return composer.point([]).cfg


@pytest.fixture(scope="session")
def twelve(world, tmp_path_factory):
    """A .jsonl of twelve training problems: few enough that some steps pass an epoch."""
    from rlvr_sweeps.assets.problems import load_problems

    return write_problems(tmp_path_factory.mktemp("problems") / "twelve.jsonl", load_problems(world["data"])[:12])


@pytest.fixture(scope="session")
def three(world, tmp_path_factory):
    """A .jsonl of three training problems of one operation, for short trainings.

    The base model always solves the first, whose groups dynamic sampling therefore replaces, and the others every second time.
    """
    from rlvr_sweeps.assets.problems import load_problems

    problems = load_problems(world["data"])
    return write_problems(tmp_path_factory.mktemp("problems") / "three.jsonl", [problems[index] for index in (3, 36, 37)])


def write_problems(path, problems):
    path.write_text("".join(json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in problems))
    return path


SHORTEST = ("batch_size=16", "rollout.group_size=8", "rollout.max_tokens=14", "steps=5", "training.save_every=2")


def prepare(composer, problems, runs_dir, *overrides):
    """Make the directory of a run that is trained on a .jsonl of problems; returns the run and its configuration."""
    from rlvr_sweeps.runs.directory import Run

    cfg = composer.point([*overrides, f"data.path={problems}", "data.problems=null", f"runs_dir={runs_dir}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    return run, cfg


@pytest.fixture
def prepared(composer, twelve, tmp_path):
    """Make the directory of a small run on twelve problems; returns the run and its configuration."""
    small = ("batch_size=16", "rollout.group_size=4", "rollout.max_tokens=24", "training.save_every=4")
    return lambda *overrides, runs="runs": prepare(composer, twelve, tmp_path / runs, *small, *overrides)


@pytest.fixture
def shortest(composer, three, tmp_path):
    """Make the directory of a run of five steps of two prompts on three problems; returns the run and its configuration."""
    return lambda *overrides, runs="runs": prepare(composer, three, tmp_path / runs, *SHORTEST, *overrides)


def write_right(run, benchmark, problems, k, right):
    """k samples of each problem, the first `right` of them correct."""
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
    """Make a run as if trained and evaluated on three problems, four times each: all right on tier1, `right` of 4 on tier2."""
    from rlvr_sweeps.assets.problems import load_problems
    from rlvr_sweeps.evaluation.samples import summarise
    from rlvr_sweeps.files import write_json
    from rlvr_sweeps.runs.directory import Run

    path = tmp_path / "problems.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in (1, 2, 3)))

    def make(*overrides, right=2):
        two = [f"benchmark.{tier}.{key}" for tier in ("tier1", "tier2") for key in (f"path={path}", "problems=3", "k=4")]
        rest = [f"~benchmark.tier{n}" for n in (3, 4, 5)]
        cfg = point(*two, *rest, "analysis=none", *overrides)
        run = Run.of(cfg)
        run.prepare(cfg)
        for tier, count in (("tier1", 4), ("tier2", right))[: len(cfg["benchmark"])]:
            write_right(run, tier, load_problems(cfg["benchmark"][tier]), 4, count)
        write_json(run.record_path, {"parameters": {"trainable": 1, "base": 2}})
        write_json(run.merged_path / "config.json", {})
        run.finish("train", cfg, 1.0)
        write_json(run.summary_path, summarise(run, cfg))
        run.finish("evaluate", cfg, 1.0)
        return run

    return make


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--window-size=1400,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A headless Chromium that writes down its console and every request."""
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
    """The addresses asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
