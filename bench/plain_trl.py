"""One GRPO run as a plain TRL script, with TRL's defaults for everything that the recipe leaves open.

bench/quickstart.py, bench/agreement.py and bench/real.py compare it with a run of this project. WORLD is a folder with a model
in model/, train.jsonl, and a test set in each tier*.jsonl.

python bench/plain_trl.py WORLD OUT.json --method lora --algo grpo
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from math_verify import parse, verify
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = {"lora": {}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}
OBJECTIVES = {"dapo_released": {"loss_type": "dapo", "epsilon_high": 0.28}, "grpo": {"loss_type": "grpo"}}


def is_correct(completion, gold):
    """Return whether math-verify finds the answer after </think> equal to `gold`; False without </think>."""
    if "</think>" not in completion:
        return False
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(completion.rpartition("</think>")[2])))


def reward(completions, answer, **_):
    """Return TRL's rewards of a batch: 1.0 for a correct completion, else 0.0."""
    return [float(is_correct(completion[0]["content"], gold)) for completion, gold in zip(completions, answer, strict=True)]


def read_rows(path):
    """Return the rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(model, tokenizer, world, k=8, batch=256):
    """Return Avg@k by tier, sampled at temperature 0.6 and top-p 0.95 with at most 72 tokens."""
    model.eval()
    averages = {}
    for path in sorted(world.glob("tier*.jsonl")):
        requests = [row for row in read_rows(path) for _ in range(k)]
        correct = 0
        for start in range(0, len(requests), batch):
            rows = requests[start : start + batch]
            chats = [[{"role": "user", "content": row["question"]}] for row in rows]
            texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=72, do_sample=True, temperature=0.6, top_p=0.95, top_k=0)
            completions = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            correct += sum(is_correct(completion, row["answer"]) for completion, row in zip(completions, rows, strict=True))
        averages[path.stem] = correct / len(requests)
    return averages


def main():
    """Train, evaluate, and write the rewards of all steps and the accuracy of each tier as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--algo", choices=OBJECTIVES, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tokens", type=int, default=48, help="limit of a completion")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--per-device", type=int, default=64, help="completions per forward pass, of 64 in a step")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.world / "model")
    model = AutoModelForCausalLM.from_pretrained(arguments.world / "model", dtype=torch.float32)
    rows = [
        {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
        for row in read_rows(arguments.world / "train.jsonl")
    ]
    config = GRPOConfig(
        output_dir=str(arguments.out.with_suffix(".trl")), max_steps=arguments.steps, learning_rate=arguments.lr,
        seed=arguments.seed, lr_scheduler_type="constant", per_device_train_batch_size=arguments.per_device,
        gradient_accumulation_steps=64 // arguments.per_device, num_generations=8, max_completion_length=arguments.tokens,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, **OBJECTIVES[arguments.algo],
    )  # fmt: skip
    set_seed(arguments.seed)
    adapter = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM", **METHODS[arguments.method]
    )
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip
    trainer.train()
    steps = [row for row in trainer.state.log_history if "reward" in row]
    result = {
        "rewards": [row["reward"] for row in steps],
        "seconds": [row["step_time"] for row in steps],
        "tokens": [row["completions/mean_length"] for row in steps],
        "averages": evaluate(trainer.model, tokenizer, arguments.world),
    }
    arguments.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
