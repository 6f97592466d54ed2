"""Reward functions that come with the project, for `verifier=`: each has TRL's signature and runs in `reward_process.py`.

`choice`: the letter of a multiple choice. `gym`: the scores of reasoning-gym's tasks. `code`: programs, in
a sandbox. A change that can change a score raises
`version` in the function's file of conf/verifier.
"""
