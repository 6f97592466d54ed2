"""Test that weights are read straight onto the device of their process: the limits are on the memory of a real process."""

import subprocess
import sys

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.conftest import ROOT

LOAD = """
import resource, sys, torch
import transformers.models.qwen2.modeling_qwen2
from rlvr_sweeps.training.models import load_weights
folder, device, limit = sys.argv[1], torch.device(sys.argv[2]), int(sys.argv[3])
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
model = load_weights(folder, device)
print({(parameter.device.type, parameter.dtype) for parameter in model.parameters()})
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a model of 23 million parameters in bfloat16, 47 MB; return its folder and the bytes of its float32 weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Qwen2Config(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=4096, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder, 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("device", "copies", "is_loaded"),
    [
        # The float32 weights once, and half of that for the file, which is mapped privately.
        pytest.param("cpu", 1.9, True, marks=pytest.mark.exhaustive),
        pytest.param("cpu", 0.9, False, marks=pytest.mark.exhaustive),  # the limit has an effect
        ("meta", 0.9, True),  # a device that is not the host's, as a GPU is: the mapped file, and single tensors
    ],
)
def test_the_host_holds_weights_once_on_the_cpu_and_never_for_another_device(checkpoint, device, copies, is_loaded):
    folder, size = checkpoint
    command = [sys.executable, "-c", LOAD, folder, device, str(int(copies * size))]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode == 0) == is_loaded, process.stderr
    if is_loaded:
        assert process.stdout.strip() == f"{{('{device}', torch.float32)}}"


def test_a_process_without_a_gpu_loads_onto_the_cpu():
    from rlvr_sweeps.training.models import own_device

    if torch.cuda.is_available():
        assert own_device() == torch.device("cuda", 0)
    else:
        assert own_device() == torch.device("cpu")
