"""Read the completions that a run's training kept (rollouts.jsonl), and print them: `rlvr samples`. Without torch."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.files import Row, read_object, read_rows
from rlvr_sweeps.runs.directory import Run


def select(run: Run, step: int | None = None, wrong: bool = False) -> list[Row]:
    """Return the kept completions of a step, by default the last; `wrong`: only the wrong ones.

    Those of the start policy, which the signal check sampled, are of step 0. Raises Refused where the run has none, or none of
    this step.
    """
    rows = start_policy_rows(run) + read_rows(run.rollouts_path, "step", "correct")
    if not rows:
        raise Refused(
            f"{run.name} has no completions in rollouts.jsonl. Training writes them from its first step on, unless "
            "training.samples_per_step=0."
        )
    steps = sorted({row["step"] for row in rows})
    step = steps[-1] if step is None else step
    if step not in steps:
        raise Refused(f"{run.name} has no completions of step {step}; it has those of steps {steps[0]} to {steps[-1]}.")
    return [row for row in rows if row["step"] == step and not (wrong and row["correct"])]


def start_policy_rows(run: Run) -> list[Row]:
    """Return the completions of signal.json as rows of step 0; none without the file. Raises Damaged."""
    completions: list[Row] = (read_object(run.signal_path, "completions") or {"completions": []})["completions"]
    facts = {"step": 0, "prompt": "", "trained": False}  # files of earlier versions have no prompts
    return [facts | row | {"reward": row.get("score", float(row["correct"]))} for row in completions]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print each completion below its prompt, with reward, reason and length."""
    if not rows:
        console.print("No kept completion of this step is wrong.")
    for row in rows:
        verdict = Text("right" if row["correct"] else "wrong", "green" if row["correct"] else "red")
        facts = f"  reward {row['reward']:g}, {row['reason']}, {row['tokens']} tokens" + ", cut off" * row["truncated"]
        if row["step"] and not row["trained"]:
            facts += ", not trained on"
        heading = Text.assemble((f"step {row['step']}, problem {row['problem']}: ", "bold"), verdict, facts)
        console.print(heading, highlight=False, soft_wrap=True)
        console.print(Text(row["prompt"], "dim"), soft_wrap=True)
        console.print(Text(f"{row['text']}\n[gold answer: {row['gold']}]\n"), soft_wrap=True)
