"""Test with vLLM on the CPU that the sampler equals every method's policy after every sync and that differences are refused."""

import gc
import json
import random

import numpy as np
import pytest
import torch

from tests.conftest import methods
from tests.training.test_merging import adapted

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from vllm import SamplingParams, TokensPrompt  # noqa: E402

from rlvr_sweeps import patches  # noqa: E402
from rlvr_sweeps.assets.problems import load_problems, prompt_ids  # noqa: E402
from rlvr_sweeps.errors import Refused  # noqa: E402
from rlvr_sweeps.grading.grader import grade_all  # noqa: E402
from rlvr_sweeps.training.methods.reach import reach, update_kept  # noqa: E402
from rlvr_sweeps.training.models import load_model, published_weights  # noqa: E402
from rlvr_sweeps.training.sampler_agreement import (  # noqa: E402
    differing,
    gap,
    mismatch,
    refuse_disagreement,
    refuse_sampling_gap,
    sampler_weights,
    sampling_gap,
)
from rlvr_sweeps.training.seeded_sampling import sample, seed_of  # noqa: E402
from rlvr_sweeps.training.weight_rounding import rounding_of  # noqa: E402

WITH_SEPARATE_ADAPTER = ("lora", "rslora", "lora_plus", "lora_fa")
ON_CPU = (
    "rollout=vllm", "+rollout.vllm.kv_cache_memory_bytes=67108864", "rollout.vllm.enforce_eager=true",
    "rollout.vllm.max_num_batched_tokens=16384",
)  # fmt: skip


@pytest.fixture(scope="module")
def engines(composer):
    """Yield a function that returns a VllmRollouts on the embedded model for a value of rollout.sync.

    All tests of this module share it and set its `model`.
    """
    from accelerate import Accelerator

    from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

    by_sync = {}

    def get(sync):
        if sync not in by_sync:
            cfg = composer.point([*ON_CPU, f"rollout.sync={sync}"]).cfg
            model, tokenizer = load_model(cfg)
            by_sync[sync] = VllmRollouts(
                cfg, model=model, accelerator=Accelerator(cpu=True), processing_class=tokenizer, temperature=1.0, top_p=1.0,
                max_completion_length=cfg["rollout"]["max_tokens"],
            )  # fmt: skip
        return by_sync[sync]

    yield get
    by_sync.clear()
    gc.collect()


@pytest.fixture(scope="module")
def engine_in_bfloat16(composer):
    """Return a VllmRollouts on the embedded model that holds and computes in bfloat16."""
    from accelerate import Accelerator

    from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

    cfg = composer.point([*ON_CPU, "rollout.weights=stochastic"]).cfg
    model, tokenizer = load_model(cfg)
    return VllmRollouts(
        cfg, model=model, accelerator=Accelerator(cpu=True), processing_class=tokenizer, temperature=1.0, top_p=1.0,
        max_completion_length=cfg["rollout"]["max_tokens"], max_num_seqs=64,
    )  # fmt: skip


@pytest.fixture
def embedded(composer):
    """Return a copy of the embedded model, its tokenizer, 64 problems and their prompts."""
    cfg = composer.point([]).cfg
    model, tokenizer = load_model(cfg)
    problems = load_problems(cfg["data"])[:64]
    return model, tokenizer, problems, [prompt_ids(tokenizer, problem, None) for problem in problems]


def policy_of(name, model, composer):
    """Return the model with the method applied and its trained parameters changed."""
    if name == "full":
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        return model
    return adapted(model, composer, name)


