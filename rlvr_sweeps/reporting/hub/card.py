"""Make the model card of an exported run from the run's files: base, data, method, scores, command, versions, licence."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException

from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.config.identity import run_id, run_name
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import dial_values, grading_of
from rlvr_sweeps.config.sweeps import key_of
from rlvr_sweeps.errors import Damaged, Refused
from rlvr_sweeps.files import Row, read_object
from rlvr_sweeps.paths import conf_dir
from rlvr_sweeps.reporting.labels import percent
from rlvr_sweeps.reporting.page.manifest import NOT_PACKAGES, decoding, launch_records, source
from rlvr_sweeps.reporting.rows import summary_of
from rlvr_sweeps.runs.directory import Run
from rlvr_sweeps.runs.reading import status_of

# Overrides of a launch that do not belong to one of its runs: where it runs, how it is watched, labels.
NOT_OF_THE_RUN = ("hydra", "cluster", "tracking", "site", "sweep", "runs_dir", "plan", "retry", "wait", "canary")
METHOD_KEYS = ("peft_type", "task_type", "target_modules")  # of peft.config; shown in words elsewhere in the card


def model_card(run: Run, cfg: Resolved, adapter: bool) -> tuple[str, list[str]]:
    """Return the text of README.md, and sentences on what it lacks."""
    summary = summary_of(run)
    base, notes = base_summary(run, cfg, summary)
    record = read_object(run.record_path) or {}
    licence = licence_of(cfg)
    if licence is None:
        notes.append(
            "The licence of the base model is not known, so the card names none. Set model.license=…, or add it to the card."
        )
    command = repeating_command(run, cfg)
    if command is None:
        notes.append("The run has no record of its launch command, so the card has none.")
    sections = [
        front_matter(run, cfg, summary, adapter, licence),
        f"# {run.name}",
        introduction(cfg, adapter),
        "## Use\n\n" + usage(cfg, adapter),
        "## Scores\n\n" + scores(cfg, summary, base),
        "## Training\n\n" + facts_table(training_facts(cfg, record, summary)),
        "## Repeat it\n\n" + (f"    {command}" if command else "The launch command of this run was not recorded."),
        "## Versions\n\n" + versions(record),
        "## Licence\n\n" + licence_text(licence),
    ]
    return "\n\n".join(sections) + "\n", notes


def front_matter(run: Run, cfg: Resolved, summary: Row, adapter: bool, licence: str | None) -> str:
    """Return the card's YAML block, with the keys that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    model, data = cfg["model"], cfg["data"]
    relation: dict[str, Any] = (
        {"base_model_relation": "adapter" if adapter else "finetune"} if on_the_hub(model["path"]) else {}
    )
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=public_path(stated["path"]), dataset_name=name,
            dataset_revision=stated["revision"], metric_type="accuracy", metric_name=f"Avg@{stated['k']}",
            metric_value=round(100 * summary[f"{name}/avg"], 2),
        )
        for name, stated in cfg["benchmark"].items()
    ]  # fmt: skip
    stated = ModelCardData(
        model_name=run.name,
        base_model=model["path"] if on_the_hub(model["path"]) else None,
        datasets=[data["path"]] if on_the_hub(data["path"]) else None,
        library_name="peft" if adapter else "transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=["rlvr", cfg["algo"]["name"], cfg["peft"]["name"]],
        eval_results=results,
        **relation,
    )
    return f"---\n{stated.to_yaml().strip()}\n---"


def introduction(cfg: Resolved, adapter: bool) -> str:
    """Return the sentence that says what the folder holds."""
    what = "The adapter" if adapter else "The merged model, in float32,"
    return (
        f"{what} of one training run with reinforcement learning from verifiable rewards: {cfg['peft']['title']} and the "
        f"objective {cfg['algo']['title']}, on {public_source(cfg['model'])}, {cfg['steps']:,} optimizer steps, seed "
        f"{cfg['seed']}. Made with rlvr_sweeps."
    )


def usage(cfg: Resolved, adapter: bool) -> str:
    """Return Python code that loads the folder."""
    model = cfg["model"]
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if adapter:
        revision = f', revision="{model["revision"]}"' if on_the_hub(model["path"]) and model["revision"] else ""
        base = model["path"] if on_the_hub(model["path"]) else "BASE"
        lines = [
            "from peft import PeftModel", *lines,
            f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision})',
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]  # fmt: skip
    else:
        lines.append('model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")')
    system = model["system_prompt"]
    prompt = f"Every prompt had the system message:\n\n> {system}" if system else "No prompt had a system message."
    return (
        "\n".join(f"    {line}".rstrip() for line in lines)
        + f"\n\nPrompts are made by the tokenizer's chat template. {prompt}\n\nThe answer is read by the rule "
        f"`{grading_of(cfg)}`; generation_config.json holds the decoding of the scores below."
    )


