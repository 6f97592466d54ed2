"""The evaluate and analyse stages of a run, and commands on stored samples.

`evaluate` is the stage: it decodes k samples per problem with an engine of `engines`, grades them and writes the summary.
`samples` gathers and scores the stored rows, `scores` holds the formulas, `regrade` and `audit` check verdicts again, and
`analyse` is the stage that writes analysis.json.

To add an engine, implement `engines.Engine` and name it in `engines.make_engine`; to add a benchmark, add a file to
conf/benchmark (docs/adding.md). `samples`, `scores`, `regrade` and `audit` import no torch, and no module imports TRL or PEFT.
The wing imports grading, assets, config, runs and training.
"""
