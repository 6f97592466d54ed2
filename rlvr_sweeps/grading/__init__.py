"""Grading: decide whether a completion answers a problem correctly, with the same code for rewards and for evaluation.

`grader.grade_all` gives each completion a verdict. `extraction` finds the answer in a completion; `answers` compares it with
the gold answer: `latex` brings both into one spelling, `regions` reads inequalities and unions, `structure` splits lists,
tuples, chains and cases, `numbers` reads literal numbers and `units` their units, `symbols` replaces names that the parser
cannot read, and `expressions` compares formulas and relations by value. `sandbox` runs the comparison in a process that cannot
harm the caller; `tasks` grades there by the scores of reasoning-gym's tasks. `rules` are the choices on which graders differ
(`answers.*`), `budget` limits the time of a batch, and `golds` names gold answers that cannot be compared. `second_reader`
compares by another method, for `rlvr audit`.

`verifiers.verdicts` is the entry for every verifier: the grader, or reward functions, which `reward_pool` runs in processes of
their own (`reward_process`). `ready/` has the project's own reward functions.

To change a rule, add rows to tests/grading/answers.jsonl and raise `grader.VERSION`.
This wing imports no other module of the package except the ground module `patches`.
"""
