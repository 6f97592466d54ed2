"""Test the host memory of a run's jobs: parts against values by hand, refusals with a value that fits, sbatch's options."""

import io

import pytest
from rich.console import Console

from rlvr_sweeps.assets.architecture import architecture
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching.slurm import launch
from rlvr_sweeps.launching.slurm.options import host_gib
from rlvr_sweeps.planning.hardware import GIB, constants
from rlvr_sweeps.planning.host_memory import host_footprint, refuse_too_little

SLURM = ("cluster=slurm", "model=r1_qwen_7b")
BASE, HEAD, MLP = 7_615_616_512, 152_064 * 3_584, 18_944 * 3_584  # parameters of the 7B: all, embedding or head, one of an MLP
OFFLOAD = ("peft=full", "distributed=zero2_offload", "rollout.vllm.gpu_memory_utilization=0.25")


def host_of(composer, *overrides, stage="train"):
    """Return the estimated host memory of a run of the 7B model."""
    cfg = composer.point([*SLURM, *overrides]).cfg
    return host_footprint(cfg, architecture(cfg), stage)


def test_parts_of_the_7b_on_one_node(composer):
    parts = host_of(composer).parts
    known = constants()["host"]
    assert parts["processes"] == 4 * (known["process_gib"] + known["vllm_gib"]) * GIB
    assert parts["loading"] == 4 * (2 * HEAD + 2 * MLP) * (2 + 4)  # its four largest tensors in bfloat16 and in float32
    assert parts["export"] == BASE * 4 and parts["optimizer"] == 0
    full = host_of(composer, *OFFLOAD)
    assert full.parts["optimizer"] == pytest.approx(24 * BASE)
    assert full.peak == sum(full.parts.values()) - full.parts["loading"]  # the export is larger, and comes after the loading


def test_the_model_is_not_counted_once_per_process(composer):
    """Four processes that each load 28 GiB of float32 weights on the host would need 114 GiB."""
    assert host_of(composer).peak < 60 * GIB < 4 * BASE * 4


def test_nodes_divide_the_processes_and_the_optimizer(composer):
    one = host_of(composer, *OFFLOAD).parts
    two = host_of(composer, *OFFLOAD, "cluster.train.nodes=2").parts
    assert all(two[part] == one[part] / 2 for part in ("processes", "verifier", "optimizer", "loading"))
    assert two["export"] == one["export"]


def test_an_evaluation_exports_nothing_and_an_unknown_model_has_no_estimate(composer):
    assert host_of(composer, stage="evaluate").parts["export"] == 0
    assert host_of(composer, "model.architecture.model_type=unknown") is None


@pytest.mark.parametrize(
    ("stage", "overrides", "limit"), [("train", OFFLOAD, 120), ("train", ("peft=lora",), 40), ("evaluate", ("peft=none",), 20)]
)
def test_a_job_with_too_little_memory_is_refused_with_the_value_that_it_needs(composer, stage, overrides, limit):
    cfg = composer.point([*SLURM, *overrides]).cfg
    model = architecture(cfg)

    def limit_of(_, of_stage):
        return limit if of_stage == stage else None

    with pytest.raises(Refused, match=rf"host memory of its {stage} job.*cluster\.{stage}\.mem_gb=\d+") as refused:
        refuse_too_little(cfg, model, limit_of)
    needed = int(str(refused.value).partition("mem_gb=")[2].partition(",")[0])
    refuse_too_little(cfg, model, lambda *_: needed)
    with pytest.raises(Refused):
        refuse_too_little(cfg, model, lambda *_: needed - 1)


def test_a_plan_on_slurm_shows_host_memory_and_refuses_too_small_a_mem_gb(composer, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm answers

    def plan(mem_gb, *overrides):
        point = composer.point([*SLURM, "plan=true", "peft=lora", *overrides, f"runs_dir={tmp_path}/runs"])
        console = Console(file=io.StringIO(), width=160)
        launch.execute([point], {"mem_gb": mem_gb}, tmp_path / "launch", console)
        return console.file.getvalue()

    assert "GiB of host memory on each node" in plan(120)
    with pytest.raises(Refused, match=r"has 40; .* Set cluster\.train\.mem_gb=5\d, or hydra\.launcher\.mem_gb=5\d"):
        plan(40)
    plan(40, "cluster.train.mem_gb=60", "cluster.evaluate.mem_gb=60")


@pytest.mark.parametrize(
    ("params", "needed", "expected"),
    [
        ({"mem_gb": 120}, {}, 120),
        ({"mem_gb": 120}, {"mem_gb": 60}, 60),
        ({"mem_per_gpu": "40G"}, {"gpus_per_node": 4}, 160),
        ({"mem_per_gpu": "40G"}, {"gpus_per_node": "h100:2"}, 80),
        ({"additional_parameters": {"mem": "102400"}}, {}, 100),
        ({"additional_parameters": {"mem-per-cpu": "2GB"}}, {"cpus_per_task": 8}, 16),
        ({"additional_parameters": {"mem": "0"}}, {}, None),  # all of the node's memory
        ({"mem_gb": None}, {}, None),
    ],
)
def test_the_memory_of_a_job_is_read_from_sbatchs_options(params, needed, expected):
    assert host_gib(params, needed) == expected
