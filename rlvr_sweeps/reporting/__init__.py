"""Reporting: what finished runs show, as tables, figures, pages and records of W&B.

`rows` groups runs that differ only in their seed into cells; `sweep_results` reads the results of every row of a sweep file;
`lr_search` finds the grids of lr=auto; `labels` names and formats rows; `rollouts` reads completions of the training (`rlvr
samples`). `differences/` compares rows with their baseline, `claims/` decides claim cards (`rlvr claims`), `tables/` makes
`rlvr table`, `figures/` makes `rlvr figures`, `page/` makes `rlvr report`, `frames/` loads runs as pandas tables
(`rlvr_sweeps.load`), `hub/` exports a run (`rlvr export`), and `tracking/` copies runs to W&B.

This package may import config, runs, training, evaluation and the
ground modules (tests/test_wings.py); of its modules, only `tables/parameters` imports torch.
"""
