"""Test the report's parts: runs in every state, differences, cost, deviations from the paper, the manifest."""

import json
from types import SimpleNamespace

import pytest

from rlvr_sweeps.cli import main as rlvr
from rlvr_sweeps.files import read_json, write_json
from rlvr_sweeps.launching.status import settings_of
from rlvr_sweeps.reporting.differences import compare
from rlvr_sweeps.reporting.differences.baselines import baseline_index, families
from rlvr_sweeps.reporting.frames.settings import named_settings
from rlvr_sweeps.reporting.labels import label, report_rows
from rlvr_sweeps.reporting.page.costs import cost_rows, time_of_attempts
from rlvr_sweeps.reporting.page.deviations import ABSENT, choices, deviations, settings, value_of
from rlvr_sweeps.reporting.page.main_table import constant, dial, varying
from rlvr_sweeps.reporting.page.manifest import launches, manifest
from rlvr_sweeps.reporting.page.report import write_report
from rlvr_sweeps.reporting.rows import Cell, cells
from rlvr_sweeps.runs.reading import find_runs


def rows_in(tmp_path):
    return cells(find_runs(tmp_path / "runs"))


def labels_of(rows):
    return [row.label for row in report_rows(rows)]


def page_of(tmp_path):
    return write_report(tmp_path / "runs", tmp_path / "report.html").page.read_text()


def test_every_state_is_shown(evaluated, prepared, tmp_path):
    """Test a run with one benchmark and one with two, and a failed, an edited and a running one."""
    evaluated("peft=lora")
    evaluated("peft=dora", "~benchmark.tier2")
    failed, _ = prepared("peft=pissa")
    write_json(failed.failure_path, {"stage": "train", "error": "ValueError: <b>bad</b>\nmore", "traceback": ""})
    failed.log_path("train").parent.mkdir()
    failed.log_path("train").write_text("".join(f"<i>line {number}</i>\n" for number in range(40)))
    edited, _ = prepared("peft=rslora")
    edited.config_path.write_text(edited.config_path.read_text().replace("lr: 0.001", "lr: 0.1"))
    running, _ = prepared("peft=vera")
    running.metrics_path.write_text('{"step": 7, "reward_mean": 0.5}\n')
    with running.claim():
        page = page_of(tmp_path)
    assert "were not all evaluated in the same way" in page
    assert "ValueError: &lt;b&gt;bad&lt;/b&gt; (step 0 of 60)" in page and "<b>bad" not in page
    assert "&lt;i&gt;line 25&lt;/i&gt;" in page and "line 24&lt;" not in page
    assert "it was edited, and the results beside it belong to the old values" in page
    assert "step 7 of 60" in page
    assert page.count("<tr title=") == 2


def test_rows_of_several_models_name_their_model(evaluated, tmp_path, capsys):
    evaluated("peft=lora")
    assert '<th class="text">Model</th>' not in page_of(tmp_path)
    evaluated("peft=lora", "model=tiny_1")
    page = page_of(tmp_path)
    assert '<th class="text">Model</th>' in page and '<td class="text">tiny_1</td><td class="text">LoRA</td>' in page
    capsys.readouterr()
    rlvr(["report", str(tmp_path / "runs")])
    header, *rows = capsys.readouterr().out.splitlines()[1:4]
    assert header.split()[:3] == ["model", "method", "objective"]
    assert [row.split()[:3] for row in rows] == [["tiny", "LoRA", "DAPO"], ["tiny_1", "LoRA", "DAPO"]]


def test_the_baseline_is_the_centre_of_the_sweep(point):
    """Test that the baseline is the LoRA row that differs least from all rows, as in Table 5."""
    configurations = [
        point(*dials) for dials in (("rank=4",), ("lr=1e-4",), (), ("algo=grpo",), ("peft=dora",), ("peft=none",))
    ]
    rows = [Cell(cfg, [{}], [SimpleNamespace(name=str(index))]) for index, cfg in enumerate(configurations)]
    assert baseline_index(rows, range(6)) == 2
    assert baseline_index(rows, [3, 4, 5]) == 3  # the only LoRA row
    assert baseline_index(rows, [4, 5]) == 4  # the trained row
    assert baseline_index(rows, [5]) == 5


