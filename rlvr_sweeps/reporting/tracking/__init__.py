"""Tracking: runs on Weights & Biases (W&B), copied from the run directories, which remain the record.

`stage` starts a mirror process for a stage of a run; `mirror` is that process; `names` maps columns to W&B's names. `sync`
uploads runs afterwards and downloads them as run directories (`rlvr wandb sync`, `rlvr wandb pull`); `views` makes workspaces
and reports (`rlvr wandb workspace`, `rlvr wandb report`). `wandb` is imported inside functions only. The imports allowed are
those of reporting (tests/test_wings.py); nothing here imports torch.
"""
