"""Test `rlvr export`: the folder holds the run's policy, the model card is made from the run, and unfit runs are refused."""

import json
import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlvr_sweeps.assets.locations import locate
from rlvr_sweeps.cli import main
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.evaluation.evaluate import evaluate
from rlvr_sweeps.files import write_json
from rlvr_sweeps.reporting.hub.card import on_the_hub, public_path
from rlvr_sweeps.reporting.hub.folder import adapter_config, adapter_refusal, export
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.training.models import load_model
from rlvr_sweeps.training.train import train
from tests.conftest import ROOT, SHORTEST, choices

BENCHMARKS = ("~benchmark.tier3", "~benchmark.tier4", "~benchmark.tier5", "benchmark.tier1.k=2", "benchmark.tier2.k=2")
SETTINGS = (*SHORTEST, *BENCHMARKS, "model=tiny", "analysis=none", "evaluation.max_tokens=24")


@pytest.fixture(scope="module")
def folder(composer, three, tmp_path_factory):
    """Train LoRA for five steps, and evaluate it and its base; return the folder of both runs, with a launch's record."""
    runs_dir = tmp_path_factory.mktemp("exported") / "runs"
    points = []
    for method in ("lora", "none"):
        overrides = [f"peft={method}", *SETTINGS, f"data.path={three}", "data.problems=null", f"runs_dir={runs_dir}"]
        cfg = composer.point(overrides).cfg
        run = Run.of(cfg)
        run.prepare(cfg)
        if is_trained(cfg):
            train(run, cfg)
            run.finish("train", cfg, 1.0)
        evaluate(run, cfg)
        run.finish("evaluate", cfg, 1.0)
        points.append({"overrides": [*overrides, "hydra.mode=MULTIRUN"], "run": str(run.path)})
    record = {"command": ["launch.py", "-m"], "started": 1.0, "points": points}
    write_json(runs_dir.parent / "launches" / "1" / "launch.json", record)
    return runs_dir


@pytest.fixture
def run(folder, tmp_path):
    """Return the trained run, in a copy of its folder that the test may damage."""
    shutil.copytree(folder.parent, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / "runs").glob("tiny-lora-*")
    return Run(path)


def logits(model, run):
    tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Start with 7 A:+8 mod 10."}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


@pytest.mark.slow
def test_transformers_loads_the_policy_and_the_decoding_of_the_scores(run, tmp_path):
    cfg = run.config()
    exported = export(run, tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(exported.folder)
    own = AutoModelForCausalLM.from_pretrained(run.merged_path)
    assert torch.equal(logits(model, run), logits(own, run))
    assert (logits(model, run) - logits(load_model(cfg)[0], run)).abs().max() > 1e-3, "training changed the base"
    assert model.config.use_cache
    assert not (exported.folder / "checksums.json").exists()
    loaded = GenerationConfig.from_pretrained(exported.folder)
    assert (loaded.do_sample, loaded.temperature, loaded.top_p, loaded.top_k) == (True, 0.6, 0.95, 0)
    assert loaded.max_new_tokens == cfg["evaluation"]["max_tokens"]
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.merged_path).chat_template