def scores(cfg: Resolved, summary: Row, base: Row | None) -> str:
    """Return the table of scores in percent with standard errors, and how they were measured."""
    lines = ["| benchmark | problems | k | Avg@k | base's Avg@k | Pass@k | base's Pass@k |", "|---|---|---|---|---|---|---|"]
    for name, stated in cfg["benchmark"].items():
        cells = [public_source(stated), f"{summary[f'{name}/n']:,}", str(stated["k"])]
        lines.append("| " + " | ".join([f"{name}: {cells[0]}", *cells[1:], *accuracies(summary, base, f"{name}/")]) + " |")
    if len(cfg["benchmark"]) > 1 and "avg" in summary:
        lines.append("| " + " | ".join(["mean", "", "", *accuracies(summary, base, "")]) + " |")
    stopped = summary.get("stopped_early")
    sentences = [
        "In percent; ± is the standard error from sampling each problem k times. One training seed does not show how much the "
        "result varies between seeds.",
        f"Decoding: {decoding(cfg['evaluation'])}, seed {cfg['evaluation']['seed']}; "
        f"engine {summary.get('engine', 'not recorded')}; {judged_by(summary)}.",
        "" if base else "The base model was not evaluated in the same way.",
        f"The training was stopped after {summary['steps_done']} steps: {stopped}." if stopped else "",
    ]
    return "\n".join(lines) + "\n\n" + " ".join(sentence for sentence in sentences if sentence)


def judged_by(summary: Row) -> str:
    """Return what judged the samples: the version of the grader, or reward functions, without the folders of their files."""
    if "verifier" in summary:
        return "verifier " + re.sub(r"\S*/", "", summary["verifier"])
    return f"grader version {summary['grader']}"


def accuracies(summary: Row, base: Row | None, prefix: str) -> list[str]:
    """Return Avg@k and Pass@k of the run and of the base model as text; a dash where there is no number."""
    entries = []
    for column in ("avg", "pass"):
        for row in (summary, base):
            key = f"{prefix}{column}"
            value, error = (row or {}).get(key), (row or {}).get(f"{key}_se")
            entries.append(percent(value) + (f" ± {percent(error)}" if error is not None else "") if row else "-")
    return entries


def base_summary(run: Run, cfg: Resolved, summary: Row) -> tuple[Row | None, list[str]]:
    """Return the summary of the base model's run in the same folder, and why there is none.

    It counts only where it was evaluated by the same request and graded by the same version of the grader.
    """
    base_cfg = {**cfg, "peft": {**cfg["peft"], "name": "none", "trains": "nothing"}}
    base = Run(run.path.parent / run_name(base_cfg))
    advice = f"The card has no scores of the base model: launch it with this run's command and peft=none (run {base.name})."
    try:
        if not base.config_path.exists() or not base.is_done("evaluate", base_cfg) or status_of(base).cfg is None:
            return None, [advice]
        row = summary_of(base)
    except Damaged as damage:
        return None, [f"The card has no scores of the base model: {damage}"]
    if row["grader"] != summary["grader"]:
        return None, [f"The card has no scores of the base model: another version graded it. Run: rlvr regrade {base.path}"]
    return row, []


def training_facts(cfg: Resolved, record: dict[str, Any], summary: Row) -> Iterator[tuple[str, str]]:
    """Yield the settings of the training as (name, value)."""
    yield "base model", public_source(cfg["model"])
    if record.get("model_key"):
        yield "hash of the base's weights", record["model_key"]
    yield "training problems", public_source(cfg["data"]) + f": {record.get('data', {}).get('problems', '-'):,}"
    yield "method", cfg["peft"]["title"]
    config = cfg["peft"]["config"]
    for key, value in config.items():
        if key not in METHOD_KEYS:
            yield f"method: {key}", str(value)
    if modules := config.get("target_modules"):
        yield "layers", ", ".join(modules) if not isinstance(modules, str) else modules
    if summary["parameters"]:
        yield "trained parameters", f"{summary['trainable']:,} of {summary['parameters']:,}"
    yield "objective", ", ".join([cfg["algo"]["title"], *(f"{key} {value}" for key, value in cfg["algo"]["trl"].items())])
    for name in ("lr", "batch_size", "steps", "seed"):
        yield {"lr": "learning rate", "batch_size": "completions per step"}.get(name, name), f"{dial_values(cfg)[name]:g}"
    yield "rollouts", decoding(cfg["rollout"]) + f", {cfg['rollout']['group_size']} a prompt"
    yield "precision", "products in bfloat16, weights in float32" if cfg["model"]["autocast_bf16"] else "float32"
    yield "answers", f"grading={grading_of(cfg)}"
    if "verifier" in summary:
        yield "verifier", judged_by(summary).removeprefix("verifier ")
    yield "run", f"{run_name(cfg)} (id {run_id(cfg)})"


