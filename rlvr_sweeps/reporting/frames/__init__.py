"""Runs as pandas tables, for analysis in Python: `rlvr_sweeps.load` and `rlvr report --parquet`.

`loading` reads a folder of runs into the tables; `settings` chooses the settings that become columns; `dtypes` gives each
column its dtype. docs/analysis.md lists the columns with their units.
"""
