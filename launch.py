"""Compose a grid and run it: python launch.py -m peft=dora,lora,pissa algo=dapo,grpo"""

import hydra
from omegaconf import DictConfig

from rlvr_sweeps import config, local

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One point, without -m or under a stock launcher; a grid goes to hydra/launcher=rlvr_local as a whole."""
    local.launch([cfg])


if __name__ == "__main__":
    main()
