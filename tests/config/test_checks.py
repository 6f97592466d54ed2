"""Test that invalid settings are refused before anything runs, by a message with the value and what is allowed."""

import re

import pytest

from rlvr_sweeps.config.compose import refuse_unknown_settings
from rlvr_sweeps.errors import Refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("rank=0", "a whole number from 1"),
        ("lr=0", "above 0"),
        ("lr=nan", "lr=nan"),
        ("lr=inf", "lr=inf"),
        ("dropout=1", "from 0 up to"),
        ("steps=0", "steps=0"),
        ("seed=-1", "seed=-1"),
        ("batch_size=60", "56 and 64"),
        ("batch_size=72 training.per_device_batch_size=64", "training.per_device_batch_size=36"),
        ("batch_size=24 distributed=ddp distributed.processes=2 training.per_device_batch_size=12", "16 and 32; or use fewer"),
        ("distributed=zero2_offload distributed.deepspeed.torch_autocast.enabled=true", "accelerate switches autocast"),
        ("training.per_device_batch_size=0", "training.per_device_batch_size=0"),
        ("rollout.group_size=1", "at least 2"),
        ("peft=full rank=8", "peft=full has no rank"),
        ("peft=none dropout=0", "peft=none has no dropout"),
        ("peft=ia3 alpha=3", "peft=ia3 has no alpha"),
        ("peft=miss alpha=3", "it takes dropout, modules, rank"),
        ("modules=mlp peft=full", "peft=full has no modules"),
        ("modules=mlp peft=ln_tuning", "peft=ln_tuning has no modules"),
        ("modules=attention peft=vera_qv", "peft=vera_qv has no modules"),
        ("modules=experts", "modules=experts is not possible. Allowed: all, attention, mlp"),
        ("modules=attention model.attention_modules=[query]", "modules=attention selects none of"),
        ("peft=gralora rank=7", "the rank must be a multiple of 2. Set rank=6 or 8"),
        ("peft=lora_orthogonal rank=1", "the rank must be a multiple of 2. Set rank=2"),
        ("peft=lora_ga rank=33", "it takes 2 × rank singular vectors"),
        ("peft=c3a peft.config.block_size=128", "does not divide k_proj, which is 64 × 128. The largest number that"),
        ("peft=road peft.config.group_size=128", "peft.config.group_size=128 with peft=road"),
        ("peft=fourierft peft.config.n_frequency=10000", "exceeds the 8,192 entries"),
        ("peft=unilora training.trl.beta=0.1", "beta=0.1 with peft=unilora"),
        ("algo=none", "peft=none"),
        ("rank=65", "largest rank possible for these targets is 64"),
        ("model=r1_qwen_1_5b rollout=hf distributed=single rank=257", "k_proj, which is 256 × 1536"),
        ("peft.config.target_modules=[lm_head,q_proj]", "targets lm_head"),
        ("peft.config.target_modules=[query]", "has no such layer"),
        ("peft=pissa training.trl.beta=0.1", "beta=0.1 with peft=pissa"),
        ("peft=milora training.trl.beta=0.1", "beta=0.1 with peft=milora"),
        ("peft=adalora training.trl.beta=0.1", "beta=0.1 with peft=adalora"),
        ("peft=adalora distributed=zero2_offload", "PEFT's AdaLoRA crashes"),
        ("peft=adalora rank=1", "rank=2 or more"),
        ("peft=adalora peft.config.tinit=60", "needs steps between"),
        ("rollout=vllm +rollout.vllm.dtype=float16", "rollout.vllm.dtype=float16 cannot be set"),
        ("+rollout.trl.top_k=20", "rollout.trl.top_k is not read"),
        ("+training.trl.generation_kwargs={min_p:0.1}", "training.trl.generation_kwargs is not read"),
        ("rollout=vllm +rollout.trl.vllm_enable_sleep_mode=true", "vllm_enable_sleep_mode is not read"),
        ("rollout.sleep=true", "rollout.sleep=true needs rollout=vllm"),
        ("rollout=vllm rollout.sleep=true rollout.sync=adapter", "sleep discards the base's weights"),
        ("rollout=vllm +rollout.trl.vllm_tensor_parallel_size=2", "vllm_tensor_parallel_size is not read"),
        ("rollout=vllm rollout.trl.vllm_mode=server", "Allowed: colocate"),
        ("rollout.continuous=true", "needs vLLM, and rollout.engine is hf"),
        ("rollout.lag=1", "rollout.lag=1 needs rollout=vllm"),
        ("rollout=vllm rollout.lag=2", "Allowed: 0, 1"),
        ("rollout=vllm rollout.lag=1 rollout.continuous=false", "Use rollout.continuous=true"),
        ("rollout=vllm rollout.lag=1 rollout.trl.vllm_importance_sampling_correction=false", "needs the importance correction"),
        ("rollout=vllm rollout.lag=1 training.trl.num_iterations=2", "Use one of the two"),
        ("rollout=vllm rollout.sync=lora", "Allowed: merged, adapter"),
        ("rollout=vllm rollout.sync=adapter peft=dora", "rollout.sync=adapter with peft=dora"),
        ("rollout=vllm rollout.sync=adapter peft=pissa", "rollout.sync=adapter with peft=pissa"),
        ("rollout=vllm rollout.sync=adapter peft=olora", "rollout.sync=adapter with peft=olora"),
        ("rollout=vllm rollout.sync=adapter peft=full", "rollout.sync=adapter with peft=full"),
        ("+model.colour=red", "colour"),
        ("+sweeps=rank", "sweeps"),
        ("data.path=${nowhere}", "cannot be resolved"),
        ("data=any_task", "not set: data.task. Add data.task=VALUE."),
        ("model=local", "not set: model.name, model.path, data.path, benchmark.local.path, rollout.max_tokens."),
        ("signal_check=stpo", "signal_check=stpo is not possible. Allowed: stop, warn, off."),
        ("training.samples_per_step=-1", "Allowed: a whole number from 0"),
        ("cluster.threads=0", "Allowed: a whole number from 1; null"),
    ],
)
def test_an_invalid_setting_is_refused(composer, overrides, message):
    with pytest.raises(Exception, match=re.escape(message)):
        composer.point(overrides.split())


