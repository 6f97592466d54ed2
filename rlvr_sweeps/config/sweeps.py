"""Read conf/sweep/*.yaml: the rows of the paper's tables and figures, and the grid of runs that a launch makes of them.

A product (`sweep=table5`) has sections (the panels of a table); the points of a section's grids, in Hydra's grammar, are its
rows. A row is a list of overrides, which determines the run ids, so a launch and a table read the same definition. Rows that
two products share are the same runs. A model with its own dial values has its own grids under `instead`: its row i corresponds
to the paper's row i.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from rlvr_sweeps import patches
from rlvr_sweeps.config.compose import CONFIG_NAME, Composer
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.paths import conf_dir

DIAL_LABELS = {
    "rank": "r",
    "alpha": "α",
    "dropout": "dropout",
    "modules": "modules",
    "lr": "lr",
    "batch_size": "batch",
    "steps": "steps",
    "seed": "seed",
}
FIRST_SEED = 42  # the paper's seed; three seeds are 42, 43, 44


@dataclass(frozen=True)
class Section:
    """A panel of a table. The fields are the keys of a section in conf/sweep/*.yaml."""

    title: str
    grids: list[str]  # at the paper's scale; "peft=lora rank=1,8" is two rows
    instead: dict[str, list[str]] = field(default_factory=dict)  # by model: grids with its own values, same number of rows
    notes: dict[str, str] = field(default_factory=dict)  # by model: a note below the table
    table: str | None = None  # the table of paper/reference.csv that holds the printed values of these rows
    printed: list[str] = field(default_factory=list)  # the names of these rows in that table, in order; empty: their labels
    seeds: int = 1  # number of seeds where the command sets none
    launched: bool = True  # False: rows are shown where their runs exist; other sweeps launch them


@dataclass(frozen=True)
class RowSpec:
    """One row: its label, the overrides of its runs, and the corresponding row of the paper."""

    section: str
    label: str
    overrides: tuple[str, ...]
    stands_for: str  # label of the corresponding row of the paper; equal to `label` at the paper's scale
    printed: dict[str, float]  # metric (overall, trainable, or a benchmark) -> the paper's value, in percent
    written: tuple[str, ...] = ()  # the overrides of the corresponding row of the paper, by which a claim card names the row


@dataclass(frozen=True)
class Product:
    """A table or figure for one model: sections, rows in order, notes below it."""

    name: str
    title: str
    sections: dict[str, Section]
    rows: tuple[RowSpec, ...]
    notes: tuple[str, ...]


def products() -> list[str]:
    """Return the names of all sweeps, sorted."""
    return sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml"))


def load_product(name: str, model: str, composer: Composer) -> Product:
    """Return a product with the rows that `sweep=NAME model=MODEL` launches, and those that are only shown."""
    if name not in products():
        raise Refused(f"There is no sweep {name!r} in conf/sweep/. Sweeps: {', '.join(products())}.")
    cfg = composer.loader.load_configuration(
        CONFIG_NAME, [f"sweep={name}"], RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
    )
    sections = read_sections(OmegaConf.to_container(cfg.hydra.sweeper.sections))
    rows = [row for key, section in sections.items() for row in rows_of(key, section, model)]
    notes = dict.fromkeys(section.notes[model] for section in sections.values() if model in section.notes)
    return Product(name, str(cfg.hydra.sweeper.title), sections, tuple(rows), tuple(notes))


def read_sections(raw_sections: Any) -> dict[str, Section]:
    """Return the sections of a sweep file, by name; raise Refused for a key that a section does not have."""
    try:
        return {name: Section(**section) for name, section in raw_sections.items()}
    except TypeError as error:
        keys = ", ".join(Section.__dataclass_fields__)
        raise Refused(f"A section in conf/sweep/ has a wrong key ({error}). Allowed keys: {keys}.") from None


def points(sections: Mapping[str, Section], model: str, arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every point to launch: each launched row crossed with the other arguments of the command.

    Raises Refused for an argument that the rows set. `model` selects the rows' values; a row with its own model (Table 6)
    keeps that model.
    """
    refuse_fixed_keys(sections, model, arguments)
    rows = launched_rows(sections, model)
    crossed = []
    keys = {key_of(argument) for argument in arguments}
    for section, row in rows:
        has_model = any(key_of(override) == "model" for override in row)
        rest = [argument for argument in arguments if not (has_model and key_of(argument) == "model")]
        if section.seeds > 1 and "seed" not in keys:
            rest.append(f"seed={','.join(map(str, seeds(section.seeds)))}")
        crossed += [list(point) for point in expand([" ".join(row)], rest)]
    return crossed


def launched_rows(sections: Mapping[str, Section], model: str) -> list[tuple[Section, tuple[str, ...]]]:
    """Return (section, overrides) of every row that a launch includes."""
    launched = [section for section in sections.values() if section.launched]
    return [(section, row) for section in launched for row in expand(section.instead.get(model, section.grids))]


def refuse_fixed_keys(sections: Mapping[str, Section], model: str, arguments: Sequence[str]) -> None:
    """Raise Refused for an argument that the rows of a sweep set; launches and tables use the same check."""
    fixed = {key_of(override) for _, row in launched_rows(sections, model) for override in row} - {"model"}
    for argument in OverridesParser.create().parse_overrides(list(arguments)):
        key = argument.get_key_element()
        if key in fixed or (key == "model" and argument.is_sweep_override()):
            reason = "takes its values from one model" if key == "model" else f"sets {key} itself"
            raise Refused(
                f"{argument.input_line} cannot be combined with this sweep, which {reason} (conf/sweep/). Leave it out, or "
                "launch a grid of your own: python launch.py -m …"
            )


def expand(grids: Sequence[str], rest: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return the points of the grids, in order; each grid is crossed with the overrides `rest`, which may hold value lists."""
    parser = OverridesParser.create()
    expanded: list[tuple[str, ...]] = []
    for grid in grids:
        grid_points = patches.expand_grid(parser.parse_overrides([*grid.split(), *rest]))
        expanded += [tuple(point) for point in grid_points]
    return expanded


def key_of(override: str) -> str:
    """Return the key of an override: `rank` of `rank=8`."""
    return override.partition("=")[0]


def rows_of(key: str, section: Section, model: str) -> list[RowSpec]:
    """Return a section's rows for a model; raise Refused where their number differs from that of the paper's rows."""
    paper = expand(section.grids)
    own = expand(section.instead.get(model, section.grids))
    names = section.printed or [label(row, paper) for row in paper]
    if len(own) != len(names):
        raise Refused(
            f"Section {key} of conf/sweep/ has {len(own)} rows for model={model}, but {len(names)} for the paper's models. "
            f"Give `instead.{model}` as many rows, or correct `printed`."
        )
    rows = []
    for overrides, written, stands_for in zip(own, paper, names, strict=True):
        printed = printed_values(section.table, stands_for)
        rows.append(RowSpec(key, label(overrides, own), overrides, stands_for, printed, written))
    return rows


def label(row: Sequence[str], among: Sequence[Sequence[str]]) -> str:
    """Return the values in which a row differs from the others of its section: `DoRA`, `r 8`, `LoRA r 1`."""
    varying = [override for override in row if len({value_in(rival, key_of(override)) for rival in among}) > 1]
    return " ".join(described(*override.split("=", 1)) for override in varying or row)


def value_in(row: Sequence[str], key: str) -> str:
    """Return the override of a key in a row; empty if the row does not set it."""
    return next((override for override in row if key_of(override) == key), "")


def described(key: str, value: str) -> str:
    """Return a value as a label states it: the title of a method or an objective, otherwise the dial and its value."""
    return title(key, value) if key in ("peft", "algo") else f"{DIAL_LABELS.get(key, key)} {format_value(value)}"


def format_value(value: str) -> str:
    """Return a value as the paper writes it: 5e-6 for 5e-06 or 0.000005; other text unchanged."""
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
    """Return the title of a method or an objective in tables: the `title` of conf/<group>/<name>.yaml."""
    return str(OmegaConf.select(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), "title"))


def printed_values(table: str | None, row: str) -> dict[str, float]:
    """Return the paper's values of a row, in percent, by metric; empty where paper/reference.csv has none."""
    return {line["metric"]: float(line["percent"]) for line in reference() if (line["table"], line["row"]) == (table, row)}


@cache
def reference() -> list[dict[str, str]]:
    """Return the rows of paper/reference.csv, the numbers printed in the paper."""
    with (conf_dir().parent / "paper" / "reference.csv").open() as file:
        return list(csv.DictReader(file))


def seeds(count: int) -> list[int]:
    """Return `count` training seeds; the first is the paper's."""
    return list(range(FIRST_SEED, FIRST_SEED + count))


@cache
def paper_models() -> dict[str, str]:
    """Return the models of the paper: the size that the paper names them by (`model.paper_size`) by name, smallest first.

    The first is the paper's main model (Tables 3 to 5); the second is the one of Table 6.
    """
    sizes = {}
    for path in (conf_dir() / "model").glob("*.yaml"):
        if size := OmegaConf.select(OmegaConf.load(path), "model.paper_size"):  # not inherited: each file states its own
            sizes[path.stem] = str(size)
    return dict(sorted(sizes.items(), key=lambda item: float(item[1].removesuffix("B"))))


def main_model() -> str:
    """Return the name of the paper's main model."""
    return next(iter(paper_models()))