@pytest.mark.slow
def test_the_adapter_on_the_published_base_is_the_policy(run, tmp_path):
    model = run.config()["model"]
    exported = export(run, tmp_path / "hub", adapter=True)
    assert not list(exported.folder.glob("model*.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(locate(model["path"], model["revision"]))
    loaded = PeftModel.from_pretrained(base, exported.folder)
    policy = logits(AutoModelForCausalLM.from_pretrained(run.merged_path), run)
    torch.testing.assert_close(logits(loaded, run), policy, atol=1e-5, rtol=1e-5)
    assert str(ROOT) not in (exported.folder / "adapter_config.json").read_text(), "a path of this machine"


@pytest.mark.slow
def test_a_second_export_gives_the_same_bytes_and_one_kind_replaces_the_other(run, tmp_path, capsys):
    target = tmp_path / "hub"
    arguments = ["export", run.id, str(target), "--runs-dir", str(run.path.parent)]
    main([*arguments, "--json"])
    first = json.loads(capsys.readouterr().out)
    contents = {path.name: path.read_bytes() for path in target.iterdir()}
    assert sorted(contents) == first["files"]
    assert first["notes"] == []
    with pytest.raises(SystemExit, match="is not empty"):
        main(arguments)
    (target / "notes.txt").write_text("mine")
    main([*arguments, "--force"])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {**contents, "notes.txt": b"mine"}
    main([*arguments, "--force", "--adapter"])
    names = {path.name for path in target.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not names & {"model.safetensors", "config.json"}
    main([*arguments, "--force"])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {**contents, "notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_the_card_states_base_data_method_scores_and_a_command_that_gives_the_same_run(run, tmp_path, composer):
    export(run, tmp_path / "hub")
    text = (tmp_path / "hub" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    summary = json.loads(run.summary_path.read_text())
    assert facts["license"] == "apache-2.0"
    values = [result["metrics"][0]["value"] for result in facts["model-index"][0]["results"]]
    assert values == [round(100 * summary[f"{tier}/avg"], 2) for tier in ("tier1", "tier2")]
    base = json.loads(next(run.path.parent.glob("tiny-none-*/summary.json")).read_text())
    for row in (summary, base):
        assert f"{100 * row['tier2/avg']:.1f} ± {100 * row['tier2/avg_se']:.1f}" in body
    for part in ("embedded:tiny @ 2eebb7e4", "| method: r | 8 |", "| seed | 42 |", "torch 2", "commit"):
        assert part in body, part
    assert str(tmp_path) not in body.partition("## Repeat it")[0]
    (command,) = [line.strip() for line in body.splitlines() if line.startswith("    python launch.py ")]
    assert "runs_dir" not in command
    assert "hydra" not in command
    overrides = command.removeprefix("python launch.py ").replace("'", "").split()
    assert Run.of(composer.point(overrides).cfg).name == run.name


@pytest.mark.slow
def test_the_card_says_what_is_missing(run, tmp_path):
    shutil.rmtree(next(run.path.parent.glob("tiny-none-*")))
    shutil.rmtree(run.path.parent.parent / "launches")
    notes = export(run, tmp_path / "hub").notes
    assert len(notes) == 2
    assert "peft=none" in notes[0]
    assert "no record of its launch command" in notes[1]
    assert "The base model was not evaluated in the same way." in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.slow
def test_unfit_runs_are_refused_and_leave_nothing(run, tmp_path):
    def refusal(unfit, **options):
        with pytest.raises(Refused) as caught:
            export(unfit, tmp_path / "hub", **options)
        assert not (tmp_path / "hub").exists()
        return str(caught.value)

    (base,) = run.path.parent.glob("tiny-none-*")
    assert "untrained" in refusal(Run(base))
    weights = run.merged_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors: its SHA-256 differs" in refusal(run)
    content[-1] ^= 1
    weights.write_bytes(content)
    (run.adapter_path / "adapter_model.safetensors").write_bytes(b"")
    assert "adapter_model.safetensors" in refusal(run, adapter=True)
    export(run, tmp_path / "merged")  # the damaged adapter is no part of it
    summary = run.summary_path.read_text()
    run.summary_path.write_text("{")
    assert "summary.json is damaged" in refusal(run)
    run.summary_path.write_text(summary)
    run.stage_path("evaluate").unlink()
    assert "is not finished" in refusal(run)


@pytest.mark.parametrize("name", choices("peft"))
def test_an_adapter_is_refused_where_it_holds_a_part_of_the_base(name, point):
    """tests/training/test_methods.py loads every adapter that is not refused, and compares it with the policy."""
    refused = adapter_refusal(point(f"peft={name}"))
    starts = {"pissa", "pissa_niter_16", "milora", "milora_released", "olora"}
    if name in starts:
        assert "another model" in refused
    if name in ("lora", "dora", "vera", "ia3"):
        assert refused is None


def test_an_initialisation_given_on_the_command_line_is_refused_too(point):
    assert adapter_refusal(point("peft=lora", "+peft.config.init_lora_weights=olora"))


def test_only_hub_ids_are_published_as_such(point, tmp_path):
    assert on_the_hub("Qwen/Qwen3-0.6B")
    assert not any(map(on_the_hub, ("embedded:tiny", "package:a/b.gguf", "/a/b", "./a", str(tmp_path), "a/b.jsonl")))
    assert public_path(str(tmp_path)) == tmp_path.name
    assert public_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    cfg = point("model=qwen3_0_6b", "rollout=hf", "peft=lora")
    stated = adapter_config({"base_model_name_or_path": "/somewhere", "r": 8}, cfg)
    assert stated == {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "revision": cfg["model"]["revision"], "r": 8}
