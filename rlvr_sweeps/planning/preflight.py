"""TODO: rlvr_sweeps.planning.preflight."""

import os
from pathlib import Path

from rlvr_sweeps.errors import Refused


def refuse_unwritable(folders: set[str]) -> None:
    for folder in sorted(folders):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            probe = Path(folder) / f".writable.{os.getpid()}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(
                f"runs_dir={folder} cannot be written ({error.strerror}). Give a folder that can: runs_dir=/path/to/runs."
            ) from error
