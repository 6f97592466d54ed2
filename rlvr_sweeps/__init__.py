"""RL from verifiable rewards, compared honestly: compose a grid, run it, evaluate it, table it."""

__version__ = "0.1.0"