@pytest.mark.parametrize("name", methods())
def test_sampler_and_trainer_agree_after_every_sync(engines, embedded, composer, name):
    model, _, _, prompts = embedded
    text = prompts[0] + prompts[1]
    sampler = engines("merged")
    sampler.model = model
    sampler.sync_weights()
    sampler.model = policy = policy_of(name, model, composer)
    assert gap(policy, sampler, text) > 1e-3, "before the sync the engine has the base's weights"
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    for _ in range(50):
        sampler.sync_weights()
    assert gap(policy, sampler, text) < 1e-5
    assert list(differing(sampler)) == []
    assert all(torch.equal(value, policy.state_dict()[key]) for key, value in before.items())
    ids, scores = sampler.sample(prompts[:4], [1, 2, 3, 4], [0])
    for prompt, completion, sampled in zip(prompts, ids, scores, strict=False):
        log_probabilities = torch.log_softmax(policy(torch.tensor([prompt + completion])).logits[0].float(), -1)
        expected = log_probabilities[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]
        error = (torch.tensor(sampled) - expected).abs()
        assert error.mean() < 1e-5 and error.max() < 5e-5


def test_sleep_on_a_cpu_is_refused_with_the_reason(embedded, composer):
    from accelerate import Accelerator

    from rlvr_sweeps.training.vllm_rollouts import VllmRollouts

    model, tokenizer, *_ = embedded
    with pytest.raises(Refused, match=r"rollout\.sleep=true needs a GPU: vLLM releases GPU memory"):
        VllmRollouts(
            composer.point([*ON_CPU, "rollout.sleep=true"]).cfg, model=model, accelerator=Accelerator(cpu=True),
            processing_class=tokenizer, enable_sleep_mode=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", WITH_SEPARATE_ADAPTER)
def test_an_engine_with_a_separate_adapter_is_the_same_policy(engines, embedded, composer, name):
    model, _, _, prompts = embedded
    separate, merged = engines("adapter"), engines("merged")
    separate.model = merged.model = policy = policy_of(name, model, composer)
    for is_second in (False, True):  # the second adapter replaces the first
        if is_second:
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(-1.5)
        separate.sync_weights()
        merged.sync_weights()
        assert gap(policy, separate, prompts[0] + prompts[1]) < 1e-5
        assert separate.sample(prompts[:8], range(8), [0])[0] == merged.sample(prompts[:8], range(8), [0])[0]
    assert list(differing(separate)) == []


@pytest.mark.parametrize("name", ["lora", "ia3", "full"])
def test_an_engine_in_bfloat16_has_the_rounded_policy_and_its_loss_is_measured(composer, engine_in_bfloat16, name):
    """The update is small, and the base has bfloat16 values: the nearest values lose most of it, random rounding nothing."""
    cfg = composer.point(["model.rounded_to_bf16=true"]).cfg
    model, published = load_model(cfg)[0], published_weights(cfg)
    text = prompt_ids(load_model(cfg)[1], load_problems(cfg["data"])[0], None)
    sampler, policy = engine_in_bfloat16, slightly_moved(policy_of(name, model, composer), published)
    sampler.model = policy
    kept, gaps = {}, {}
    for weights in ("bfloat16", "stochastic"):
        sampler.rounding = rounding_of(weights, 5)
        sampler.sync_weights()
        assert list(differing(sampler)) == []
        kept[weights] = update_kept(sampler_weights(policy, sampler), published)
        assert kept[weights] == pytest.approx(reach(policy, published, sampler.rounding).kept["all"], rel=1e-6)
        gaps[weights] = gap(policy, sampler, text)
    assert kept["bfloat16"] < 0.6 and 0.8 < kept["stochastic"] < 1.2 and max(gaps.values()) < 0.05
    sampler.rounding = rounding_of("stochastic", 6)  # the next step's: other weights, which the engine does not have yet
    assert len(list(differing(sampler))) > 5


def slightly_moved(policy, published):
    """Return a policy whose trained parameters are moved back towards their start, so that its reach is about 2e-4."""
    with torch.no_grad():
        factor = 2e-4 / reach(policy, published).reach["all"]
        for name, parameter in policy.named_parameters():
            if name in published:  # full fine-tuning
                parameter.copy_(published[name] + factor * (parameter - published[name]))
            elif "ia3" in name:
                parameter.copy_(1 + factor * (parameter - 1))
            elif "lora_B" in name:
                parameter.mul_(factor)
    return policy


def test_a_sampler_that_differs_from_the_policy_is_refused_with_the_tensors_names(engines, embedded, composer):
    model, _, _, prompts = embedded
    sampler = engines("merged")
    sampler.model = policy = policy_of("lora", model, composer)
    sampler.sync_weights()
    text = prompts[0] + prompts[1]
    assert refuse_disagreement(policy, sampler, text, 1e-4) < 1e-5
    fused = sampler.engine_model.get_parameter("model.layers.1.self_attn.qkv_proj.weight")
    with torch.no_grad():
        fused[policy.config.hidden_size :][:4] += 0.5  # k_proj's first rows
    with pytest.raises(Refused, match=r"differ by .* nats per token .*model\.layers\.1\.self_attn\.k_proj\.weight"):
        refuse_disagreement(policy, sampler, text, 1e-4)
    assert [name for name, _ in differing(sampler)] == ["model.layers.1.self_attn.k_proj.weight"]
    sampler.sync_weights()
    with torch.no_grad():
        policy.base_model.model.model.layers[2].mlp.down_proj.lora_B["default"].weight.add_(0.3)  # without a sync
    for tolerance in (1e-4, 1e9):  # weights of an earlier step are an error, however small the difference
        with pytest.raises(Refused, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
            refuse_disagreement(policy, sampler, text, tolerance)


@pytest.mark.parametrize("sync", ["merged", "adapter"])
def test_a_sampler_that_scores_and_samples_differently_is_refused(engines, embedded, composer, sync):
    """vLLM's real sampler gets logits that are too sharp; prompts are scored without it, so the weights' check sees nothing."""
    model, _, _, prompts = embedded
    sampler = engines(sync)
    sampler.model = policy = policy_of("lora", model, composer)
    sampler.sync_weights()
    assert refuse_sampling_gap(sampler, prompts[0], 1e-4) < 1e-5
    hook = patches.vllm_model_runner(sampler.llm).sampler.register_forward_pre_hook(
        lambda _, args, kwargs: (tuple(1.2 * value if isinstance(value, torch.Tensor) else value for value in args),
                                 kwargs | {"logits": 1.2 * kwargs["logits"]} if "logits" in kwargs else kwargs),
        with_kwargs=True,
    )  # fmt: skip
    try:
        assert refuse_disagreement(policy, sampler, prompts[0], 1e-4) < 1e-5
        assert sampling_gap(sampler, prompts[0]) > 0.01
        with pytest.raises(
            Refused, match=r"samples from another distribution .* nats per token .*model runner V1, attention CPU"
        ):
            refuse_sampling_gap(sampler, prompts[0], 1e-4)
    finally:
        hook.remove()
    assert sampling_gap(sampler, prompts[0]) < 1e-5


@pytest.mark.parametrize("sync", ["merged", "adapter"])
def test_a_prefix_cache_that_is_not_emptied_stops_the_run(engines, embedded, composer, sync):
    """An unfinished request holds blocks of the cache, and vLLM only warns."""
    model, _, _, prompts = embedded
    sampler = engines(sync)
    sampler.model = policy_of("lora", model, composer)
    sampler.sync_weights()
    engine = sampler.llm.llm_engine
    held = engine.add_request(
        "held", TokensPrompt(prompt_token_ids=prompts[0]), SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False)
    )
    engine.step()
    try:
        with pytest.raises(RuntimeError, match=r"did not empty its prefix cache \(1 requests are unfinished\).*retry=true"):
            sampler.sync_weights()
    finally:
        while engine.has_unfinished_requests():
            engine.step()
    sampler.sync_weights()
    assert held and sampling_gap(sampler, prompts[0]) < 1e-5


def test_no_call_of_the_engine_changes_the_random_numbers_of_the_process(engines, embedded):
    model, _, _, prompts = embedded
    sampler = engines("merged")
    sampler.model = model
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    sampler.sync_weights()
    sampler.sample(prompts[:4], [1, 2, 3, 4], [0])
    sampling_gap(sampler, prompts[0])
    sampler.score(prompts[0])
    numbers = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(numbers[0], expected[0]) and numbers[1:] == expected[1:]


def test_the_settings_that_vllm_resolved_are_plain_values(engines):
    facts = engines("merged").engine_facts()
    assert json.loads(json.dumps(facts)) == facts
    expected = {
        "model_runner": "V1", "model_runner_class": "vllm.v1.worker.cpu_model_runner.CPUModelRunner",
        "model_class": "vllm.model_executor.models.qwen2.Qwen2ForCausalLM", "attention_backends": ["CPU_ATTN"],
        "dtype": "float32", "quantization": None, "max_num_seqs": 128, "max_num_batched_tokens": 16384, "enforce_eager": True,
        "prefix_caching": True, "cudagraph_mode": "NONE", "logprobs_mode": "processed_logprobs", "sync": "merged",
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected and facts["kv_cache_blocks"] > 1


def test_a_completion_depends_only_on_its_seed(engines, embedded):
    model, _, _, prompts = embedded
    sampler = engines("merged")
    sampler.model = model
    sampler.sync_weights()
    seeds = [seed_of(7, index) for index in range(24)]
    ids, _ = sampler.sample(prompts[:24], seeds, [0])
    reversed_ids, _ = sampler.sample(prompts[:24][::-1], seeds[::-1], [0])
    assert ids == reversed_ids[::-1]
    assert ids[5:9] == sampler.sample(prompts[5:9], seeds[5:9], [0])[0]
    same_prompt, _ = sampler.sample([prompts[0]] * 16, seeds[:16], [0])
    assert len({tuple(row) for row in same_prompt}) > 1


def test_mean_rewards_equal_those_of_transformers_within_their_errors(engines, embedded):
    """Sample 8 completions of each of 64 prompts by either engine: mean rewards differ by less than four standard errors."""
    model, tokenizer, problems, prompts = embedded
    sampler = engines("merged")
    sampler.model = model
    sampler.sync_weights()
    repeated, golds = prompts * 8, [problem.answer for problem in problems] * 8
    seeds = [seed_of(3, index) for index in range(len(repeated))]
    by_vllm, _ = sampler.sample(repeated, seeds, [0])
    by_transformers = sample(
        model, repeated, seeds, max_tokens=sampler.max_completion_length, temperature=1.0, top_p=1.0,
        pad_id=tokenizer.pad_token_id, end_ids=[0],
    )  # fmt: skip
    texts = [tokenizer.batch_decode(ids) for ids in (by_vllm, by_transformers)]
    verdicts = [grade_all(completions, golds, "boxed_after_thinking") for completions in texts]
    rewards = [torch.tensor([float(verdict.correct) for verdict in of_engine]) for of_engine in verdicts]
    assert 0.1 < rewards[0].mean() < 0.9
    by_problem = (rewards[0] - rewards[1]).view(8, 64).mean(0)
    assert abs(by_problem.mean()) < 4 * by_problem.std() / 8


def test_mismatch_against_its_definitions():
    generator = torch.Generator().manual_seed(0)
    sampler = torch.randn(1000, generator=generator) - 3
    assert mismatch(sampler, sampler) == {"sampler_ratio_mean": 1.0, "sampler_ratio_p99": 1.0, "sampler_kl": 0.0}
    # Two biased coins, sampled from q: KL(p‖q) is known.
    p, q = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.5, 0.5]).double()
    draws = torch.bernoulli(torch.full((200_000,), 0.5).double(), generator=generator).long()
    values = mismatch(p.log()[draws], q.log()[draws])
    assert values["sampler_kl"] == pytest.approx(float((p * (p / q).log()).sum()), rel=0.03)
    assert values["sampler_ratio_mean"] == pytest.approx(1, abs=0.01) and values["sampler_ratio_p99"] == pytest.approx(1.4)
