"""Compare fine-tuning methods in RL from verifiable rewards: compose a grid, run it, evaluate it, report it.

Each of the nine wings imports only wings listed before it (tests/test_wings.py has the exact rules):

1. grading: decide whether a completion answers a problem correctly
2. assets: find models and problem sets, and describe them
3. config: compose, check and identify configurations
4. runs: read and write a run's directory
5. planning: determine what a launch will do and cost
6. training: train one run (with torch)
7. evaluation: sample, score and analyse a trained model
8. reporting: rows, differences, tables, figures, pages, tracking
9. launching: start and supervise runs, on this machine or on Slurm

The ground modules errors, files, paths, gpus, versions and patches are open to every wing (to grading only
patches); `cli` is the `rlvr` command.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlvr_sweeps.reporting.frames.loading import LoadedRuns

__version__ = "0.1.0"


def load(folder: str | Path, sweep: str | None = None) -> "LoadedRuns":
    """Return the runs of a folder as pandas tables: `.runs`, `.cells`, `.steps`, `.samples`, `.rollouts` (docs/analysis.md).

    `sweep`: only the runs whose last launch had this label. A damaged run is a row of `.runs` with its state and error. Raise
    Refused where there is no such folder, or no run with the label.
    """
    from rlvr_sweeps.reporting.frames import loading  # here: pandas would delay every command by half a second

    return loading.load(folder, sweep)
