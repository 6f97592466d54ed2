"""What a plan says runs will take: memory checked by hand, refusals whose cure works, times that give way to measured ones."""

import io
import json

import pytest
from rich.console import Console

from rlvr_sweeps.assets.architecture import activation_kind, architecture
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import as_yaml, write_json, write_text
from rlvr_sweeps.launching.local import first_that_fits, refuse_vllm_without_gpu
from rlvr_sweeps.planning import estimates, measured, timing
from rlvr_sweeps.planning.hardware import constants, gpu_by_driver_name, gpu_of, known_gpus
from rlvr_sweeps.planning.memory import SHARES, footprint, refuse_too_large
from rlvr_sweeps.planning.plan import make_plan
from rlvr_sweeps.runs.directory import Run
from tests.conftest import choices

BASE, H100 = 1_777_088_000, "cluster.gpu=h100"
LARGE = ("model=r1_qwen_1_5b", H100)


def footprint_of(composer, *overrides):
    cfg = composer.point([*LARGE, *overrides]).cfg
    return footprint(cfg, architecture(cfg), gpu_of(cfg))


def shown(points):
    text = io.StringIO()
    estimates.show(make_plan(points, retry=False), Console(file=text, width=160))
    return text.getvalue()


@pytest.mark.parametrize(
    ("distributed", "bytes_each"),
    [
        ("distributed=single", 4 + 8),  # gradients, AdamW
        ("distributed=ddp", 4 + 4 + 8),  # and DDP's buckets
        ("distributed=zero2_offload", 4 * 500_000_000 / BASE),  # one bucket
        ("distributed=zero2_offload distributed.deepspeed.zero_optimization.offload_optimizer.device=none",
         4 * 500_000_000 / BASE + (4 + 4 + 8) / 4),
    ],
)  # fmt: skip
def test_optimizer_state_by_hand(composer, distributed, bytes_each):
    parts = footprint_of(composer, "peft=full", *distributed.split()).parts
    assert parts["gradients and optimizer"] == pytest.approx(BASE * bytes_each)
    assert parts["weights"] == 4 * BASE


def test_the_cache_by_hand(composer):
    """28 layers × 2 heads of 128, keys and values, bfloat16: 28,672 bytes a token; vLLM's share less its weights and 2 GiB."""
    found = footprint_of(composer, "rollout.vllm.gpu_memory_utilization=0.4")
    gpu = known_gpus()["h100"]
    cache = 0.4 * gpu.memory_gib * 2**30 - 2 * BASE - 2 * 2**30
    assert found.parts["KV cache"] == pytest.approx(cache)
    assert found.sequences == pytest.approx(cache / (28_672 * (512 + 16384)))


def test_the_papers_recipes_fit_the_usual_gpu(composer):
    """All methods with the 1.5B, and Table 6's with the 7B, on 80 GB as they stand."""
    for model, methods in (("r1_qwen_1_5b", choices("peft")), ("r1_qwen_7b", ["lora", "dora", "miss", "lora_plus"])):
        for method in set(methods) - {"none"}:
            cfg = composer.point([f"model={model}", H100, f"peft={method}"]).cfg
            refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["peft=full", "rollout.vllm.gpu_memory_utilization=0.3"], "full does not fit: it would take"),
        (["rollout.vllm.gpu_memory_utilization=0.9"], "KV cache"),
        (["rollout.vllm.gpu_memory_utilization=0.05"], "leaves vLLM 0.0 GiB of KV cache"),
        (["training.per_device_batch_size=16"], "activations"),
        (["cluster.gpu=l40s"], "of the 44 that one L40S has"),
        (["rollout=hf", "training.per_device_batch_size=32"], "activations"),
    ],
)
def test_what_cannot_fit_is_refused_and_its_cure_fits(composer, overrides, says):
    cfg = composer.point([*LARGE, *overrides]).cfg
    with pytest.raises(Refused, match=says) as refused:
        refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))
    cure = str(refused.value).partition("This fits: ")[2].rstrip(".").split()
    assert cure, str(refused.value)
    other = composer.point([*LARGE, *overrides, *cure]).cfg
    refuse_too_large(other, architecture(other), gpu_of(other))


def test_where_no_setting_fits_a_larger_gpu_is_named(composer):
    cfg = composer.point(["model=r1_qwen_7b", H100, "peft=full", "distributed=ddp"]).cfg
    with pytest.raises(Refused, match="No per-device batch fits"):
        refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))


def test_memory_grows_with_what_it_is_made_of(composer):
    peaks = [footprint_of(composer, f"training.per_device_batch_size={rows}").peak for rows in (1, 2, 4, 8)]
    assert peaks == sorted(peaks)
    caches = [footprint_of(composer, f"rollout.vllm.gpu_memory_utilization={share}").sequences for share in sorted(SHARES)]
    assert caches == sorted(caches)
    assert footprint_of(composer, "training.gradient_checkpointing=false").peak > peaks[2]


