#!/usr/bin/env bash
# with.sh COMMAND...: start a real Slurm of virtual nodes, run a command, and stop the Slurm, also after an error or a signal.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
  echo "SKIPPED: the tests on a real Slurm; its daemons need root."
  exit 0
fi
if [ "${SLURM_PROCTRACK:-}" = cgroup ] && [ ! -w /sys/fs/cgroup/freezer ]; then
  echo "SKIPPED: the tests under proctrack/cgroup; there is no cgroup v1 freezer here that can be written."
  exit 0
fi
here=$(cd "$(dirname "$0")" && pwd)
export SLURM_TEST_ROOT=${SLURM_TEST_ROOT:-$(mktemp -d /tmp/rlvr-slurm.XXXXXX)}
export SLURM_DBD=${SLURM_DBD:-0}
trap '"$here/down.sh" --wipe' EXIT
"$here/up.sh"
. "$SLURM_TEST_ROOT/env.sh"
"$@"
