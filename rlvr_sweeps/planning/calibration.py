"""Turn the measurements of bench/gpu/first_contact.sh into constants of the cost model and a block for docs/performance.md.

    python -m rlvr_sweeps.planning.calibration first_contact.json

prints the entry for `measured` in conf/hardware.yaml, and the text. Without a GPU in the results it prints the text alone.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlvr_sweeps.errors import Refused
from rlvr_sweeps.planning.hardware import Gpu, constants, gpu_by_driver_name
from rlvr_sweeps.planning.timing import pass_s

Results = Mapping[str, Any]  # the content of first_contact.json
# bench/gpu/step.py counts a forward and a backward pass as necessary, at the cost of two. Its runs recompute activations
# (conf/model/local.yaml), so they compute three.
COMPUTED_PER_NECESSARY = 3 / 2


def entry(results: Results) -> tuple[str, dict[str, Any]]:
    """Return the name of the measured GPU in conf/hardware.yaml and its entry of `measured`.

    A part of the results that failed gives no constant. Raises Refused where the GPU has no entry under `gpus`.
    """
    gpu = gpu_by_driver_name(results["device"])
    if gpu is None:
        raise Refused(
            f"The results are of {results['device']}, which conf/hardware.yaml does not list. To plan for it, add its data "
            "sheet to `gpus` there."
        )
    measured = {
        "decode_overhead_s": decode_overhead_s(results, gpu),
        "training": training_share(results),
        "shared_gpu": part(results, "share").get("slowdown"),
    }
    values = {name: float(f"{value:.3g}") for name, value in measured.items() if value is not None}
    return gpu.name, {"date": results["date"], "machine": results["device"], **values}


def part(results: Results, name: str) -> dict[str, Any]:
    """Return the values of a part; empty where it failed or was left out."""
    values: dict[str, Any] = results["parts"].get(name, {})
    return {} if "error" in values else values


def decode_overhead_s(results: Results, gpu: Gpu) -> float | None:
    """Return the seconds of a decoding pass beyond reading weights and cache, the median over the numbers of sequences."""
    decode = part(results, "decode")
    cfg = {"model": {"autocast_bf16": decode.get("bytes_per_weight") == 2}, "rollout": {}}  # for the precision of products
    overheads = []
    for row in decode.get("passes", ()):
        context = row["sequences"] * decode["context_tokens"]
        bytes_read = decode["bytes_per_weight"]
        without = pass_s(cfg, "rollout", results["architecture"], gpu, row["sequences"], context, 0.0, bytes_read)
        overheads.append(row["pass_s"] - without)
    return max(0.0, statistics.median(overheads)) if overheads else None


def training_share(results: Results) -> float | None:
    """Return the share of the bfloat16 peak that the update of LoRA reaches, recomputation counted as operations."""
    for row in part(results, "step").get("results", ()):
        is_own = (row["implementation"], row["method"]) == ("rlvr_sweeps", "lora")
        if is_own and row.get("share_of_peak"):
            update = row["phases"]["forward"] + row["phases"]["backward"]
            return float(COMPUTED_PER_NECESSARY * row["share_of_peak"] * row["seconds"] / update)
    return None


def text(results: Results) -> Iterator[str]:
    """Yield the lines of a block for docs/performance.md."""
    yield f"{results['date']}, {results['device']}, {results['model']}, {results['seconds']:.0f} s in all"
    for name, values in results["parts"].items():
        if "error" in values:
            yield f"  {name:<8} failed: {values['error']}"
    if svd := part(results, "svd"):
        for row in svd["layers"]:
            yield (
                f"  SVD of {row['rows']} × {row['columns']}, float64: {row['device_s']:.2f} s on the device (error "
                f"{row['error']:.1e}), {row['cpu_s']:.2f} s on one CPU thread"
            )
    if load := part(results, "load"):
        yield (
            f"  loading {load['weights_gib']:.2f} GiB of float32 weights: {load['seconds']:.1f} s, host memory "
            f"{load['host_gib']:.2f} GiB more at its peak, {load['process_gib']:.2f} GiB in all"
        )
    if decode := part(results, "decode"):
        yield (
            f"  vLLM: started in {decode['start_s']:.0f} s, cache of {decode['cache_tokens']:,} tokens, at most "
            f"{decode['max_num_seqs']} sequences, host memory {decode['host_gib']:.1f} GiB"
        )
        for row in decode["passes"]:
            rate = row["sequences"] / row["pass_s"]
            yield f"    {row['sequences']:>5} sequences: {1000 * row['pass_s']:.2f} ms per token, {rate:,.0f} tokens/s"
    for row in part(results, "step").get("results", ()):
        label = f"  step, {row['method']}, {row['implementation']}: "
        reached = f", {100 * row['share_of_peak']:.1f} % of the peak" if row.get("share_of_peak") else ""
        memory = f", {row['memory_gib']:.1f} GiB" if "memory_gib" in row else ""
        yield label + (f"failed: {row['error']}" if "error" in row else f"{row['seconds']:.2f} s{reached}{memory}")
    if share := part(results, "share"):
        yield (
            f"  two runs at once: {share['together_s']:.2f} s per step each, {share['alone_s']:.2f} s alone: "
            f"{2 * share['alone_s'] / share['together_s']:.2f} times the throughput"
        )


def yaml_line(name: str, values: Mapping[str, Any]) -> str:
    """Return an entry of `measured` as a line of conf/hardware.yaml."""
    return f"  {name}: {{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"


def main(arguments: list[str] | None = None) -> int:
    """Print the entry and the text of a file of results; return 1 where the GPU is not known, after the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="first_contact.json")
    results = json.loads(parser.parse_args(arguments).file.read_text())
    status = 0
    if results["device"] == "cpu":
        print("# The results are of a CPU: every part ran, and no constant of conf/hardware.yaml follows from them.")
    else:
        try:
            name, values = entry(results)
            print(f"# conf/hardware.yaml, below `measured:` (estimates: {constants()['decode_overhead_s']} s of overhead)")
            print(yaml_line(name, values))
        except Refused as refusal:
            print(f"# {refusal}", file=sys.stderr)
            status = 1
    print("\n# docs/performance.md")
    for line in text(results):
        print(f"    {line}")
    return status


if __name__ == "__main__":
    sys.exit(main())
