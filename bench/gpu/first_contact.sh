#!/bin/sh
# Everything that a first session on a GPU should measure, in one command of about ten minutes (an estimate):
#
#     bench/gpu/first_contact.sh                     on one GPU, with random weights of the 1.5B's shape
#     bench/gpu/first_contact.sh --model FOLDER      with the model of a folder
#     bench/gpu/first_contact.sh --device cpu        a reduced form with the embedded model and vLLM for CPUs
#
# OUT/first_contact.json (--out, default first-contact/) is written after each part, so that an interrupted session keeps what it
# measured. At the end the entry for conf/hardware.yaml and the block for docs/performance.md are printed.
set -eu
cd "$(dirname "$0")/../.."
for candidate in "${PYTHON:-}" .venv-cuda/bin/python .venv/bin/python python3; do
    if [ -n "$candidate" ] && command -v "$candidate" > /dev/null; then
        exec "$candidate" bench/gpu/first_contact.py "$@"
    fi
done
echo "No Python was found. Set PYTHON=/path/to/python." >&2
exit 1
