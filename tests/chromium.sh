#!/usr/bin/env bash
# chromium.sh: Debian's Chromium and its driver, which tests/reporting/test_page_samples.py opens reports in; installed if they are missing.
set -euo pipefail
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
skip() {
  echo "SKIPPED: opening reports in a real browser. $1. As root on Debian: apt-get install chromium chromium-driver"
  exit 0
}
[ "$(id -u)" = 0 ] || skip "Chromium is missing and this is not root"
command -v apt-get >/dev/null || skip "Chromium is missing and there is no apt-get"
apt-get update -qq || skip "apt-get update failed"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null \
  || skip "apt-get install failed"
