"""Compose a grid and run it: python launch.py -m peft=dora,lora,pissa algo=dapo,grpo"""

import sys

import hydra
from omegaconf import DictConfig

from rlvr_sweeps.config import compose, lr_grid, schema
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.launching import local
from rlvr_sweeps.launching.slurm import launch

schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Launch one run. Hydra calls this without -m or with its own launchers; this project's launchers run a whole grid."""
    if cfg.cluster.name == "slurm":
        launch.launch(cfg)
    else:
        local.launch([cfg])


if __name__ == "__main__":
    try:
        sys.argv[1:] = lr_grid.as_hydra_setting(sys.argv[1:])
        compose.refuse_unknown_settings(sys.argv[1:])
    except Refused as refusal:
        sys.exit(str(refusal))
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on; what was submitted to Slurm continues (rlvr status).", file=sys.stderr)
        sys.exit(130)