def facts_table(facts: Iterator[tuple[str, str]]) -> str:
    """Return facts as a Markdown table."""
    rows = [f"| {name} | {value} |".replace("\n", " ") for name, value in facts]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def versions(record: dict[str, Any]) -> str:
    """Return the commit, the packages and the processor of the training."""
    surroundings = record.get("surroundings", {})
    packages = ", ".join(f"{name} {version}" for name, version in surroundings.items() if name not in NOT_PACKAGES and version)
    device = surroundings.get("device") or surroundings.get("machine") or "not recorded"
    return f"rlvr_sweeps at commit {surroundings.get('commit') or 'not recorded'}; {packages}. Device: {device}."


def licence_text(licence: str | None) -> str:
    """Return the sentence on the licence."""
    return f"The base model's licence: {licence}." if licence else "The base model's licence is not known to the tool."


def licence_of(cfg: Resolved) -> str | None:
    """Return the base model's licence; None where it is not known.

    It is `model.license`, for a run without this setting that of conf/model today, else what the model card in the base's
    folder states.
    """
    model = cfg["model"]
    if model.get("license"):
        return str(model["license"])
    today = composed_model(model["name"])
    if today and (today["path"], today["revision"]) == (model["path"], model["revision"]) and today["license"]:
        return str(today["license"])
    card = Path(model["path"]).expanduser() / "README.md"
    if not card.is_file():
        return None
    _, _, rest = card.read_text(errors="replace").partition("---\n")
    try:
        stated = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    return str(stated["license"]) if isinstance(stated, dict) and stated.get("license") else None


def composed_model(name: str) -> dict[str, Any] | None:
    """Return the `model` settings of conf/model/NAME.yaml; None where there is no such file, or it cannot be composed alone."""
    if not (conf_dir() / "model" / f"{name}.yaml").exists():
        return None
    try:
        return dict(offline_composer().point([f"model={name}", "rollout=hf"]).cfg["model"])
    except (Refused, HydraException):
        return None


def repeating_command(run: Run, cfg: Resolved) -> str | None:
    """Return a launch command of this run alone, from the record of a launch; None where no record gives this run's id."""
    composer = offline_composer()
    for record in launch_records(run.path.parent, [run]):
        for point in record["points"]:
            if Path(point["run"]).name != run.name:
                continue
            overrides = [text for text in point["overrides"] if belongs_to_run(text)]
            if composed_id(composer, overrides) == run_id(cfg):
                return "python launch.py " + shlex.join(overrides)
    return None


def belongs_to_run(override: str) -> bool:
    """Return whether an override of a launch belongs to its runs, and not to where or how they run."""
    return key_of(override).lstrip("+~").partition(".")[0].partition("/")[0] not in NOT_OF_THE_RUN


def composed_id(composer: Any, overrides: Sequence[str]) -> str | None:
    """Return the id of the run that the overrides describe today; None where they are refused."""
    try:
        return run_id(composer.point(list(overrides)).cfg)
    except (Refused, HydraException):
        return None


def on_the_hub(path: str) -> bool:
    """Return whether a path of the configuration is a hub id: `owner/name`, with no such folder on this machine."""
    own = path.startswith(("embedded:", "/", ".", "~", "package:", "reasoning_gym:")) or Path(path).exists()
    return not own and path.count("/") == 1 and not path.endswith((".jsonl", ".gguf", ".csv", ".parquet"))


def public_path(path: str) -> str:
    """Return a path without the folders of this machine: a local file or folder by its name, everything else unchanged."""
    is_local = path.startswith(("/", ".", "~")) or Path(path).exists()
    return Path(path).name if is_local else path


def public_source(stated: dict[str, Any]) -> str:
    """Return `path @ revision` of a model or a set of problems, without folders of this machine."""
    return source({**stated, "path": public_path(stated["path"])})
