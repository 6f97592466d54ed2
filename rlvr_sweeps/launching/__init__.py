"""Run a planned grid, on this machine or on Slurm, and show what its runs do.

- `local` launches on this machine through `fork_server`, one process per run; `slurm/` launches as Slurm jobs.
- `stages` runs a run's stages (train, evaluate, analyse) in order, each in a process of its own.
- `progress` shows a running launch; `status` is `rlvr status`, and `status_table` its table; `doctor` is `rlvr doctor`, with
  `node_probe` on a compute node.
- `lr_rounds` has the rounds of an lr=auto launch.
- `threads` decides how many threads a process of a run has.

May import every wing but `cli`; nothing below imports this one. No module needs torch to be imported: a stage's own process
imports the stage's function (`stages.stage_function`), the fork server imports it before it forks.
"""
