"""Test lr=auto with real trainings: rates are added until the best one is inside or the bound is reached."""

import json

import pytest

HELD_OUT_PROBLEMS = 4


@pytest.mark.exhaustive
def test_a_launch_adds_rates_at_an_edge(launch, twelve):
    short = ("signal_check=off", "batch_size=8", "rollout.group_size=4", "rollout.max_tokens=24", "steps=2", "analysis=none")
    problems = (f"data.path={twelve}", "data.problems=null", f"data.holdout={HELD_OUT_PROBLEMS}")
    grid = ("-m", "peft=lora,ia3", "lr=auto:4", "model=tiny", *short, *problems)
    output = launch(*grid).stdout
    assert "6 runs: 6 new; 6 to do." in output and "the best lr is" in output
    rates: dict[str, list[float]] = {}
    held_out: dict[str, list[float]] = {}
    for path in sorted(launch.runs.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        rates.setdefault(summary["peft"], []).append(summary["lr"])
        held_out.setdefault(summary["peft"], []).append(summary["heldout/avg"])
    assert set(rates) == {"lora", "ia3"}
    for name, values in rates.items():
        by_rate = dict(zip(values, held_out[name], strict=True))
        best = {rate for rate, score in by_rate.items() if score == max(by_rate.values())}
        assert {3e-4, 1e-3, 3e-3} <= set(by_rate)
        assert len(by_rate) == 4 or (best - {min(by_rate), max(by_rate)} and len(best) < 3)
    repeated = launch(*grid).stdout
    assert "started" not in repeated and " new" not in repeated and "the best lr is" in repeated
    assert "runs are missing" in launch(*grid, "seed=7", "plan=true").stdout
