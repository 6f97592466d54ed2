"""Write a finished run as a folder for the hub: the merged model or its adapter, tokenizer, generation config, model card.

Every file of weights is compared with its recorded SHA-256 after it was copied. The folder is made under a temporary name, so
that an export that fails leaves nothing behind.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import is_trained
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import read_object, write_json, write_text
from rlvr_sweeps.reporting.hub.card import model_card, on_the_hub
from rlvr_sweeps.runs import checksums, examination
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import status_of

CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", ADAPTER_CONFIG)  # in merged/ and adapter/; other files: the tokenizer's
# Values of PEFT's init_lora_weights that leave the base model's weights as they are.
KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Files of an earlier export, which --force removes: PEFT would load an adapter that lies beside a merged model.
REPLACED = (
    *WEIGHTS, "config.json", "generation_config.json", "chat_template.jinja", "tokenizer*", "vocab.*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", CARD,
)  # fmt: skip


@dataclass(frozen=True)
class Export:
    """What an export wrote: the names of the files, and notes on what the model card lacks."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export(run: Run, folder: Path, adapter: bool = False, force: bool = False) -> Export:
    """Write a run's merged model, or with `adapter` its adapter, as a folder for the hub; return what was written.

    `force`: also into a folder that is not empty; files of an earlier export are replaced, all others stay. Raises Refused for
    a run that is not finished, is damaged or trains nothing, and for an adapter that is not the policy by itself.
    """
    cfg = refuse_unfit(run, adapter)
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file. Give a new or an empty folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise Refused(
            f"{folder} is not empty. Give a new folder, or --force, which replaces the files of an earlier export in it and "
            "leaves all others."
        )
    card, notes = model_card(run, cfg, adapter)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.export")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_files(run, cfg, temporary, adapter)
        write_text(temporary / CARD, card)
        files = sorted(path.name for path in temporary.iterdir())
        move_files(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(folder.absolute(), tuple(files), tuple(notes))


def refuse_unfit(run: Run, adapter: bool) -> Resolved:
    """Return the configuration of a run that can be exported; raise Refused with the reason for any other."""
    status = status_of(run)
    if status.cfg is None or status.state == "unreadable":
        raise Refused(status.error)
    if not is_trained(status.cfg):
        raise Refused(f"{run.name} is the untrained base model, which is published already. Export a trained run.")
    if not status.evaluated:
        raise Refused(
            f"{run.name} is not finished (state: {status.state}): an export needs the trained model and its scores. Launch it "
            "again with its own command, then export it."
        )
    if adapter and (reason := adapter_refusal(status.cfg)):
        raise Refused(f"{run.name} has no adapter that can be published: {reason}. Export the merged model: without --adapter.")
    not_exported = (run.merged_path if adapter else run.adapter_path, run.start_path)
    ignored = {f"{not_exported[0].name}/", not_exported[1].name}
    for verdict in examination.damaged(examination.examine(run)):
        if verdict.file not in ignored:
            raise Refused(
                f"{run.name} is damaged and is not exported: {verdict.file}: {verdict.why}. To see what is lost and what can "
                f"be saved: rlvr doctor {run.path}"
            )
    return status.cfg


def adapter_refusal(cfg: Resolved) -> str | None:
    """Return why the published base model with the run's adapter is not exactly the policy; None where it is.

    An adapter that starts from the base's own singular values changes the base's weights, which its file does not hold.
    """
    peft = cfg["peft"]
    if peft["trains"] != "adapter":
        return f"peft={peft['name']} trains the model's own weights"
    own_start = peft["initialisation"] in ("principal", "minor", "residual")
    start = peft["config"].get("init_lora_weights", True)
    if own_start or peft["not_the_base_in_training"] or start not in KEEPS_BASE:
        return (
            f"peft={peft['name']} starts from the base model's own weights and moves a part of them into the adapter, so that "
            "the adapter on the published base is another model"
        )
    if peft["config"]["peft_type"] == "PSOFT":
        return (
            f"peft={peft['name']} does not store the singular vectors that it rotates, and PEFT computes them again, on "
            "another machine with other signs"
        )
    return None


def write_files(run: Run, cfg: Resolved, target: Path, adapter: bool) -> None:
    """Write the weights, with the config that belongs to them, the tokenizer and the generation config into `target`."""
    source = run.adapter_path if adapter else run.merged_path
    recorded = read_object(source / checksums.NAME)
    if not source.is_dir():
        raise Refused(f"{run.name} has no {source.name}/. Export the merged model: without --adapter.")
    for path in checksums.files_of(source):
        if path.name != CARD:
            copy_verified(path, target / path.name, (recorded or {}).get(path.name))
    if adapter:
        for path in checksums.files_of(run.merged_path):
            if path.name != "config.json" and not any(path.match(pattern) for pattern in WEIGHTS):
                shutil.copyfile(path, target / path.name)
        write_json(target / ADAPTER_CONFIG, adapter_config(read_object(target / ADAPTER_CONFIG) or {}, cfg))
    else:  # training with recomputed activations switches the cache off, and decoding would be slow
        write_json(target / "config.json", (read_object(target / "config.json") or {}) | {"use_cache": True})
    stated = read_object(target / "generation_config.json") or {}
    write_json(target / "generation_config.json", stated | decoding(cfg))


def copy_verified(source: Path, copy: Path, digest: str | None) -> None:
    """Copy a file; raise Refused where the copy's SHA-256 is not the recorded one (None: not recorded)."""
    shutil.copyfile(source, copy)
    if digest and checksums.sha256_of(copy) != digest:
        raise Refused(f"{copy} differs from {source} after the copy: the disk returns other bytes. Export to another disk.")


def decoding(cfg: Resolved) -> dict[str, Any]:
    """Return the generation config's keys for the decoding with which the run was evaluated."""
    stated = cfg["evaluation"]
    return {
        "do_sample": True, "temperature": stated["temperature"], "top_p": stated["top_p"], "top_k": 0,
        "max_new_tokens": stated["max_tokens"],
    }  # fmt: skip


def adapter_config(stated: dict[str, Any], cfg: Resolved) -> dict[str, Any]:
    """Return PEFT's config with the base's hub id and commit, and without a path of this machine."""
    model = cfg["model"]
    hub = on_the_hub(model["path"])
    return stated | {"base_model_name_or_path": model["path"] if hub else None, "revision": model["revision"] if hub else None}


def move_files(temporary: Path, folder: Path) -> None:
    """Move the new files into `folder`, after removing those of an earlier export from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in REPLACED:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()
    for path in temporary.iterdir():
        path.replace(folder / path.name)


def as_json(exported: Export) -> str:
    """Return what an export wrote as JSON."""
    return json.dumps({"folder": str(exported.folder), "files": list(exported.files), "notes": list(exported.notes)}, indent=1)