def test_one_gpu_costs_about_half_of_four(composer):
    """Decoding 32 sequences takes about as long as decoding 128 (issue: the 1.5B at 16k tokens)."""
    cfg = composer.point([*LARGE, "peft=lora"]).cfg
    model, gpu, lengths = architecture(cfg), gpu_of(cfg), timing.assumed_lengths(cfg)
    one, four = (timing.step_s(timing.on_gpus(cfg, count), model, gpu, lengths) for count in (1, 4))
    assert one > four and 0.35 < one / (4 * four) < 0.65


def test_a_grid_of_one_shape_is_one_row(composer, tmp_path):
    points = [
        composer.point([*LARGE, "cluster=slurm", f"seed={seed}", f"lr={lr}", f"runs_dir={tmp_path}"])
        for seed in (1, 2, 3)
        for lr in ("1e-5", "1e-6")
    ]
    text = shown(points)
    assert text.count("LoRA r=32") == 2 and "   6  r1_qwen_1_5b LoRA r=32 DAPO" in text  # memory, time
    assert "GPU-hours in all" in text and "s/step on 1" in text and "s/step on 4" in text


def test_without_gpus_nothing_is_said_that_is_not_known(composer, tmp_path):
    assert shown([composer.point([f"runs_dir={tmp_path}"])]) == ""
    on_cpus = ["cluster=slurm", "distributed=ddp", "training.per_device_batch_size=8", "cluster.train.gpus_per_node=0"]
    assert shown([composer.point([*on_cpus, f"runs_dir={tmp_path}"])]) == ""
    assert shown([composer.point(["cluster=slurm", "cluster.gpu=null", f"runs_dir={tmp_path}"])]) == ""


def finished(composer, folder, device, step_s, *overrides, completion=8000.0):
    """A run as training leaves it, with its pace and its device."""
    cfg = composer.point([*overrides, f"runs_dir={folder}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    write_json(run.record_path, {"surroundings": {"device": device}})
    row = {"rollout_s": 0.75 * step_s, "reward_s": 0.0, "update_s": 0.25 * step_s, "completion_tokens_mean": completion,
           "sampling_rounds": 2}  # fmt: skip
    run.metrics_path.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in range(1, 6)))
    run.finish("train", cfg, 5 * step_s)
    return cfg


def test_measured_runs_take_the_models_place(composer, tmp_path):
    """A run of the same shape gives its seconds, on a CPU too; one of another method scales what is reckoned."""
    finished(composer, tmp_path, None, 0.5, "seed=7")
    finished(composer, tmp_path, "NVIDIA H100 80GB HBM3", 500.0, *LARGE, "peft=lora", "seed=7")
    same = shown([composer.point([f"runs_dir={tmp_path}", "lr=1e-4"])])
    assert "measured (1 run)" in same and "0.5" in same
    assert "measured" not in shown([composer.point([f"runs_dir={tmp_path}", "peft=dora"])])
    assert "measured (1 run)" in shown([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    other = composer.point([*LARGE, "peft=dora", f"runs_dir={tmp_path}"])
    (found,) = estimates.estimates_by_shape(make_plan([other], retry=False), measure=True)
    seconds, words = found.step_time(other.cfg)
    lengths = timing.Lengths(8000.0, 2)
    lora, dora = (
        timing.step_s(composer.point([*LARGE, f"peft={peft}"]).cfg, found.model, found.gpu, lengths)
        for peft in ("lora", "dora")
    )
    assert seconds == pytest.approx(500.0 * dora / lora) and words.startswith("estimated ×")


def test_one_gpu_beside_four_is_reckoned_with_what_four_measured(composer, tmp_path):
    """Lengths and the model's error from the runs on four: else one column would be of short completions, the other of long."""
    finished(composer, tmp_path, "NVIDIA H100 80GB HBM3", 368.0, *LARGE, "peft=lora", "seed=7", completion=4000.0)
    asked = composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])
    (found,) = estimates.estimates_by_shape(make_plan([asked], retry=False), measure=True)
    cfg = found.cfg
    one, lengths = timing.on_gpus(cfg, 1), timing.Lengths(4000.0, 2)
    assert found.lengths(one) == found.lengths(cfg) == lengths
    on_one, on_four = (timing.step_s(each, found.model, found.gpu, lengths) for each in (one, cfg))
    assert found.step_time(one)[0] == pytest.approx(368.0 * on_one / on_four)
    assert found.step_time(cfg)[0] == 368.0


def test_a_run_of_another_gpu_does_not_count(composer, tmp_path):
    cfg = finished(composer, tmp_path, "NVIDIA A100-SXM4-80GB", 900.0, *LARGE)
    paces = measured.read_paces([str(tmp_path)])
    assert measured.shape(cfg, "a100") in paces.by_shape and measured.shape(cfg, "h100") not in paces.by_shape


