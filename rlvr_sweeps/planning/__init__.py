"""Planning: what a launch will do, what it will take, and what is refused before it starts.

`plan` lists the distinct runs with their states; `preflight` checks them; `estimates` shows memory and time per run, from
`memory`, `host_memory` and `timing` (equations in docs/planning.md), `measured` (finished runs) and `hardware`
(conf/hardware.yaml); `calibration` makes constants of that file from measurements of a GPU; `notice` determines Slurm's notice
before a time limit; `profile` shows where the time of a training step went. The wing may import assets, config, runs and the
ground modules (tests/test_wings.py).
"""
