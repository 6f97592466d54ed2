"""Runs: everything about a run's directory on disk.

`directory` defines the names of its files and computes its state; `reading` lists the runs of a folder and reads their logs
and metrics; `rollouts` is the form of kept completions and reason shares; `checksums` verifies weights and `checkpoints` finds
whole checkpoints; `examination` judges and repairs damaged files; `failures` decides which failed stages are tried again;
`launches` records launches and holds the submission lock. The wing may import config and the ground modules
(tests/test_wings.py).
"""
