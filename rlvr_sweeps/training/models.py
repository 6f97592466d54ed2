"""Load a base model, its tokenizer and its published weights, with transformers only: evaluation imports no TRL and no PEFT."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlvr_sweeps.assets import model_folder
from rlvr_sweeps.assets.locations import model_location, weights_folder
from rlvr_sweeps.assets.tokenizer_check import refuse_other_tokenizer
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused


def load_tokenizer(cfg: Resolved) -> Any:
    """Return the base model's tokenizer.

    Raises Refused where it is not the tokenizer of the model's tokenizer.json, where it has no chat template, or where the
    template does not open <think> although the model is configured to begin its answer there.
    """
    path, revision = model_location(cfg)
    tokenizer = AutoTokenizer.from_pretrained(path, **revision)
    if file := tokenizer_file(path, revision.get("revision")):
        refuse_other_tokenizer(tokenizer, file, path)
    if tokenizer.chat_template is None:
        raise Refused(model_folder.missing_template_message(path))
    if cfg["model"]["opens_think"]:
        prompt = tokenizer.apply_chat_template(model_folder.CONVERSATION, add_generation_prompt=True, tokenize=False)
        model_folder.refuse_prompt_without_think(prompt, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_file(path: str, revision: str | None) -> Path | None:
    """Return the tokenizer.json of a local folder, or of a hub model in the hub's cache; None where it has none."""
    if Path(path).is_dir():
        file: Any = Path(path) / "tokenizer.json"
        return file if file.exists() else None
    file = try_to_load_from_cache(path, "tokenizer.json", revision=revision)
    return Path(file) if isinstance(file, str) else None


def load_model(cfg: Resolved) -> tuple[Any, Any]:
    """Return the base model in float32 on this process's device, and its tokenizer."""
    tokenizer = load_tokenizer(cfg)
    path, revision = model_location(cfg)
    torch.manual_seed(cfg["seed"])  # weights that the checkpoint lacks are drawn; transformers.set_seed would import PEFT
    model = load_weights(path, own_device(), **revision)
    if cfg["model"].get("rounded_to_bf16"):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    # A published generation config (a repetition penalty, for example) would act on top of the configured decoding.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer


def own_device() -> torch.device:
    """Return this process's device: the GPU of its local rank, where torchrun started it, else the first; or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def own_gpu_gib() -> float | None:
    """Return the memory of this process's GPU in GiB; None without a GPU."""
    device = own_device()
    return torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else None


def load_weights(path: str, device: torch.device, **revision: Any) -> Any:
    """Return the causal language model of a folder or hub id, in float32, its weights read straight onto `device`.

    transformers maps the files into memory and converts one tensor after another, at most four at a time. The host therefore
    never holds the model of a process on a GPU, and holds that of a process on the CPU once (planning/host_memory.py).
    """
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map={"": device}, **revision)


class PublishedWeights:
    """The tensors of a folder with .safetensors files, by name; read one at a time, in float32, `rounded` to bfloat16."""

    def __init__(self, folder: Path, rounded: bool = False) -> None:
        self.rounded = rounded
        self.file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as content:
                self.file_of |= dict.fromkeys(content.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.file_of[name], framework="pt") as content:
            tensor = content.get_tensor(name)
        return tensor.bfloat16().float() if self.rounded else tensor.float()


def published_weights(cfg: Resolved) -> PublishedWeights:
    """Return the weights with which a run of this configuration begins, W0."""
    return PublishedWeights(weights_folder(cfg), cfg["model"].get("rounded_to_bf16", False))
