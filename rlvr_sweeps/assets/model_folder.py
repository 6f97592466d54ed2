"""What a model's folder must hold, read from its files: a tokenizer, and a chat template that opens <think> where asked."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.locations import EMBEDDED, locate
from rlvr_sweeps.errors import Refused

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
THINK = "<think>"
CONVERSATION = [{"role": "user", "content": "1 + 1"}]


def refuse_unfit(cfgs: Iterable[Mapping[str, Any]]) -> None:
    """Raise Refused for a local model that cannot be trained as asked; a hub model is judged when a run reads it."""
    models = {(cfg["model"]["path"], cfg["model"]["opens_think"]): cfg for cfg in cfgs}
    for cfg in models.values():
        refuse_unfit_folder(cfg)


def refuse_unfit_folder(cfg: Mapping[str, Any]) -> None:
    place = Path(locate(cfg["model"]["path"], cfg["model"]["revision"]))
    if cfg["model"]["path"].startswith(EMBEDDED) or not place.is_dir():
        return
    if not (place / "config.json").exists():
        raise Refused(f"{place} holds no config.json: it is no model folder. Write one with transformers' save_pretrained.")
    if not any((place / name).exists() for name in TOKENIZER_FILES):
        raise Refused(
            f"{place} holds no tokenizer ({', '.join(TOKENIZER_FILES)}). Put the model's own there: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)."
        )
    template = chat_template(place)
    if template is None:
        raise Refused(without_template(str(place)))
    if cfg["model"]["opens_think"] and (prompt := rendered(template, place)) is not None:
        refuse_closed(prompt, str(place))


def without_template(place: str) -> str:
    return (
        f"{place} has no chat template: prompts cannot be made. Use a model that brings one, or put a chat_template.jinja "
        "into its folder."
    )


def refuse_closed(prompt: str, place: str) -> None:
    """Raise Refused where a prompt, as the chat template ends it, does not open <think>."""
    if not prompt.rstrip().endswith(THINK):
        raise Refused(
            f"The chat template of {place} ends a prompt in {prompt[-30:]!r}, but model.opens_think says that it opens "
            f"{THINK}. R1-distilled models do since February 2025: take their present tokenizer_config.json; or, for a model "
            "that opens it by itself, set model.opens_think=false."
        )


def chat_template(place: Path) -> str | None:
    """The template as the folder's files state it, the default one of several."""
    file = place / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    settings = place / "tokenizer_config.json"
    stated: Any = json.loads(settings.read_text()).get("chat_template") if settings.exists() else None
    if isinstance(stated, list):
        return next((each["template"] for each in stated if each["name"] == "default"), None)
    return None if stated is None else str(stated)


def rendered(template: str, place: Path) -> str | None:
    """A prompt of one question; None where the template needs more of transformers than is here: the run then judges."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    settings = place / "tokenizer_config.json"
    stated = json.loads(settings.read_text()) if settings.exists() else {}
    tokens = {name: text_of(stated[name]) for name in ("bos_token", "eos_token", "pad_token") if stated.get(name)}
    try:
        return environment.from_string(template).render(messages=CONVERSATION, add_generation_prompt=True, **tokens)
    except TemplateError:
        return None


def text_of(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
