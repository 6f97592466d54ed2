"""Differences: paired comparisons of rows on the same problems.

`bootstrap` computes a difference, its interval and its p-value from arrays, and Holm's correction; `compare` reads the samples
of runs, refuses runs that were evaluated differently and prints `rlvr compare`; `baselines` compares every row of a report or a
table with its baseline. The imports allowed are those of reporting (tests/test_wings.py).
"""