def test_the_modules_are_in_labels_and_in_the_table_where_they_differ(point):
    configurations = [point(*dials) for dials in (("modules=mlp",), ("modules=attention", "rank=4"), (), ("peft=ia3",))]
    cells = [Cell(cfg, [{}], [SimpleNamespace(name=str(index))]) for index, cfg in enumerate(configurations)]
    names = [label(cell, cells) for cell in cells]
    assert names == ["LoRA modules mlp r 8", "LoRA modules attention r 4", "LoRA modules all r 8", "IA3"]
    assert varying(cells) == ["modules"] and [dial(cell, "modules") for cell in cells] == ["mlp", "attention", "all", "-"]
    assert constant(cells[2:]) == "" and constant(cells[:1]) == "modules mlp"
    assert [settings_of(cfg)["modules"] for cfg in configurations] == ["mlp", "attention", "all", None]
    assert [named_settings(cfg)["modules"] for cfg in configurations] == ["mlp", "attention", "all", None]


def test_differences_are_those_of_compare_and_p_needs_seeds(evaluated, tmp_path):
    lora = [evaluated("peft=lora", f"seed={seed}", right=right) for seed, right in ((1, 1), (2, 2), (3, 1))]
    dora = [evaluated("peft=dora", f"seed={seed}", right=right) for seed, right in ((1, 4), (2, 3), (3, 4))]
    evaluated("peft=rslora")
    evaluated("peft=none")
    (family,), left_out = families(rows_in(tmp_path))
    rows = dict(zip(labels_of(rows_in(tmp_path)), range(4), strict=True))
    assert family.baseline == rows["LoRA"] and left_out == []
    differences = {label: family.differences[index]["overall"] for label, index in rows.items() if index != family.baseline}
    arms = [",".join(sorted(run.name for run in arm)) for arm in (lora, dora)]
    *_, overall = compare.compare(arms, tmp_path / "runs")
    for key in ("difference", "low", "high", "p"):
        assert differences["DoRA"][key] == overall[key]
    assert differences["rsLoRA"]["p_holm"] is None and not differences["rsLoRA"]["star"]  # one seed of a trained method
    assert differences["Base"]["p_holm"] >= differences["Base"]["p"]  # an untrained model has no seed that could differ
    assert differences["DoRA"]["star"] == (differences["DoRA"]["p_holm"] < 0.05)
    lora[0].right_path.unlink()
    assert "rlvr regrade" in families(rows_in(tmp_path))[1][0]


@pytest.mark.parametrize(("seeds", "warned"), [([1], True), ([1, 2], False)], ids=["one seed", "two seeds"])
def test_one_seed_of_a_trained_side_is_named_and_base_is_no_such_side(evaluated, tmp_path, capsys, seeds, warned):
    base = evaluated("peft=none")
    lora = [evaluated("peft=lora", f"seed={seed}").name for seed in seeds]
    rlvr(["compare", base.name, ",".join(lora), "--runs-dir", str(tmp_path / "runs")])
    printed = capsys.readouterr().out
    assert ("One training seed on a side" in printed) == warned and ("and training seeds" in printed) == (not warned)


def test_every_stated_setting_is_in_some_configuration(composer):
    """Test that no key of paper/settings.yaml is misspelt."""
    models = [
        composer.point([f"model={model}", "rollout=hf", "peft=lora_plus"]).cfg for model in ("r1_qwen_1_5b", "r1_qwen_7b")
    ]
    for setting in settings():
        assert any(value_of(cfg, setting["key"]) is not ABSENT for cfg in models), setting["key"]


def test_the_papers_runs_deviate_only_in_sampler_and_processes(composer):
    def deviating(*overrides):
        cfg = composer.point(["rollout=hf", *overrides]).cfg
        return {entry.setting: entry for entry in deviations([Cell(cfg, [{}])], ["row"])}

    expected = {"sampler", "processes"}
    for model in ("r1_qwen_1_5b", "r1_qwen_7b"):
        assert deviating(f"model={model}").keys() == expected
    paper = "model=r1_qwen_1_5b"
    assert deviating(paper, "rank=8", "lr=5e-6").keys() == expected  # Table 5 has both
    assert deviating(paper, "rank=4")["rank"].value == "4"
    assert deviating(paper, "peft=full", "distributed=zero2_offload", "model.autocast_bf16=false").keys() == {"sampler"}
    assert deviating(paper, "peft=ia3")["adapted modules"].value == "k_proj, v_proj, down_proj"
    assert deviating(paper, "evaluation=released")["evaluation temperature"].paper == "0.6"
    assert deviating(paper, "algo=dapo_released")["objective"].value == "dapo_released"
    assert deviating(paper, "peft=none").keys() == set()


