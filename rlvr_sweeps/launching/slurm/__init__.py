"""Launch on Slurm: a grid becomes job arrays, and each job supervises one stage of one run.

- `launch` plans, rejects impossible jobs and submits; `submit` makes the job arrays and the frozen copy of the code, with the
  sbatch options of `options`, and `records` each submission, so that a launch that is cut off is completed.
- `supervisor` runs inside the job: it starts the stage, retries transient failures, and requeues the job before its time limit.
- `queue` queries Slurm for active jobs, partitions and limits; `manage` is `rlvr logs`, `rlvr cancel` and `rlvr retry`.

May import what `rlvr_sweeps.launching` may.
"""
