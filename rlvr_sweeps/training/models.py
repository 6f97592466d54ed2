"""TODO: rlvr_sweeps.training.models."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

from rlvr_sweeps.assets import model_folder
from rlvr_sweeps.assets.locations import model_location
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.errors import Refused


def load_tokenizer(cfg: Resolved) -> Any:
    """The model's tokenizer; Refused where it has no chat template, or one that does not open <think> as it should."""
    place, revision = model_location(cfg)
    tokenizer = AutoTokenizer.from_pretrained(place, **revision)
    if tokenizer.chat_template is None:
        raise Refused(model_folder.missing_template_message(place))
    if cfg["model"]["opens_think"]:
        prompt = tokenizer.apply_chat_template(model_folder.CONVERSATION, add_generation_prompt=True, tokenize=False)
        model_folder.refuse_prompt_without_think(prompt, place)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(cfg: Resolved) -> tuple[Any, Any]:
    """The base in float32, and its tokenizer."""
    tokenizer = load_tokenizer(cfg)
    place, revision = model_location(cfg)
    set_seed(cfg["seed"])
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **revision)
    # A hub model's own decoding (a repetition penalty, say) would act on top of the one that is configured.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer
