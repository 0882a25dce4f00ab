#!/usr/bin/env bash
# Makes the virtual environment from the lock file; on Debian it installs Python first if there is none.
#
#   hack/setup.sh .venv requirements/dev.lock
set -euo pipefail
venv=${1:?usage: setup.sh VENV LOCKFILE}
lock=${2:?usage: setup.sh VENV LOCKFILE}

find_python() {
  local candidate
  # 3.11 first: the lock was resolved for it.
  for candidate in python3.11 python3 python3.12 python3.13 python3.14; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

python=$(find_python)
if [ -z "$python" ] && command -v apt-get >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "Python >= 3.11 with venv is missing; run: sudo apt-get install -y python3 python3-venv" >&2; exit 1; }
  echo "installing Python"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3 python3-venv ca-certificates >/dev/null
  python=$(find_python)
fi
[ -n "$python" ] || { echo "Python >= 3.11 with its venv module is missing: install it and run this again" >&2; exit 1; }

echo "virtual environment: $venv ($("$python" --version))"
# A working one is brought up to date in place: it may be in use.
"$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check install --progress-bar off --no-deps --require-hashes -r "$lock"
touch "$venv/.locked"
