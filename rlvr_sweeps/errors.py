"""Exceptions of the package; Refused is the one that a user can fix."""

from hydra.errors import CompactHydraException


class Refused(CompactHydraException):
    """A request that cannot be carried out as it is.

    The message is one paragraph: the given value, the allowed values, the command that fixes it. For a
    CompactHydraException, Hydra prints the message without a traceback and exits with 1.
    """


class Stopped(Exception):
    """A stage has saved its state after a stop request; it can be resumed."""


class Superseded(Exception):
    """A newer attempt of the same run exists; this process must not write any more."""
