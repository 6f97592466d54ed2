"""The paper's tables and figures as data: conf/sweep/*.yaml to rows, and the grid that a launch makes of them.

A product (`sweep=table5`) has sections (its panels); a section's grids, in Hydra's own grammar, are its rows. A row is a list
of overrides, hence a run id, hence a directory: what launches a table and what renders it read the same lines. Rows that two
products share are the same runs. A model whose own dials differ from the paper's has its own grids under `instead`, place
by place: row i stands for the paper's row i.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from rlvr_sweeps.config.compose import CONFIG_NAME, Composer
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir

DIAL_LABELS = {
    "rank": "r",
    "alpha": "α",
    "dropout": "dropout",
    "lr": "lr",
    "batch_size": "batch",
    "steps": "steps",
    "seed": "seed",
}
FIRST_SEED = 42  # the paper's; SEEDS=3 means 42, 43, 44


@dataclass(frozen=True)
class Section:
    """A panel of a table: which runs are its rows."""

    title: str
    grids: list[str]  # at the paper's scale; "peft=lora rank=1,8" is two rows
    instead: dict[str, list[str]] = field(default_factory=dict)  # by model: other values, place by place
    notes: dict[str, str] = field(default_factory=dict)  # by model: what a reader of its rows must know
    table: str | None = None  # whose printed values in paper/reference.csv are its rows'
    printed: list[str] = field(default_factory=list)  # those rows, place by place, where their names are not its own
    seeds: int = 1  # where none are given
    launched: bool = True  # False: shown where its runs are there, launched by other sweeps


@dataclass(frozen=True)
class RowSpec:
    """One row: what it is called, the overrides that make its runs, and the row of the paper that it is or stands for."""

    section: str
    label: str
    overrides: tuple[str, ...]
    stands_for: str  # the label of the paper's row; the same as `label` at the paper's scale
    printed: dict[str, float]  # metric (overall, trainable, or a benchmark) -> the paper's value, in percent


@dataclass(frozen=True)
class Product:
    """A table or figure: its rows for one model, by section."""

    name: str
    title: str
    sections: dict[str, Section]
    rows: tuple[RowSpec, ...]
    notes: tuple[str, ...]


def products() -> list[str]:
    """The names of all sweeps."""
    return sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml"))


def load_product(name: str, model: str, composer: Composer) -> Product:
    """The product as Hydra composes it: exactly what `sweep=NAME model=MODEL` launches, and what is shown beside it."""
    if name not in products():
        raise Refused(f"There is no product {name!r}. There are: {', '.join(products())}.")
    cfg = composer.loader.load_configuration(
        CONFIG_NAME, [f"sweep={name}"], RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
    )
    sections = read_sections(OmegaConf.to_container(cfg.hydra.sweeper.sections))
    rows = [row for key, section in sections.items() for row in rows_of(key, section, model)]
    notes = dict.fromkeys(section.notes[model] for section in sections.values() if model in section.notes)
    return Product(name, str(cfg.hydra.sweeper.title), sections, tuple(rows), tuple(notes))


def read_sections(given: Any) -> dict[str, Section]:
    """Sections as a sweep file states them; Refused where a key is none of theirs."""
    try:
        return {key: Section(**section) for key, section in given.items()}
    except TypeError as error:
        keys = ", ".join(Section.__dataclass_fields__)
        raise Refused(f"A section of conf/sweep/ is not understood ({error}). Its keys: {keys}.") from None


def points(sections: Mapping[str, Section], model: str, arguments: Sequence[str]) -> list[list[str]]:
    """Every launched row crossed with what else was typed: a list of overrides per point, for the launcher.

    Refused where something is typed that the rows set themselves. `model` chooses the rows' values; a row that names its
    own model (Table 6) keeps it, whoever asks.
    """
    refuse_fixed_keys(sections, model, arguments)
    rows = launched_rows(sections, model)
    crossed = []
    given = {key_of(argument) for argument in arguments}
    for section, row in rows:
        has_model = any(key_of(override) == "model" for override in row)
        rest = [argument for argument in arguments if not (has_model and key_of(argument) == "model")]
        if section.seeds > 1 and "seed" not in given:
            rest.append(f"seed={','.join(map(str, seeds(section.seeds)))}")
        crossed += [list(point) for point in expand([" ".join(row)], rest)]
    return crossed


def launched_rows(sections: Mapping[str, Section], model: str) -> list[tuple[Section, tuple[str, ...]]]:
    launched = [section for section in sections.values() if section.launched]
    return [(section, row) for section in launched for row in expand(section.instead.get(model, section.grids))]


def refuse_fixed_keys(sections: Mapping[str, Section], model: str, arguments: Sequence[str]) -> None:
    """Raise Refused for an argument that a sweep's rows set themselves: in its launch and in its table alike."""
    fixed = {key_of(override) for _, row in launched_rows(sections, model) for override in row} - {"model"}
    for argument in OverridesParser.create().parse_overrides(list(arguments)):
        key = argument.get_key_element()
        if key in fixed or (key == "model" and argument.is_sweep_override()):
            why = "takes its values from one model" if key == "model" else f"sets {key} itself"
            raise Refused(
                f"{argument.input_line} was given, but this sweep {why} (conf/sweep/). Leave it out, or launch a grid of your "
                "own: python launch.py -m …"
            )


