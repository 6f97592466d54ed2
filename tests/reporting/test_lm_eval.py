"""Test an export with EleutherAI's lm-evaluation-harness, an independent check: it finds the accuracy that the run reports."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rlvr_sweeps.assets.problems import load_problems
from rlvr_sweeps.reporting.hub.folder import export
from rlvr_sweeps.runs.directory import Run
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-lm-eval" / "bin" / "python"
TASK = Path(__file__).parent / "lm_eval_task" / "embedded.yaml"
SAMPLES = 32  # of each of the 200 problems, here and there: a standard error of half a point


@pytest.mark.exhaustive
def test_lm_eval_finds_the_accuracy_of_the_run(launch, tmp_path):
    assert PYTHON.exists(), "lm-evaluation-harness is not installed: make venv-lm-eval"
    k = [f"benchmark.tier{tier}.k={SAMPLES}" for tier in range(1, 6)]
    launch("model=tiny", "peft=lora", "steps=20", "analysis=none", *k)
    run = Run(next(launch.runs.glob("tiny-lora-*")))
    cfg, summary = run.config(), json.loads(run.summary_path.read_text())
    exported = export(run, tmp_path / "hub")

    problems = [problem for stated in cfg["benchmark"].values() for problem in load_problems(stated)]
    rows = [{"question": problem.question, "answer": problem.answer} for problem in problems for _ in range(SAMPLES)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, decoding = TASK.read_text(), cfg["evaluation"]
    for name, value in (
        ("PROBLEMS", tasks / "problems.jsonl"), ("TEMPERATURE", decoding["temperature"]), ("TOP_P", decoding["top_p"]),
        ("MAX_TOKENS", decoding["max_tokens"]),
    ):  # fmt: skip
        text = text.replace(f": {name}\n", f": {value}\n")
    (tasks / TASK.name).write_text(text)
    arguments = [
        "--model", "hf", "--model_args", f"pretrained={exported.folder},dtype=float32", "--tasks", "embedded",
        "--include_path", str(tasks), "--apply_chat_template", "--batch_size", "256", "--device", "cpu",
        "--output_path", str(tmp_path / "results"), "--seed", "1",
    ]  # fmt: skip
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}
    process = subprocess.run(
        [str(PYTHON), "-m", "lm_eval", "run", *arguments], capture_output=True, text=True, timeout=900, cwd=tmp_path,
        env=os.environ | offline,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    (file,) = (tmp_path / "results").rglob("results_*.json")
    result = json.loads(file.read_text())["results"]["embedded"]
    theirs = result["exact_match,boxed_after_thinking"]
    print(f"lm_eval {100 * theirs:.2f}, this project {100 * summary['avg']:.2f} ± {100 * summary['avg_se']:.2f}")
    assert 0.1 < summary["avg"] < 0.95, "an accuracy that a wrong decoding would change"
    # Both draw their samples independently, from the same problems, so that both have this standard error.
    assert abs(theirs - summary["avg"]) < 3 * 2**0.5 * summary["avg_se"]
