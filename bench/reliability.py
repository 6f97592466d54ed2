"""Inject every fault of tests/launching/slurm into a real Slurm, and write the outcomes to docs/reliability.md.

    make faults

Two clusters run at the same time: proctrack/linuxproc without slurmdbd, and proctrack/cgroup with it. The tests record the
outcomes.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
CLUSTERS = {
    "proctrack/linuxproc, no slurmdbd": {"SLURM_PROCTRACK": "linuxproc", "SLURM_DBD": "0", "SLURM_BASE_PORT": "27817"},
    "proctrack/cgroup, slurmdbd": {
        "SLURM_PROCTRACK": "cgroup",
        "SLURM_DBD": "1",
        "SLURM_BASE_PORT": "28817",
        "SLURM_FIRST_JOB": "5001",
    },
}
TESTS = [f"tests/launching/slurm/test_slurm_{name}.py" for name in ("submission", "faults", "storm")]
NOT_A_FAULT = ("defaults_of_the_site", "no_run_knows", "too_short_for_a_step", "command[3]")  # tests that inject none
HEAD = """# Faults

`make faults` injects every fault below into training runs on a real Slurm of two virtual nodes, and writes this page. The
code of each fault is in `tests/launching/slurm/`. A run is twelve steps of the embedded model and an evaluation. A run is
lost if it does not end as `done` (with an exception in the run itself: as `failed`), a step if it is not exactly once in
`metrics.jsonl`. Identical: the hash of the weights and every number of every step equal those of the same run without a
fault; after faults of a submission the queue is examined and nothing is trained (-). Seeds repeat the random instants:
`RLVR_FAULT_SEED=… make faults`.

{date}, {machine}. **{times} faults in {runs} runs: {lost} runs lost, {lost_steps} steps lost.**
"""


def inject(settings: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start the tests of all faults on one cluster."""
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "junit_family=legacy",
        *TESTS,
        "-k",
        " and ".join(f"not {name}" for name in NOT_A_FAULT),
        f"--junitxml={folder}/{settings['SLURM_PROCTRACK']}.xml",
    ]
    return subprocess.Popen([ROOT / "tests/launching/slurm/with.sh", *pytest], cwd=ROOT, env=os.environ | settings)


def outcomes(report: Path) -> list[dict[str, str]]:
    """Return the recorded outcome of each test; an empty list if with.sh could not start the cluster and printed the reason."""
    if not report.exists():
        return []
    return [outcome(case) for case in ElementTree.parse(report).iter("testcase") if case.find("skipped") is None]


def outcome(case: ElementTree.Element) -> dict[str, str]:
    """Return the recorded outcome of one test, or the outcome of a failed test."""
    facts = {str(node.get("name")): str(node.get("value")) for node in case.iter("property")}
    failed = case.find("failure") is not None or case.find("error") is not None
    if failed or not facts:
        return {"fault": str(case.get("name")), "outcome": "**the test failed**", "times": "1", "runs": "1", "identical": "no"}
    return facts


def page(by_cluster: dict[str, list[dict[str, str]]]) -> str:
    """Return docs/reliability.md, from the outcomes of each cluster."""
    rows = [row for cluster_rows in by_cluster.values() for row in cluster_rows]
    failed = [row for row in rows if row["identical"] == "no"]
    text = HEAD.format(
        date=time.strftime("%Y-%m-%d"), machine=machine(), times=sum(int(row["times"]) for row in rows),
        runs=sum(int(row["runs"]) for row in rows), lost=len(failed), lost_steps=0 if not failed else "some",
    )  # fmt: skip
    for name, cluster_rows in by_cluster.items():
        text += f"\n## {name}\n\n| fault | times injected | outcome | runs lost | identical |\n|---|---|---|---|---|\n"
        for row in cluster_rows:
            lost = "0" if row["identical"] != "no" else row["runs"]
            text += f"| {row['fault']} | {row['times']} | {row['outcome']} | {lost} | {row['identical']} |\n"
    return text


def machine() -> str:
    """Return the cores and the memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, no GPU"


def main() -> None:
    """Run the tests on both clusters and write the page; exit with code 1 if a run was lost or differs."""
    with tempfile.TemporaryDirectory() as folder:
        clusters = [inject(settings, Path(folder)) for settings in CLUSTERS.values()]
        exit_codes = {cluster.wait() for cluster in clusters}
        if not exit_codes <= {0, 1}:
            sys.exit("interrupted: docs/reliability.md is unchanged")
        reports = {name: Path(folder) / f"{settings['SLURM_PROCTRACK']}.xml" for name, settings in CLUSTERS.items()}
        by_cluster = {name: outcomes(report) for name, report in reports.items()}
    if not any(by_cluster.values()):
        sys.exit("no cluster could be started on this machine: docs/reliability.md is unchanged")
    PAGE.write_text(page(by_cluster))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    if any(row["identical"] == "no" for rows in by_cluster.values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
