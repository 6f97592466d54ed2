"""Tables: the paper's tables from finished runs, beside the values that the paper prints (`rlvr table`).

`render` selects the table, shows and writes it; `accuracy`, `learning_rates` (lr_fair) and `parameters` (Table 4, imports
torch) each build one kind of table; `cells` makes the entries that they share, `footnotes` the lines below a table; `formats`
writes a table as terminal text, Markdown, LaTeX, CSV and JSON and reads no runs. The imports allowed are those of reporting
(tests/test_wings.py).
"""
