"""Exceptions of the package. Refused is an error that the user can correct."""

from pathlib import Path

from hydra.errors import CompactHydraException


class Refused(CompactHydraException):
    """A request that cannot be carried out as it is.

    The message is one paragraph: the given value, the allowed values, the command that corrects it. Because this is a
    CompactHydraException, Hydra prints the message without a traceback and exits with code 1.
    """


class Damaged(Refused):
    """A file with content that no interrupted writer leaves; the message names the file, what is wrong and what to do.

    `why`: a clause such as `line 17 is not JSON`.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    @property
    def run_path(self) -> Path | None:
        """The directory of the run that the file belongs to; None for a file outside of runs."""
        return next((folder for folder in self.path.parents if (folder / "config.yaml").exists()), None)

    def __str__(self) -> str:
        advice = f" To see what is lost and what can be saved: rlvr doctor {self.run_path}" if self.run_path else ""
        return f"{self.path} is damaged: {self.why}.{advice}"


class Edited(Damaged):
    """A config.yaml whose settings are not those of the run's id: edited, or damaged in a way that leaves valid YAML."""

    def __str__(self) -> str:
        return (
            f"{self.path} {self.why}: it was edited, and the results beside it belong to the old values, or it is damaged. "
            "Restore the file, or launch the new values as overrides (they get their own directory), or delete the directory. "
            f"To see what can be saved: rlvr doctor {self.path.parent}"
        )


class Stopped(Exception):
    """A stage saved its state after a stop request and can be resumed."""


class StoppedInStep(Stopped):
    """Training ended within a step, since the step would not have ended in time; the step is repeated after the resume."""


class Superseded(Exception):
    """A newer attempt of the same run exists, so this process must not write to the run's files."""
