#!/bin/sh
# Finds a Python 3.11+ and hands over to setup_venv.py. Nothing is installed outside the tree.
set -eu
cd "$(dirname "$0")/.."

usable() { # a version manager's stub may exist and refuse to run, so ask the interpreter itself
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        { command -v uv >/dev/null 2>&1 || "$1" -c 'import ensurepip, venv' 2>/dev/null; }
}

if [ -n "${PYTHON:-}" ]; then # named by the user: that one or none
    set -- "$PYTHON"
else
    set -- python3 python3.14 python3.13 python3.12 python3.11
fi
for candidate in "$@"; do
    if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
        exec "$candidate" -I tools/setup_venv.py
    fi
done
echo "setup: Python 3.11 or newer with venv and ensurepip is needed (some systems package them as python3-venv)." >&2
echo "setup: tried: $*. Install it, or name one: make PYTHON=/path/to/python3 ..." >&2
exit 1
