"""Test that every file of conf/ composes and that the upstream constructors accept the values passed to them."""

import pytest
from omegaconf import OmegaConf

from rlvr_sweeps.config.settings import dials_read
from tests.conftest import choices


def raw(composer, *overrides):
    """Return the resolved configuration without checks, so that files that need a user's path compose as well."""
    limit = ("rollout.max_tokens=8",) if any("=local" in override for override in overrides) else ()
    task = ("data.task=lcm",) if "data=any_task" in overrides else ()
    return OmegaConf.to_container(composer.compose([*overrides, *limit, *task]), resolve=True, throw_on_missing=not limit)


GROUPS = ("model", "peft", "algo", "data", "benchmark", "rollout", "distributed", "tracking", "cluster", "sweep")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in choices(group)])
def test_every_file_composes(composer, choice):
    assert raw(composer, choice)


@pytest.mark.parametrize("name", choices("peft"))
def test_peft_accepts_the_config_of_every_method(composer, name):
    import peft

    cfg = raw(composer, f"peft={name}", "rank=6", "alpha=5", "dropout=0.125")
    if cfg["peft"]["trains"] != "adapter":
        assert cfg["peft"]["config"] == {}
        return
    built = peft.get_peft_config(cfg["peft"]["config"])
    for key, value in cfg["peft"]["config"].items():
        result = getattr(built, key)
        assert (set(result) if isinstance(value, list) else result) == (set(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", [name for name in choices("algo") if name != "none"])
def test_trl_accepts_every_objective(composer, name, tmp_path):
    from trl import GRPOConfig

    from rlvr_sweeps.runs.directory import Run
    from rlvr_sweeps.training.train import trl_settings

    cfg = raw(composer, f"algo={name}")
    built = GRPOConfig(**trl_settings(Run(tmp_path), cfg))
    for key, value in {**cfg["training"]["trl"], **cfg["algo"]["trl"]}.items():
        assert getattr(built, key) == value, key


@pytest.mark.parametrize("name", choices("peft"))
def test_a_dial_is_read_exactly_where_changing_it_changes_the_method(composer, name):
    """`dials_read` reads the text of the method's file; this test changes each dial and compares the configurations."""
    before = raw(composer, f"peft={name}")["peft"]
    changes = {"rank": "rank=6", "alpha": "alpha=5", "dropout": "dropout=0.125", "modules": "modules=mlp"}
    changed = {dial for dial, override in changes.items() if raw(composer, f"peft={name}", override)["peft"] != before}
    assert dials_read(composer.compose([f"peft={name}"])) == changed


def test_the_recipes_have_the_papers_values(composer):
    """Compare with the values of Sec. 2.2-2.4 of the paper, for the 1.5B and the 7B model."""
    for model, batch, per_device, steps in (("r1_qwen_1_5b", 128, 4, 1024), ("r1_qwen_7b", 32, 1, 8192)):
        cfg = raw(composer, f"model={model}")
        assert (cfg["rank"], cfg["alpha"], cfg["dropout"], cfg["lr"]) == (32, 64, 0.05, 1e-5)
        assert (cfg["batch_size"], cfg["training"]["per_device_batch_size"], cfg["steps"]) == (batch, per_device, steps)
        assert (cfg["rollout"]["group_size"], cfg["rollout"]["max_tokens"]) == (8, 16384)
        assert batch // per_device // cfg["distributed"]["processes"] == 8  # accumulation
        evaluation = cfg["evaluation"]
        assert (evaluation["temperature"], evaluation["top_p"], evaluation["max_tokens"]) == (0.6, 0.95, 32768)
        sizes = {name: (source["problems"], source["k"]) for name, source in cfg["benchmark"].items()}
        assert sizes == {
            "aime24": (30, 32), "aime25": (30, 32), "amc": (40, 32), "hmmt": (30, 32), "math500": (500, 4), "minerva": (272, 4),
        }  # fmt: skip
