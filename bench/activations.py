"""Bytes of activations per token, method by method, at the peak of a real step: what conf/hardware.yaml states.

    python bench/activations.py

TRL's loss on transformers' layers with PEFT's adapters, on the true widths and with fake tensors: every allocation happens in
the books alone, so no GPU and no memory is needed. Two lengths give bytes per token: bfloat16 copies of weights and the
logits' tiles do not grow with tokens and drop out.
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
HIDDEN, WIDTHS = 1536, {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}  # the 1.5B's
LAYERS, ROWS, VOCABULARY, RESIDUAL = 2, 4, 32, 4  # RESIDUAL: bytes of the stream that checkpoints keep, float32

LENGTHS = (4096, 8192)


class Books(TorchDispatchMode):
    """What is alive, in bytes, and the most that ever was."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.alive:
                self.alive[key] = storage.nbytes()
                self.now += self.alive[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, key)
        return out

    def freed(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak(method: dict[str, Any], length: int, layers: int, checkpointing: bool) -> int:
    """Bytes above weights and gradients at the peak of a forward and backward pass over ROWS sequences."""
    books = Books()
    with FakeTensorMode(allow_non_fake_inputs=True), books:
        config = AutoConfig.for_model(
            "qwen2", hidden_size=HIDDEN, vocab_size=VOCABULARY, num_hidden_layers=layers, use_cache=False, **WIDTHS
        )
        base = AutoModelForCausalLM.from_config(config)
        add_fused_lm_head(base, outputs=("log_probs", "entropy"))
        model = attach(base, method, 0).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        for _ in range(2):  # the second finds the gradients there, as all but the first micro-batch do
            ids = torch.zeros(ROWS, length, dtype=torch.long)
            books.peak = before = books.now
            with torch.autocast("cpu", torch.bfloat16):
                out = model(input_ids=ids, labels=ids, fused_lm_head=True)
            loss = out.log_probs.sum()
            del out
            loss.backward()
            del loss
    return books.peak - before


def per_token(method: dict[str, Any], layers: int, checkpointing: bool) -> float:
    """Growth of the peak with tokens, at lengths where activations outweigh a weight's gradient; no padding, so no mask."""
    short, long = (peak(method, length, layers, checkpointing) for length in LENGTHS)
    return (long - short) / (ROWS * (LENGTHS[1] - LENGTHS[0]))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]  # PEFT moves weights, fake ones cannot be swapped
    torch.nn.functional.dropout = lambda x, p, training, _: torch.native_dropout(x, p, training)[0]  # a GPU's: its mask is bool
    composer = offline_composer()
    print("method       checkpointed  kept    in bytes per token, layer and unit of width (hidden + intermediate)")
    width = HIDDEN + WIDTHS["intermediate_size"]
    for name in sys.argv[1:] or METHODS:
        method = composer.point(["model=r1_qwen_1_5b", "rollout=hf", f"peft={name}"]).cfg["peft"]
        checkpointed = per_token(method, LAYERS, True) - LAYERS * RESIDUAL * HIDDEN
        kept = per_token(method, LAYERS + 1, False) - per_token(method, LAYERS, False)
        print(f"{activation_kind(method):12}{checkpointed / width:13.1f}{kept / width:6.1f}", flush=True)


if __name__ == "__main__":
    main()
