"""The notice that Slurm gives before a job's time limit: long enough to end what cannot be interrupted, and to save."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rlvr_sweeps.assets.architecture import architecture, trained_parameters
from rlvr_sweeps.config.schema import Resolved
from rlvr_sweeps.config.settings import accumulation, is_trained, samples_at_once
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning import timing
from rlvr_sweeps.planning.hardware import gpu_of

SHORTEST_S = 120  # of a notice that is not set
EARLY_S = 60  # Slurm looks at time limits twice a minute, so a signal may come a minute before or after its time
SAFETY = 1.5  # factor on estimated seconds
DISK_BYTES_PER_S = 0.5e9  # of a shared file system, written by one process; an estimate
CHECK_BYTES_PER_S = 0.4e9  # of a checkpoint that is hashed, read again and compared; 0.43e9 were measured on two cores
CHECKPOINT_BYTES = 12  # per trained parameter: the weight and AdamW's two moments in float32


def uninterrupted_s(cfg: Resolved) -> float | None:
    """Return the estimated seconds of the longest part of a step between two looks at the stop file, and of a checkpoint.

    The parts are a sampling round and a forward and backward pass; a call of the engine for all rounds looks at the stop file
    while it decodes. None where the GPU or the model's shape is not known.
    """
    gpu, model = gpu_of(cfg), architecture(cfg)
    trained = trained_parameters(cfg, model) if model else None
    if gpu is None or model is None or trained is None or not is_trained(cfg):
        return None
    lengths = timing.assumed_lengths(cfg)
    sampling = 0.0 if samples_at_once(cfg) else timing.rollout_s(cfg, model, gpu, lengths)
    longest = max(sampling, timing.update_s(cfg, model, gpu, lengths) / accumulation(cfg))
    return SAFETY * longest + trained * CHECKPOINT_BYTES * (1 / DISK_BYTES_PER_S + 1 / CHECK_BYTES_PER_S)


def notice_s(cfgs: Iterable[Resolved], params: Mapping[str, Any]) -> int:
    """Return the seconds of notice for jobs of these runs: hydra.launcher's signal_delay_s, else what the estimates require.

    Raises Refused where signal_delay_s is too short by the estimates, or not shorter than half of a time limit.
    """
    cfgs = list(cfgs)
    required = max((EARLY_S + (uninterrupted_s(cfg) or 0.0) for cfg in cfgs), default=0.0)
    limit_s = 60 * min((cfg["cluster"]["train"]["timeout_min"] for cfg in cfgs), default=math.inf)
    chosen = params.get("signal_delay_s")
    if chosen is None:
        chosen = max(SHORTEST_S, math.ceil(required / 10) * 10)
    elif chosen < required - EARLY_S:
        raise Refused(
            f"hydra.launcher.signal_delay_s={chosen} is too short: the longest part of a step and a checkpoint take about "
            f"{required - EARLY_S:.0f} s by the estimates. Use {math.ceil(required):.0f} or more, or leave it out, "
            "so that it follows from the estimates."
        )
    if 2 * chosen > limit_s and required > EARLY_S:
        raise Refused(
            f"cluster.train.timeout_min={limit_s // 60:.0f} is too short: {chosen} s of it are the notice before the "
            "limit, which the longest part of a step and a checkpoint need by the estimates. Use a longer limit, or more GPUs."
        )
    return int(min(chosen, limit_s / 2))
