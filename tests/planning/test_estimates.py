"""Test the estimates of a plan: memory against values by hand, refusals with settings that fit, and measured times."""

import io
import json

import pytest
from rich.console import Console

from rlvr_sweeps.assets.architecture import activation_kind, architecture
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import as_yaml, read_rows, write_json, write_text
from rlvr_sweeps.launching.local import first_that_fits, refuse_vllm_without_gpu
from rlvr_sweeps.planning import estimates, measured, timing
from rlvr_sweeps.planning.hardware import GIB, constants, gpu_by_driver_name, gpu_of, known_gpus
from rlvr_sweeps.planning.memory import SHARES, footprint, mask_bytes, refuse_too_large, sequence_tokens, shared_engine
from rlvr_sweeps.planning.plan import make_plan
from rlvr_sweeps.runs.directory import Run
from tests.conftest import choices

BASE, H100 = 1_777_088_000, "cluster.gpu=h100"
LARGE = ("model=r1_qwen_1_5b", H100)


def footprint_of(composer, *overrides):
    """Return the estimated memory of a run of the 1.5B model on an H100."""
    cfg = composer.point([*LARGE, *overrides]).cfg
    return footprint(cfg, architecture(cfg), gpu_of(cfg))


def printed(points):
    """Return the printed estimates of a grid."""
    text = io.StringIO()
    estimates.show(make_plan(points, retry=False), Console(file=text, width=160))
    return text.getvalue()


@pytest.mark.parametrize(
    ("distributed", "bytes_each"),
    [
        ("distributed=single", 4 + 8),  # gradients, AdamW
        ("distributed=ddp", 4 + 4 + 8),  # with DDP's buckets
        ("distributed=zero2_offload", 4 * 500_000_000 / BASE),  # one bucket
        ("distributed=zero2_offload distributed.deepspeed.zero_optimization.offload_optimizer.device=none",
         4 * 500_000_000 / BASE + (4 + 4 + 8) / 4),
    ],
)  # fmt: skip
def test_optimizer_state_against_values_by_hand(composer, distributed, bytes_each):
    parts = footprint_of(composer, "peft=full", *distributed.split()).parts
    assert parts["gradients and optimizer"] == pytest.approx(BASE * bytes_each)
    assert parts["weights"] == 4 * BASE


def test_the_kv_cache_against_values_by_hand(composer):
    """28 layers × 2 heads of 128, keys and values, bfloat16: 28,672 bytes per token.

    The cache is vLLM's share minus its weights and 2 GiB.
    """
    memory = footprint_of(composer, "rollout.vllm.gpu_memory_utilization=0.4")
    gpu = known_gpus()["h100"]
    cache = 0.4 * gpu.memory_gib * 2**30 - 2 * BASE - 2 * 2**30
    assert memory.parts["KV cache"] == pytest.approx(cache)
    assert memory.sequences == pytest.approx(cache / (28_672 * (512 + 16384)))


def test_memory_follows_the_modules(composer):
    both, attention, mlp = (footprint_of(composer, f"modules={part}").parts for part in ("all", "attention", "mlp"))
    for part in ("adapter", "gradients and optimizer"):
        assert both[part] == attention[part] + mlp[part]
    assert attention["adapter"] == 4 * 28 * 32 * 9_728  # layers, rank, inputs and outputs of q, k, v and o


def test_float32_rollouts_take_twice_the_memory_and_more_time(composer):
    """Weights, keys and values have four bytes, and products do not use the tensor cores."""
    gpu, model = known_gpus()["h100"], architecture(composer.point(["model=r1_qwen_1_5b"]).cfg)
    cfg = {weights: composer.point(["model=r1_qwen_1_5b", H100, f"rollout.weights={weights}",
                                    f"evaluation.weights={weights}"]).cfg
           for weights in ("bfloat16", "stochastic", "float32")}  # fmt: skip
    footprints = {weights: footprint(point, model, gpu) for weights, point in cfg.items()}
    assert footprints["bfloat16"] == footprints["stochastic"]
    assert footprints["float32"].parts["vLLM's weights"] - 2 * 2**30 == pytest.approx(4 * BASE)
    assert footprints["float32"].sequences < footprints["bfloat16"].sequences / 2
    seconds = {weights: timing.evaluation_s(point, model, gpu, 1) for weights, point in cfg.items()}
    assert 2 * seconds["bfloat16"] < seconds["float32"] < 10 * seconds["stochastic"]


