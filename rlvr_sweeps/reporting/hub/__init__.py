"""Export of a finished run (`rlvr export`): a folder that can be uploaded to the hub.

`folder` checks the run, and writes the model or its adapter, the tokenizer and the generation config; `card` makes the model
card, README.md, from the run's files. The imports allowed are those of reporting (tests/test_wings.py).
"""
