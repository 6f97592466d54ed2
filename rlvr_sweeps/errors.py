"""Exceptions of the package. Refused is an error that the user can correct."""

from hydra.errors import CompactHydraException


class Refused(CompactHydraException):
    """A request that cannot be carried out as it is.

    The message is one paragraph: the given value, the allowed values, the command that corrects it. Because this is a
    CompactHydraException, Hydra prints the message without a traceback and exits with code 1.
    """


class Stopped(Exception):
    """A stage saved its state after a stop request and can be resumed."""


class StoppedInStep(Stopped):
    """Training ended within a step, since the step would not have ended in time; the step is repeated after the resume."""


class Superseded(Exception):
    """A newer attempt of the same run exists, so this process must not write to the run's files."""