def test_drivers_names(composer):
    assert gpu_by_driver_name("NVIDIA H100 80GB HBM3").name == "h100"
    assert gpu_by_driver_name("NVIDIA A100-SXM4-40GB").name == "a100_40gb"
    # The PCIe and NVL variants have two thirds of the SXM part's peak and other memory.
    for unknown in ("Tesla T4", None, "NVIDIA H100 PCIe", "NVIDIA H100 NVL"):
        assert gpu_by_driver_name(unknown) is None
    with pytest.raises(Refused, match="h100, h200"):
        gpu_of(composer.point(["cluster.gpu=h1000"]).cfg)


def test_every_method_has_its_activations(composer):
    kinds = {activation_kind(composer.point([f"peft={name}"]).cfg["peft"]) for name in choices("peft")}
    assert kinds - set(constants()["activations"]) == {"shira", "tinylora"}  # these count as `other`


def test_vllm_on_a_machine_that_cannot(composer, tmp_path):
    plan = make_plan([composer.point(["rollout=vllm", f"runs_dir={tmp_path}"])], retry=False)
    with pytest.raises(Refused, match="rollout=hf"):
        refuse_vllm_without_gpu(plan, [])
    refuse_vllm_without_gpu(make_plan([composer.point(["rollout=vllm", "peft=none"])], retry=False), [])


def test_the_longest_run_starts_first(composer, tmp_path):
    def order(*points):
        plan = make_plan([composer.point([*overrides, f"runs_dir={tmp_path}"]) for overrides in points], retry=False)
        return [planned.cfg["seed"] for planned in estimates.longest_first(plan)]

    assert order(["seed=1"], ["seed=2", "steps=90"], ["seed=3", "peft=full"], ["seed=4", "peft=none"]) == [2, 3, 1, 4]
    finished(composer, tmp_path, None, 9.0, "seed=7")  # a step of LoRA took long: nothing is known of the other
    assert order(["seed=1"], ["seed=3", "peft=full"]) == [3, 1]
    finished(composer, tmp_path, None, 0.5, "seed=7", "peft=full")
    assert order(["seed=3", "peft=full"], ["seed=1"], ["seed=2", "steps=5"]) == [1, 2, 3]
    begun = Run.of(composer.point(["seed=1", f"runs_dir={tmp_path}"]).cfg)
    begun.path.mkdir()
    begun.metrics_path.write_text('{"step": 58}\n')  # two of its steps are left
    assert order(["seed=3", "peft=full"], ["seed=1"], ["seed=2", "steps=5"]) == [2, 3, 1]


def test_a_run_that_wants_more_gpus_than_are_free_keeps_none_idle(composer):
    wide, narrow = (composer.point(["distributed=ddp", f"distributed.processes={n}", f"seed={n}"]) for n in (4, 1))
    waiting = make_plan([wide, narrow], retry=False)
    assert first_that_fits(waiting, ["0", "1", "2", "3"], True) == (0, ["0", "1", "2", "3"])
    assert first_that_fits(waiting, ["2", "2", "1"], True) == (1, ["2"])
    assert first_that_fits(waiting, [], True) is None and first_that_fits(waiting, [], False) == (0, [])


def test_runs_that_share_a_gpu_share_its_memory(composer, tmp_path):
    shared = [*LARGE, "rollout=hf", "evaluation.engine=transformers", "distributed=single", "training.per_device_batch_size=1",
              "batch_size=8", "rollout.max_tokens=4096", f"runs_dir={tmp_path}"]  # fmt: skip
    estimates.refuse_unfit(make_plan([composer.point(shared)], retry=False))
    with pytest.raises(Refused, match="16 runs share it"):
        estimates.refuse_unfit(make_plan([composer.point([*shared, "cluster.runs_per_gpu=16"])], retry=False))
    refused = {
        "cluster=slurm": "where the site shares GPUs",
        "rollout=vllm": "with vLLM",
        "evaluation.engine=auto": "with vLLM",
    }
    for more, why in refused.items():
        with pytest.raises(Refused, match=why):
            composer.point([*shared, "cluster.runs_per_gpu=2", more])


def test_runs_of_before_are_not_taken_for_what_is_asked_now(composer, tmp_path):
    """A run whose steps were padded to their longest says nothing exact about one whose steps are cut by length."""
    cfg = finished(composer, tmp_path, "NVIDIA H100 80GB HBM3", 500.0, *LARGE, "peft=lora", "seed=7")
    assert "measured (1 run)" in shown([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    run = Run.of(cfg)
    for key in ("micro_batches", "log_probabilities"):
        del cfg["training"][key]
    del cfg["peft"]["factored_norm"]
    write_text(run.config_path, as_yaml(cfg))
    run.parsed_path.unlink(missing_ok=True)
    assert "measured (1 run)" not in shown([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    padded = ("training.micro_batches=equal", "training.log_probabilities=twice", "peft.factored_norm=false")
    assert "measured (1 run)" in shown([composer.point([*LARGE, "peft=lora", *padded, f"runs_dir={tmp_path}"])])
