"""The one exception for what a user can mend."""

from hydra.errors import CompactHydraException


class Refused(CompactHydraException):
    """What was asked cannot run as asked.

    The message is one paragraph: the value found, the values allowed, the command that mends it. Hydra prints the
    message of a CompactHydraException alone and exits with 1.
    """
