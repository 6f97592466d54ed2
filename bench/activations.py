"""Measure the bytes of activations per token and method at the peak of a training step, the values of conf/hardware.yaml.

    python bench/activations.py

It runs TRL's loss on transformers' layers with PEFT's adapters at the widths of the 1.5B. Tensors are fake: allocations are
counted and not made, so neither a GPU nor much memory is needed. The difference between two lengths gives bytes per token, and
cancels what does not grow with tokens: bfloat16 copies of weights and the tiles of logits.
"""

import sys
import warnings
import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlvr_sweeps.assets.architecture import activation_kind
from rlvr_sweeps.config.compose import offline_composer
from rlvr_sweeps.training.methods.adapters import attach

METHODS = ("full", "lora", "dora", "adalora", "miss", "vera", "ia3", "ln_tuning", "hra", "oft", "randlora")
HIDDEN, WIDTHS = 1536, {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}  # of the 1.5B
LAYERS, ROWS, VOCABULARY, RESIDUAL = (
    2,
    4,
    32,
    4,
)  # RESIDUAL: bytes per entry of the float32 residual stream, which checkpointing stores
LENGTHS = (4096, 8192)  # tokens per sequence


class MemoryCounter(TorchDispatchMode):
    """Count the bytes of all allocated storages: `current` and the highest value, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: dict[int, int] = {}  # bytes by storage
        self.current = self.peak = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and add the storages of its results that are new."""
        out = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.allocated:
                self.allocated[key] = storage.nbytes()
                self.current += self.allocated[key]
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self.subtract, key)
        return out

    def subtract(self, key: int) -> None:
        """Subtract a storage that was freed."""
        self.current -= self.allocated.pop(key)


def peak_bytes(method: dict[str, Any], length: int, layers: int, checkpointing: bool) -> int:
    """Return the peak bytes beyond weights and gradients in a forward and backward pass over ROWS sequences."""
    counter = MemoryCounter()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        config = AutoConfig.for_model(
            "qwen2", hidden_size=HIDDEN, vocab_size=VOCABULARY, num_hidden_layers=layers, use_cache=False, **WIDTHS
        )
        base = AutoModelForCausalLM.from_config(config)
        add_fused_lm_head(base, outputs=("log_probs", "entropy"))
        model = attach(base, method, 0).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        for _ in range(2):  # the second pass is measured: gradients are allocated, as in every pass of a step but its first
            ids = torch.zeros(ROWS, length, dtype=torch.long)
            counter.peak = before = counter.current
            with torch.autocast("cpu", torch.bfloat16):
                out = model(input_ids=ids, labels=ids, fused_lm_head=True)
            loss = out.log_probs.sum()
            del out
            loss.backward()
            del loss
    return counter.peak - before


def bytes_per_token(method: dict[str, Any], layers: int, checkpointing: bool) -> float:
    """Return the growth of the peak per token.

    At these lengths activations exceed the gradient of a weight. There is no padding, so no attention mask.
    """
    short, long = (peak_bytes(method, length, layers, checkpointing) for length in LENGTHS)
    return (long - short) / (ROWS * (LENGTHS[1] - LENGTHS[0]))


def main() -> None:
    """Print the bytes of each method, with and without checkpointing."""
    warnings.simplefilter("ignore")
    torch.nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]  # PEFT moves weights; fake tensors cannot be moved
    torch.nn.functional.dropout = lambda x, p, training, _: torch.native_dropout(x, p, training)[0]  # as on a GPU: a bool mask
    composer = offline_composer()
    print("method       checkpointed  kept    bytes per token, layer and unit of width (hidden + intermediate)")
    width = HIDDEN + WIDTHS["intermediate_size"]
    for name in sys.argv[1:] or METHODS:
        method = composer.point(["model=r1_qwen_1_5b", "rollout=hf", f"peft={name}"]).cfg["peft"]
        checkpointed = bytes_per_token(method, LAYERS, True) - LAYERS * RESIDUAL * HIDDEN
        kept = bytes_per_token(method, LAYERS + 1, False) - bytes_per_token(method, LAYERS, False)
        print(f"{activation_kind(method):12}{checkpointed / width:13.1f}{kept / width:6.1f}", flush=True)


if __name__ == "__main__":
    main()