def expand(grids: Sequence[str], rest: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The points of grids, in order; `rest`: overrides, lists of values among them, that each grid is crossed with."""
    parser = OverridesParser.create()
    found: list[tuple[str, ...]] = []
    for grid in grids:
        (all_points,) = BasicSweeper.split_arguments(parser.parse_overrides([*grid.split(), *rest]), None)
        found += [tuple(point) for point in all_points]
    return found


def key_of(override: str) -> str:
    return override.partition("=")[0]


def rows_of(key: str, section: Section, model: str) -> list[RowSpec]:
    """A section's rows for a model; Refused where they are not as many as the paper's, which they stand for."""
    paper = expand(section.grids)
    own = expand(section.instead.get(model, section.grids))
    names = section.printed or [label(row, paper) for row in paper]
    if len(own) != len(names):
        raise Refused(f"Section {key} has {len(own)} rows for model={model}, but {len(names)} of the paper's to stand for.")
    rows = []
    for mine, stands_for in zip(own, names, strict=True):
        rows.append(RowSpec(key, label(mine, own), mine, stands_for, printed_values(section.table, stands_for)))
    return rows


def label(row: Sequence[str], among: Sequence[Sequence[str]]) -> str:
    """What sets a row apart from the others of its section: `DoRA`, `r 8`, `LoRA r 1`."""
    parts = []
    for override in row:
        key, _, value = override.partition("=")
        if len({next((other for other in rival if key_of(other) == key), "") for rival in among}) > 1:
            parts.append(title(key, value) if key in ("peft", "algo") else f"{DIAL_LABELS.get(key, key)} {format_value(value)}")
    return " ".join(parts) or " ".join(f"{key_of(override)} {override.partition('=')[2]}" for override in row)


def format_value(value: str) -> str:
    """A value as the paper writes it: a learning rate as 5e-6, whatever Hydra makes of it."""
    try:
        number = float(value)
    except ValueError:
        return value
    if number == 0 or abs(number) >= 0.01:
        return f"{number:g}"
    mantissa, exponent = f"{number:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


@cache
def title(group: str, name: str) -> str:
    """How tables call a method or an objective."""
    return str(OmegaConf.select(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), "title"))


def printed_values(table: str | None, row: str) -> dict[str, float]:
    """The paper's values for a row, in percent, by metric; empty where the paper, or what is known of it, has none."""
    return {line["metric"]: float(line["percent"]) for line in reference() if (line["table"], line["row"]) == (table, row)}


@cache
def reference() -> list[dict[str, str]]:
    """paper/reference.csv: the paper's printed numbers."""
    with (conf_dir().parent / "paper" / "reference.csv").open() as file:
        return list(csv.DictReader(file))


def seeds(count: int) -> list[int]:
    """`count` training seeds, the paper's first."""
    return list(range(FIRST_SEED, FIRST_SEED + count))