def test_deviations_name_their_rows_and_unstated_settings_are_listed(point):
    rows = [
        Cell(point("peft=lora", *dials), [{"seed": 1}, {"seed": 2}]) for dials in (("lr=1e-4",), ("lr=1e-3",), ("lr=1e-5",))
    ]
    rates = [entry for entry in deviations(rows, ["a", "b", "c"]) if entry.setting == "learning rate"]
    assert [(entry.value, entry.rows, entry.paper) for entry in rates] == [
        ("0.0001", ("a",), "1e-5"), ("0.001", ("b",), "1e-5"),
    ]  # fmt: skip
    unstated = {entry.setting: entry for entry in choices(rows, ["a", "b", "c"])}
    assert unstated["weight decay"].value == "0" and unstated["weight decay"].rows == () and "LoRA+ ratio λ" not in unstated
    assert unstated["training seed"].rows == ("a", "b", "c")


def test_the_manifest_names_runs_that_differ_and_their_commands(evaluated, tmp_path):
    runs = [evaluated("peft=lora", "seed=1"), evaluated("peft=lora", "seed=2")]
    for run, version in zip(runs, ("1.0", "1.1"), strict=True):
        record = {"surroundings": {"commit": "abc", "host": "h", "torch": version}, "data": {"problems": 5}, "model_key": "k"}
        write_json(run.record_path, read_json(run.record_path) | record)
    values = {(entry.section, entry.name): entry.values for entry in manifest(rows_in(tmp_path))}
    assert values["Code", "commit"] == [("abc", sorted(run.name for run in runs))]
    assert sorted(values["Code", "packages"]) == [("torch 1.0", [runs[0].name]), ("torch 1.1", [runs[1].name])]
    golds = read_json(runs[0].right_path)["tier1"]["golds"]
    (tier1, _) = values["Evaluation", "tier1"][0]
    assert golds in tier1 and "3 problems, k = 4" in tier1
    for name, folder in (("first", "runs"), ("second", "different")):
        write_json(
            tmp_path / "launches" / name / "launch.json",
            {"command": ["/x/launch.py", "-m", "peft=a,b", "x='c d'"], "started": 0.0, "outcome": "done",
             "points": [{"run": str(tmp_path / folder / run.name)} for run in runs]},
        )  # fmt: skip
    (launch,) = launches(tmp_path / "runs", runs)
    assert launch.command == """python launch.py -m peft=a,b 'x='"'"'c d'"'"''""" and (launch.runs, launch.outcome) == (
        2,
        "done",
    )


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("start", 0), ("train", 1), ("done", 10)], (10, 0, 1)),
        ([("start", 0), ("stopped", 4), ("start", 100), ("done", 106)], (10, 0, 2)),
        ([("start", 0), ("start", 50), ("done", 60)], (10, 1, 2)),  # the first was killed
        ([("start", 0)], (0, 1, 1)),
        ([("cancelled", 0), ("done", 3)], (0, 0, 0)),
    ],
)
def test_time_is_between_starts_and_their_ends(events, expected):
    assert time_of_attempts([{"event": event, "time": time} for event, time in events]) == expected


def test_cost_sums_over_seeds_and_dashes_where_numbers_are_missing(evaluated, tmp_path):
    for seed in (1, 2):
        run = evaluated("peft=lora", f"seed={seed}")
        events = [{"event": "start", "time": 0}, {"event": "done", "time": 3600}]
        run.attempts_path.write_text("".join(json.dumps(event) + "\n" for event in events))
        step = {"completion_tokens_mean": 10.0, "sampled_groups": 2}
        step |= {"rollout_s": 5.0, "reward_s": 1.0, "logprobs_s": 3.0, "update_s": 4.0}
        run.metrics_path.write_text(json.dumps(step | {"step": 1, "reward_mean": 0.5}) + "\n")
        record = {"built": {"processes": 4}, "asked": {}, "surroundings": {"device": "NVIDIA"}}
        write_json(run.record_path, read_json(run.record_path) | record)
    evaluated("peft=none").metrics_path.unlink(missing_ok=True)
    rows = rows_in(tmp_path)
    unit, lines = cost_rows(rows, labels_of(rows))
    by_label = {line.label: line for line in lines}
    assert unit == "GPU-hours" and by_label["LoRA"].hours == "8"
    assert by_label["LoRA"].trained_tokens == str(2 * 10 * 2 * rows[1].cfg["rollout"]["group_size"])
    assert by_label["LoRA"].evaluated_tokens == str(2 * 24 * 5)
    assert by_label["LoRA"].phases == ["10", "2", "6", "8", "2", f"{2 * 3600 - 28:,}"]
    assert by_label["Base"].trained_tokens == "-" and by_label["Base"].phases[:4] == ["-", "-", "-", "-"]
    assert by_label["All"].hours == "8"
