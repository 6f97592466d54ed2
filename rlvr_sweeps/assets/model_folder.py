"""Check that a local model folder has a config.json, a tokenizer and a chat template, which opens <think> where configured."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlvr_sweeps.assets.locations import EMBEDDED, locate
from rlvr_sweeps.errors import Refused

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
THINK = "<think>"
CONVERSATION = [{"role": "user", "content": "1 + 1"}]


def refuse_unfit(cfgs: Iterable[Mapping[str, Any]]) -> None:
    """Raise Refused for a local model that cannot be trained as configured. A hub model is checked when a run loads it."""
    models = {(cfg["model"]["path"], cfg["model"]["opens_think"]): cfg for cfg in cfgs}
    for cfg in models.values():
        refuse_unfit_model(cfg)


def refuse_unfit_model(cfg: Mapping[str, Any]) -> None:
    folder = Path(locate(cfg["model"]["path"], cfg["model"]["revision"]))
    if cfg["model"]["path"].startswith(EMBEDDED) or not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        raise Refused(f"{folder} has no config.json. Save the model there with transformers' save_pretrained.")
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise Refused(
            f"{folder} has no tokenizer, that is none of {', '.join(TOKENIZER_FILES)}. Save the model's tokenizer there: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)."
        )
    template = chat_template(folder)
    if template is None:
        raise Refused(missing_template_message(str(folder)))
    if cfg["model"]["opens_think"] and (prompt := render_prompt(template, folder)) is not None:
        refuse_prompt_without_think(prompt, str(folder))


def thinking_warning(cfg: Mapping[str, Any]) -> str | None:
    """Return a warning where only an answer after </think> counts but the model's template opens no <think>, else None.

    A hub model's template is read where the hub's cache has it.
    """
    if cfg["grading"] != "boxed_after_thinking" or cfg["model"]["opens_think"]:
        return None
    folder = template_folder(cfg)
    template = chat_template(folder) if folder else None
    prompt = render_prompt(template, folder) if folder and template else None
    if prompt is None or prompt.rstrip().endswith(THINK):
        return None
    return (
        f"The chat template of {cfg['model']['name']} does not open {THINK}, but grading=boxed_after_thinking accepts an "
        "answer only after </think>. For a model that does not write both: grading=boxed (a box anywhere) or grading=any."
    )


def template_folder(cfg: Mapping[str, Any]) -> Path | None:
    """Return the folder of the model's tokenizer, for a hub model in the hub's cache; None where it is not on this machine."""
    path, revision = cfg["model"]["path"], cfg["model"]["revision"]
    if (folder := Path(locate(path, revision))).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache  # takes a tenth of a second

    for name in ("chat_template.jinja", "tokenizer_config.json"):
        with suppress(ValueError):  # HFValidationError: the path is no hub id
            if isinstance(file := try_to_load_from_cache(path, name, revision=revision), str):
                return Path(file).parent
    return None


def missing_template_message(model: str) -> str:
    """Return the error message for a model without a chat template."""
    return (
        f"{model} has no chat template, so that prompts cannot be built. Use a model that has one, or put a "
        "chat_template.jinja into its folder."
    )


def refuse_prompt_without_think(prompt: str, model: str) -> None:
    """Raise Refused if a prompt does not end in <think>."""
    if not prompt.rstrip().endswith(THINK):
        raise Refused(
            f"The chat template of {model} ends a prompt in {prompt[-30:]!r}, but model.opens_think=true requires that it ends "
            f"in {THINK}. The templates of R1-distilled models do so since February 2025: download the current "
            "tokenizer_config.json. For a model that writes <think> itself, set model.opens_think=false."
        )


def chat_template(folder: Path) -> str | None:
    """Return the chat template from the folder's files, the default one of several; None where there is none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    settings = folder / "tokenizer_config.json"
    template: Any = json.loads(settings.read_text()).get("chat_template") if settings.exists() else None
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return None if template is None else str(template)


def render_prompt(template: str, folder: Path) -> str | None:
    """Return the prompt of one question; None where the template needs functions of transformers (a run then checks it)."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text()) if settings.exists() else {}
    tokens = {name: token_text(values[name]) for name in ("bos_token", "eos_token", "pad_token") if values.get(name)}
    try:
        return environment.from_string(template).render(messages=CONVERSATION, add_generation_prompt=True, **tokens)
    except TemplateError:
        return None


def token_text(token: Any) -> str:
    """Return the text of a special token, which tokenizer_config.json states as a string or an object."""
    return str(token["content"] if isinstance(token, dict) else token)