@pytest.mark.parametrize(
    ("argument", "suggestion"), [("rnak=8", "rank"), ("learning_rate=1", "lr"), ("peff=lora", "peft"), ("+lrr=3", "lr")]
)
def test_a_misspelt_setting_is_refused_with_the_nearest_name(argument, suggestion):
    with pytest.raises(Refused, match=suggestion):
        refuse_unknown_settings([argument, "-m"])


@pytest.mark.parametrize("argument", ["runs_dir=/shared/über", "peft=lora,{dora", "runs_dir=/a(b"])
def test_an_override_that_hydra_cannot_read_is_refused_with_the_quoted_one(argument):
    key, _, value = argument.partition("=")
    with pytest.raises(Refused, match=re.escape(f"\"{key}='{value}'\"")):
        refuse_unknown_settings([argument])
    refuse_unknown_settings([f"{key}='{value}'"])


def test_known_settings_are_accepted():
    refuse_unknown_settings(
        ["-m", "peft=dora,lora", "training.trl.optim=sgd", "hydra.launcher.workers=1", "+algo.trl.delta=2", "--multirun"]
    )


def test_a_missing_local_path_is_refused(composer):
    from rlvr_sweeps.assets.locations import refuse_missing

    with pytest.raises(Refused, match="does not exist"):
        refuse_missing([composer.point(["model.path=/no/such/model"]).cfg])
    refuse_missing([composer.point([]).cfg])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed=ddp", "distributed.processes=4", "cluster.train.nodes=3"], "4 do not fit cluster.train.nodes=3"),
        (["cluster.train.gpus_per_node=2"], "with 2 GPUs each"),
        (["cluster.evaluate.nodes=2"], "share one node"),
    ],
)
def test_resources_that_do_not_match_the_processes_are_refused(composer, overrides, message):
    with pytest.raises(Refused, match=message):
        composer.point(["cluster=slurm", "training.per_device_batch_size=8", *overrides])


def test_gpus_per_node_follow_from_processes_and_nodes(composer):
    four_processes = ["distributed=ddp", "distributed.processes=4", "training.per_device_batch_size=8"]
    cluster = composer.point(["cluster=slurm", "cluster.train.nodes=2", *four_processes]).cfg["cluster"]
    assert (cluster["train"]["gpus_per_node"], cluster["evaluate"]["gpus_per_node"]) == (2, 4)
