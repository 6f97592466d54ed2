"""Page: the report of a folder of runs as one self-contained HTML page (`rlvr report`).

`report` builds and writes the page; each other module computes one section: `main_table` the accuracy table, `samples` the
completions in the sample browser, `training_samples` those of a few training steps, `costs` the cost table, `deviations` the
comparison with the paper's settings, `manifest` the origin of the numbers. The folder `templates` holds the HTML, the style
sheet and the script. The imports allowed are those of reporting (tests/test_wings.py); nothing here imports torch.
"""
