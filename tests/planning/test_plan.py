"""Test the plan of a launch: distinct runs, their states, and the action of the launch on each."""

import io

from rich.console import Console

from rlvr_sweeps.config.compose import Point
from rlvr_sweeps.files import write_json
from rlvr_sweeps.planning.plan import make_plan, show


def test_the_plan_has_the_state_and_action_of_each_run(composer, tmp_path):
    points = [
        composer.point([f"peft={peft}", f"algo={algo}", f"runs_dir={tmp_path}", "analysis=none"])
        for peft in ("none", "lora", "dora")
        for algo in ("dapo", "grpo")
    ]
    plan = make_plan(points, retry=False)
    assert [(item.state, item.point_count) for item in plan] == [("new", 2), *[("new", 1)] * 4]
    base, lora, failed, lost, _ = plan
    for item in (base, lora, failed, lost):
        item.run.prepare(item.cfg)
        item.run.log_event("start")
    for item in (base, lora):
        if item is lora:
            write_json(item.run.record_path, {})
            write_json(item.run.merged_path / "config.json", {})
            item.run.finish("train", item.cfg, 1.0)
        write_json(item.run.summary_path, {})
        item.run.finish("evaluate", item.cfg, 1.0)
    write_json(failed.run.failure_path, {"error": "x"})
    second_plan = make_plan(points, retry=False)
    assert [item.state for item in second_plan] == ["done", "done", "failed", "lost", "new"]
    assert [item.to_run for item in second_plan] == [False, False, False, True, True]
    assert [item.to_run for item in make_plan(points, retry=True)] == [False, False, True, True, True]
    text = io.StringIO()
    show(second_plan, Console(file=text, width=120))
    assert "5 runs: 1 new, 2 done, 1 failed, 1 lost; 2 to do." in text.getvalue()
    assert "in the grid 2 times" in text.getvalue() and "retry=true" in text.getvalue()


def test_the_modules_are_a_column_where_a_run_targets_a_part_of_them(composer, tmp_path):
    def printed(*runs):
        text, points = io.StringIO(), [composer.point([*overrides, f"runs_dir={tmp_path}"]) for overrides in runs]
        show(make_plan(points, retry=False), Console(file=text, width=140))
        return text.getvalue()

    part = printed(["modules=attention"], ["modules=mlp"], [], ["peft=ia3"])
    assert part.splitlines()[0].split()[:3] == ["run", "modules", "rank"]
    assert [line.split()[1] for line in part.splitlines()[1:5]] == ["attention", "mlp", "all", "-"]
    assert "modules" not in printed([], ["peft=ia3"])


def test_different_overrides_of_the_same_values_are_one_run(composer):
    spellings = (["alpha=16"], [], ["rank=8", "peft=lora"])
    assert len(make_plan([composer.point(overrides) for overrides in spellings], retry=False)) == 1
    assert isinstance(composer.point([]), Point)
