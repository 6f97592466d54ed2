#!/usr/bin/env bash
# parts.sh TARGET...: make each target in turn; print at the end the seconds of each, what was skipped, and what failed.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
summary="" status=0
for part in "$@"; do
  start=$SECONDS result=passed
  make --no-print-directory "$part" 2>&1 | tee -a "$log" || { result=FAILED status=1; }
  summary+=$(printf '%-12s %5d s  %s' "$part" $((SECONDS - start)) "$result")$'\n'
  if [ "$result" = FAILED ] && [ "$part" = venv ]; then break; fi
done
printf '\n'
grep '^SKIPPED' "$log" | sort | uniq -c
printf '%s%-12s %5d s\n' "$summary" total $SECONDS
exit $status
