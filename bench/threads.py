"""Compare how two threads of OpenMP wait: as launch.py sets it, and by libgomp's default, alone and beside a second program.

    python bench/threads.py        about two minutes on two cores

The work is that of decoding: products of matrices of SmolLM2-135M's widths with eight rows, so small that the threads wait for
each other often. The second program does the same, in a session of its own, as another launch would. Medians of three; beside
them the time of one thread.
"""

import os
import statistics
import subprocess
import sys
import time

from rlvr_sweeps.launching.stages import UNLESS_SET

SPINS = "GOMP_SPINCOUNT"
HIDDEN, FEED_FORWARD, ROWS = 576, 1536, 8
LAYERS = 1000


def work() -> float:
    """Return the seconds of LAYERS feed-forward layers in this process."""
    import torch

    up, down, rows = torch.randn(FEED_FORWARD, HIDDEN), torch.randn(HIDDEN, FEED_FORWARD), torch.randn(ROWS, HIDDEN)

    def layers(number: int) -> None:
        x = rows
        for _ in range(number):
            x = torch.nn.functional.linear(torch.nn.functional.silu(torch.nn.functional.linear(x, up)), down)
            x = x / (x.norm(dim=-1, keepdim=True) + 1)

    layers(50)
    begin = time.perf_counter()
    layers(LAYERS)
    return time.perf_counter() - begin


def seconds(programs: int, threads: int, spins: str | None) -> float:
    """Return the median seconds of programs that run at once, three times; with libgomp's default where spins is None."""
    environment = {key: value for key, value in os.environ.items() if key not in (SPINS, "OMP_WAIT_POLICY")}
    environment |= {"OMP_NUM_THREADS": str(threads)} | ({} if spins is None else {SPINS: spins})
    command, results = [sys.executable, __file__, "work"], []
    for _ in range(3):
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
            for _ in range(programs)
        ]
        results += [float(process.communicate()[0]) for process in running]
    return statistics.median(results)


def main() -> None:
    """Print a line for one program and one for two at once."""
    for programs, title in ((1, "one program"), (2, "two at once")):
        one, ours, default = (seconds(programs, *case) for case in ((1, None), (2, UNLESS_SET[SPINS]), (2, None)))
        print(
            f"{title}   one thread {one:5.2f} s   two threads, launch.py {ours:5.2f} s   "
            f"two, libgomp's default {default:5.2f} s   {default / ours:.1f} times as long"
        )


if __name__ == "__main__":
    print(work()) if sys.argv[1:] == ["work"] else main()
