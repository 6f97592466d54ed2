"""The train stage of a run, with torch, TRL and PEFT: GRPO from a configuration to an exported model.

`train` is the stage: it builds the trainer, compares it with the configuration (`build_check`), trains and exports. `trainer`
extends TRL's GRPOTrainer: prompts and dynamic sampling (`dynamic_sampling`), rollouts (`seeded_sampling`, `vllm_rollouts`), the
check of vLLM (`sampler_agreement`), forward passes (`micro_batches`, `shared_prompts`). `random_state` keeps vLLM from the
generators that dropout draws from. `rewards` holds the reward functions;
`signal_check` grades the start policy before step 1. `callbacks` writes metrics, readable completions and checkpoints;
`early_stopping` and `successive_halving` end runs early; `models` loads models without TRL and PEFT; `methods` holds what a
method trains.

To add an objective, add a file to conf/algo; to add a method, see `methods`; docs/adding.md has the steps. The wing imports
grading, assets, config and runs. This file imports nothing, so that torch-free modules stay torch-free.
"""
