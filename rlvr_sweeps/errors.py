"""The one exception for what a user can mend."""

from hydra.errors import CompactHydraException


class Refused(CompactHydraException):
    """What was asked cannot run as asked.

    The message is one paragraph: the value found, the values allowed, the command that mends it. Hydra prints the
    message of a CompactHydraException alone and exits with 1.
    """


class Stopped(Exception):
    """A stage that was asked to stop has saved what it needs to go on."""


class Superseded(Exception):
    """Another attempt at the same run has begun; this one must not write any more."""