def test_the_papers_recipes_fit_80_gb(composer):
    """All methods with the 1.5B, and those of Table 6 with the 7B, without changes."""
    for model, methods in (("r1_qwen_1_5b", choices("peft")), ("r1_qwen_7b", ["lora", "dora", "miss", "lora_plus"])):
        for method in set(methods) - {"none"}:
            cfg = composer.point([f"model={model}", H100, f"peft={method}"]).cfg
            refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["peft=full", "rollout.vllm.gpu_memory_utilization=0.3"], "full does not fit: it would take"),
        (["rollout.vllm.gpu_memory_utilization=0.9"], "KV cache"),
        (["rollout.vllm.gpu_memory_utilization=0.05"], "leaves vLLM 0.0 GiB of KV cache"),
        (["training.per_device_batch_size=16"], "activations"),
        (["cluster.gpu=l40s"], "of the 44 that one L40S has"),
        (["rollout=hf", "training.per_device_batch_size=32"], "activations"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_settings_that_fit(composer, overrides, message):
    cfg = composer.point([*LARGE, *overrides]).cfg
    with pytest.raises(Refused, match=message) as refused:
        refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))
    fitting = str(refused.value).partition("This fits: ")[2].rstrip(".").split()
    assert fitting, str(refused.value)
    cfg = composer.point([*LARGE, *overrides, *fitting]).cfg
    refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))


def test_where_no_per_device_batch_fits_the_message_advises_other_settings(composer):
    cfg = composer.point(["model=r1_qwen_7b", H100, "peft=full", "distributed=ddp"]).cfg
    with pytest.raises(Refused, match="No per-device batch fits"):
        refuse_too_large(cfg, architecture(cfg), gpu_of(cfg))


def test_memory_grows_with_batch_and_share(composer):
    peaks = [footprint_of(composer, f"training.per_device_batch_size={rows}").peak for rows in (1, 2, 4, 8)]
    assert peaks == sorted(peaks)
    caches = [footprint_of(composer, f"rollout.vllm.gpu_memory_utilization={share}").sequences for share in sorted(SHARES)]
    assert caches == sorted(caches)
    assert footprint_of(composer, "training.gradient_checkpointing=false").peak > peaks[2]


@pytest.mark.parametrize(
    ("overrides", "window", "expected"),
    [
        ((), {}, 0),
        (("model.autocast_bf16=false",), {}, 4 * 16896**2 * 5),  # bool, and attention's copy in float32
        (("training.micro_batches=by_prompt", "rollout.max_tokens=512"), {}, 2 * 2048**2 * 3),  # 4 completions and a prompt
        ((), {"sliding_window": 4096, "use_sliding_window": True}, 4 * 16896**2 * 3),
        ((), {"sliding_window": 4096, "use_sliding_window": False}, 0),
    ],
)
def test_masks_against_values_by_hand(composer, overrides, window, expected):
    cfg = composer.point([*LARGE, *overrides]).cfg
    assert (cfg["training"]["per_device_batch_size"], sequence_tokens(cfg)) in ((4, 16896), (4, 1024))
    assert mask_bytes(cfg, architecture(cfg) | window) == expected


@pytest.mark.parametrize(("continuous", "low", "high"), [("false", 0.35, 0.65), ("true", 0.6, 0.85)])
def test_a_step_on_one_gpu_takes_less_gpu_time_than_on_four(composer, continuous, low, high):
    """Decoding 32 sequences takes about as long as decoding 128 (the 1.5B at 16k tokens); one call decodes 64 at once."""
    cfg = composer.point([*LARGE, "peft=lora", f"rollout.continuous={continuous}"]).cfg
    model, gpu, lengths = architecture(cfg), gpu_of(cfg), timing.assumed_lengths(cfg)
    on_one, on_four = (timing.step_s(timing.on_gpus(cfg, count), model, gpu, lengths) for count in (1, 4))
    assert on_one > on_four and low < on_one / (4 * on_four) < high


