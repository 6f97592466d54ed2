"""Claims: the verdicts on the claim cards of conf/claim (`rlvr claims`, and a section of the report page).

`rule` decides from differences and intervals alone; `verdicts` reads the runs that a card needs, in one evaluation, and
computes them with `reporting/differences`; `show` prints and writes the table. The imports allowed are those of reporting
(tests/test_wings.py).
"""
