"""Tracking: runs on Weights & Biases (W&B), in TensorBoard and in Trackio, copied from their directories, which are the record.

`stage` starts a mirror process per tracker for a stage of a run; `mirror` is that process; `tracker` is the protocol of what it
calls, and `wandb_tracker`, `tensorboard_tracker` and `trackio_tracker` implement it; `names` maps columns to the trackers'
names. `sync` uploads runs to W&B afterwards and downloads them as run directories (`rlvr wandb sync`, `rlvr wandb pull`);
`views` makes workspaces and reports (`rlvr wandb workspace`, `rlvr wandb report`). The trackers' packages are imported inside
functions only. The imports allowed are those of reporting (tests/test_wings.py); nothing here imports torch.
"""