def test_one_call_for_all_rounds_is_estimated_as_one_longer_round(composer):
    """Without dynamic sampling a step has one round, and takes as long as in rounds; two rounds have twice the sequences."""
    for algo, rounds in (("grpo", 1.0), ("dapo", 2.0)):
        in_rounds, at_once = (
            composer.point([*LARGE, "peft=lora", f"algo={algo}", f"rollout.continuous={continuous}"]).cfg
            for continuous in ("false", "true")
        )
        model, gpu, lengths = architecture(at_once), gpu_of(at_once), timing.assumed_lengths(at_once)
        assert lengths.rounds == rounds
        of_rounds, of_call = (timing.step_s(cfg, model, gpu, lengths) for cfg in (in_rounds, at_once))
        twice = at_once | {"batch_size": int(rounds * at_once["batch_size"])}
        assert of_call - of_rounds == pytest.approx(
            timing.rollout_s(twice, model, gpu, lengths) - rounds * timing.rollout_s(in_rounds, model, gpu, lengths)
        )


def test_a_grid_of_one_shape_is_one_row(composer, tmp_path):
    points = [
        composer.point([*LARGE, "cluster=slurm", f"seed={seed}", f"lr={lr}", f"runs_dir={tmp_path}"])
        for seed in (1, 2, 3)
        for lr in ("1e-5", "1e-6")
    ]
    text = printed(points)
    assert text.count("   6  r1_qwen_1_5b LoRA r=32 DAPO") == 3  # GPU memory, host memory and time
    assert "GPU-hours in all" in text and "s/step on 1" in text and "s/step on 4" in text


def test_without_gpus_no_estimates_are_printed(composer, tmp_path):
    assert printed([composer.point([f"runs_dir={tmp_path}"])]) == ""
    on_cpus = ["cluster=slurm", "distributed=ddp", "training.per_device_batch_size=8", "cluster.train.gpus_per_node=0"]
    assert printed([composer.point([*on_cpus, f"runs_dir={tmp_path}"])]) == ""
    assert printed([composer.point(["cluster=slurm", "cluster.gpu=null", f"runs_dir={tmp_path}"])]) == ""


def write_finished_run(composer, folder, device, step_s, *overrides, completion=8000.0):
    """Write the files of a finished training with a given device, pace and completion length; return its configuration."""
    cfg = composer.point([*overrides, f"runs_dir={folder}"]).cfg
    run = Run.of(cfg)
    run.prepare(cfg)
    write_json(run.record_path, {"surroundings": {"device": device}})
    row = {"rollout_s": 0.75 * step_s, "reward_s": 0.0, "update_s": 0.25 * step_s, "completion_tokens_mean": completion,
           "sampling_rounds": 2}  # fmt: skip
    run.metrics_path.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in range(1, 6)))
    run.finish("train", cfg, 5 * step_s)
    return cfg


def test_measured_times_replace_or_scale_the_estimate(composer, tmp_path):
    """A run of the same shape replaces the estimate, also on a CPU; a run of another method scales it."""
    write_finished_run(composer, tmp_path, None, 0.5, "seed=7")
    write_finished_run(composer, tmp_path, "NVIDIA H100 80GB HBM3", 500.0, *LARGE, "peft=lora", "seed=7")
    same = printed([composer.point([f"runs_dir={tmp_path}", "lr=1e-4"])])
    assert "measured (1 run)" in same and "0.5" in same
    assert "measured" not in printed([composer.point([f"runs_dir={tmp_path}", "peft=dora"])])
    assert "measured (1 run)" in printed([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    dora_point = composer.point([*LARGE, "peft=dora", f"runs_dir={tmp_path}"])
    (estimate,) = estimates.estimates_by_shape(make_plan([dora_point], retry=False), measure=True)
    seconds, source = estimate.step_time(dora_point.cfg)
    lengths = timing.Lengths(8000.0, 2)
    lora, dora = (
        timing.step_s(composer.point([*LARGE, f"peft={peft}"]).cfg, estimate.model, estimate.gpu, lengths)
        for peft in ("lora", "dora")
    )
    assert seconds == pytest.approx(500.0 * dora / lora) and source.startswith("estimated ×")


def test_the_estimate_for_one_gpu_uses_the_runs_measured_on_four(composer, tmp_path):
    """Lengths and the time model's error come from the runs on four GPUs, so that both columns assume the same completions."""
    write_finished_run(composer, tmp_path, "NVIDIA H100 80GB HBM3", 368.0, *LARGE, "peft=lora", "seed=7", completion=4000.0)
    point = composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])
    (estimate,) = estimates.estimates_by_shape(make_plan([point], retry=False), measure=True)
    cfg = estimate.cfg
    one_gpu, lengths = timing.on_gpus(cfg, 1), timing.Lengths(4000.0, 2)
    assert estimate.lengths(one_gpu) == estimate.lengths(cfg) == lengths
    on_one, on_four = (timing.step_s(layout, estimate.model, estimate.gpu, lengths) for layout in (one_gpu, cfg))
    assert estimate.step_time(one_gpu)[0] == pytest.approx(368.0 * on_one / on_four)
    assert estimate.step_time(cfg)[0] == 368.0


