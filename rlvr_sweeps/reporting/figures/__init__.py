"""Figures: the paper's figures and a report's figures, from finished runs (`rlvr figure` and `rlvr report`).

`catalogue` lists the figures by name, selects their runs and writes their files. `training_curves`, `tradeoffs` and `spectra`
compute what a figure shows, as the plain data that `plots` defines; `drawing` alone uses matplotlib. To add a figure, write a
function from rows to a `Plot` and list it in `catalogue.FIGURES`. The imports allowed are those of reporting
(tests/test_wings.py); nothing here imports torch.
"""
