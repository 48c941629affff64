#!/usr/bin/env bash
# Prints a Python that can make our virtual environment; PYTHON=... chooses one. Fails with a sentence when there is none.
set -uo pipefail

for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
  # asked, not only looked up: a version manager's shim may stand for a Python that is not there
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    "$candidate" -c 'import sys; print(sys.executable)'
    exit 0
  fi
done
echo "No Python 3.11 or newer with the venv module was found (looked for: ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python})." >&2
echo "Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make install PYTHON=/path/to/python3." >&2
exit 1