def test_a_run_on_another_gpu_has_another_shape(composer, tmp_path):
    cfg = write_finished_run(composer, tmp_path, "NVIDIA A100-SXM4-80GB", 900.0, *LARGE)
    paces = measured.read_paces([str(tmp_path)])
    assert measured.shape(cfg, "a100") in paces.by_shape and measured.shape(cfg, "h100") not in paces.by_shape


def test_with_rollout_lag_a_step_takes_half_of_two(composer, tmp_path):
    """Only the first step of two samples; a run without lag has another shape."""
    lagged = (*LARGE, "peft=lora", "rollout.lag=1")
    cfg = write_finished_run(composer, tmp_path, "NVIDIA H100 80GB HBM3", 100.0, *lagged)
    run = Run.of(cfg)
    rows = read_rows(run.metrics_path)
    for row in rows[1::2]:
        row["rollout_s"] = 0.0
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paces = measured.read_paces([str(tmp_path)])
    (pace,) = paces.by_shape[measured.shape(cfg, "h100")]
    assert pace.step_s == pytest.approx((100.0 + 25.0) / 2)
    assert measured.shape(composer.point([*LARGE, "peft=lora"]).cfg, "h100") not in paces.by_shape
    assert measured.over_calls([9.0, 1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0] and measured.over_calls([9.0], 2) == [9.0]


def test_gpus_are_identified_by_driver_name(composer):
    assert gpu_by_driver_name("NVIDIA H100 80GB HBM3").name == "h100"
    assert gpu_by_driver_name("NVIDIA A100-SXM4-40GB").name == "a100_40gb"
    # The PCIe and NVL variants have two thirds of the SXM part's peak and another memory size.
    for unknown in ("Tesla T4", None, "NVIDIA H100 PCIe", "NVIDIA H100 NVL"):
        assert gpu_by_driver_name(unknown) is None
    with pytest.raises(Refused, match="h100, h200"):
        gpu_of(composer.point(["cluster.gpu=h1000"]).cfg)


def test_every_method_has_an_activation_constant(composer):
    kinds = {activation_kind(composer.point([f"peft={name}"]).cfg["peft"]) for name in choices("peft")}
    unmeasured = {"deft", "glora", "loha", "peanut", "road", "supertuning", "vblora", "waveft"}
    measured_kinds = constants()["activations"]
    assert kinds - set(measured_kinds) == {"shira", "tinylora", "unilora"} | unmeasured  # all use `other`
    for key in ("checkpointed", "kept"):
        assert measured_kinds["other"][key] == max(kind[key] for kind in measured_kinds.values())


def test_vllm_without_a_gpu_is_refused(composer, tmp_path, monkeypatch):
    plan = make_plan([composer.point(["rollout=vllm", f"runs_dir={tmp_path}"])], retry=False)
    with pytest.raises(Refused, match="rollout=hf"):
        refuse_vllm_without_gpu(plan, [])
    refuse_vllm_without_gpu(make_plan([composer.point(["rollout=vllm", "peft=none"])], retry=False), [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # vLLM is installed
    asleep = make_plan([composer.point(["rollout=vllm", "rollout.sleep=true", f"runs_dir={tmp_path}"])], retry=False)
    with pytest.raises(Refused, match=r"rollout\.sleep=true needs a GPU"):
        refuse_vllm_without_gpu(asleep, [])


def test_the_longest_run_starts_first(composer, tmp_path):
    def order(*points):
        plan = make_plan([composer.point([*overrides, f"runs_dir={tmp_path}"]) for overrides in points], retry=False)
        return [planned.cfg["seed"] for planned in estimates.longest_first(plan)]

    assert order(["seed=1"], ["seed=2", "steps=90"], ["seed=3", "peft=full"], ["seed=4", "peft=none"]) == [2, 3, 1, 4]
    write_finished_run(composer, tmp_path, None, 9.0, "seed=7")  # LoRA's time is known, full fine-tuning's is not
    assert order(["seed=1"], ["seed=3", "peft=full"]) == [3, 1]
    write_finished_run(composer, tmp_path, None, 0.5, "seed=7", "peft=full")
    assert order(["seed=3", "peft=full"], ["seed=1"], ["seed=2", "steps=5"]) == [1, 2, 3]
    started = Run.of(composer.point(["seed=1", f"runs_dir={tmp_path}"]).cfg)
    started.path.mkdir()
    started.metrics_path.write_text('{"step": 58}\n')  # two of 60 steps are left
    assert order(["seed=3", "peft=full"], ["seed=1"], ["seed=2", "steps=5"]) == [2, 3, 1]


def test_a_smaller_run_starts_before_a_run_that_needs_more_gpus_than_are_free(composer):
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
    with pytest.raises(Refused, match="where the site shares GPUs"):
        composer.point([*shared, "cluster.runs_per_gpu=2", "cluster=slurm"])


TWO_WITH_VLLM = [*LARGE, "peft=lora", "distributed=single", "training.per_device_batch_size=1", "cluster.runs_per_gpu=2",
                 "rollout.vllm.gpu_memory_utilization=0.5"]  # fmt: skip


def test_two_runs_with_vllm_share_a_gpu_where_they_fit(composer, tmp_path):
    estimates.refuse_unfit(make_plan([composer.point([*TWO_WITH_VLLM, f"runs_dir={tmp_path}"])], retry=False))
    with pytest.raises(Refused, match=r"cluster\.runs_per_gpu=2 runs share it") as refused:
        cfg = composer.point([*TWO_WITH_VLLM, "training.per_device_batch_size=4", f"runs_dir={tmp_path}"])
        estimates.refuse_unfit(make_plan([cfg], retry=False))
    fitting = str(refused.value).partition("This fits: ")[2].rstrip(".").split()
    estimates.refuse_unfit(make_plan([composer.point([*TWO_WITH_VLLM, *fitting, f"runs_dir={tmp_path}"])], retry=False))


def test_an_engine_beside_another_gets_the_kv_cache_that_the_plan_counts(composer):
    cfg = composer.point(TWO_WITH_VLLM).cfg
    gpu, settings = gpu_of(cfg), cfg["rollout"]["vllm"]
    shared = shared_engine(cfg, settings, gpu.memory_gib)
    assert shared["gpu_memory_utilization"] == 0.25 and shared["max_num_batched_tokens"] == 4096
    assert shared["kv_cache_memory_bytes"] == int(footprint(cfg, architecture(cfg), gpu).parts["KV cache"])
    weights = BASE * 2 + constants()["vllm_rest_gib"] * GIB
    assert shared["kv_cache_memory_bytes"] == pytest.approx(0.25 * gpu.memory_gib * GIB - weights, rel=1e-9)
    evaluation = shared_engine(cfg, {}, gpu.memory_gib)
    assert evaluation["gpu_memory_utilization"] == 0.45
    without_gpu = {"enforce_eager": True, "max_num_batched_tokens": 16384, "kv_cache_memory_bytes": 2**29}
    assert shared_engine(cfg, settings, None) == settings | without_gpu
    assert shared_engine(cfg, settings | {"kv_cache_memory_bytes": 5}, None)["kv_cache_memory_bytes"] == 5
    alone = composer.point([*TWO_WITH_VLLM, "cluster.runs_per_gpu=1"]).cfg
    assert shared_engine(alone, settings, gpu.memory_gib) == settings
    with pytest.raises(Refused, match="which its weights fill"):
        shared_engine(cfg, settings, 16.0)
    unknown = composer.point([*TWO_WITH_VLLM, "model.architecture.model_type=unknown"]).cfg
    with pytest.raises(Refused, match=r"cluster\.runs_per_gpu=2 with vLLM needs a model"):
        shared_engine(unknown, settings, gpu.memory_gib)


def test_two_runs_on_a_gpu_cost_less_than_two_alone_and_take_longer(composer):
    two, one = composer.point(TWO_WITH_VLLM).cfg, composer.point([*TWO_WITH_VLLM, "cluster.runs_per_gpu=1"]).cfg
    model, gpu = architecture(two), gpu_of(two)
    lengths = timing.assumed_lengths(two)
    seconds = {name: timing.step_s(cfg, model, gpu, lengths) for name, cfg in (("two", two), ("one", one))}
    assert seconds["two"] > 1.35 * seconds["one"]  # each has a smaller KV cache too
    hours = {name: timing.gpu_hours(cfg, model, gpu, seconds[name]) for name, cfg in (("two", two), ("one", one))}
    assert 0.5 < hours["two"] / hours["one"] < 1


def test_with_sleep_vllm_and_the_update_do_not_hold_memory_at_the_same_time(composer):
    awake, asleep = footprint_of(composer), footprint_of(composer, "rollout.sleep=true")
    assert sum(asleep.parts.values()) == pytest.approx(sum(awake.parts.values()))
    state = sum(asleep.parts[part] for part in ("weights", "adapter", "gradients and optimizer", "rest"))
    update = asleep.parts["logits"] + asleep.parts["activations"]
    rollout = asleep.parts["vLLM's weights"] + asleep.parts["KV cache"]
    assert asleep.peak == state + max(update, rollout) < awake.peak


def test_measured_constants_replace_the_estimates_of_their_gpu(composer, tmp_path, monkeypatch):
    points = {
        name: composer.point([*LARGE, f"cluster.gpu={name}", "peft=lora", "rollout.continuous=false", f"runs_dir={tmp_path}"])
        for name in ("h100", "h200")
    }

    def step(name):
        (estimate,) = estimates.estimates_by_shape(make_plan([points[name]], retry=False), measure=True)
        assert f"time of one run; {estimate.basis}" in printed([points[name]])
        return estimate.step_time(points[name].cfg)[0], estimate.basis

    before = {name: step(name) for name in points}
    assert before["h100"][1] == "estimated: from the data sheet of H100, ± 50 %"
    entry = {"date": "2026-12-01", "machine": "NVIDIA H100 80GB HBM3", "decode_overhead_s": 0.014}
    monkeypatch.setitem(constants(), "measured", {"h100": entry})
    seconds, source = step("h100")
    assert source == "estimated: from constants measured on NVIDIA H100 80GB HBM3, 2026-12-01, ± 25 %"
    # 7 ms more for each pass of both rounds, which have as many passes as the longest completion has tokens.
    assert seconds - before["h100"][0] == pytest.approx(2 * 16384 * 0.007, rel=1e-6)
    assert step("h200") == before["h200"]


def test_a_stored_configuration_without_pass_settings_counts_as_padded(composer, tmp_path):
    """A run whose steps were padded to the longest completion is no measurement of a run whose steps are cut by length."""
    cfg = write_finished_run(composer, tmp_path, "NVIDIA H100 80GB HBM3", 500.0, *LARGE, "peft=lora", "seed=7")
    assert "measured (1 run)" in printed([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    run = Run.of(cfg)
    for key in ("micro_batches", "log_probabilities"):
        del cfg["training"][key]
    del cfg["peft"]["factored_norm"]
    write_text(run.config_path, as_yaml(cfg))
    run.parsed_path.unlink(missing_ok=True)
    assert "measured (1 run)" not in printed([composer.point([*LARGE, "peft=lora", f"runs_dir={tmp_path}"])])
    padded = ("training.micro_batches=equal", "training.log_probabilities=twice", "peft.factored_norm=false")
    assert "measured (1 run)" in printed([composer.point([*LARGE, "peft=lora", *padded, f"runs_dir={tmp_path}"])])
