"""Make `.venv` in this tree: the project itself, editable, with its development tools. Standard library only.

Done once: a stamp holds what the environment was built from (pyproject.toml, the place of the tree, the
interpreter), and an equal stamp ends the work in a moment. A lock makes parallel `make` calls wait for one set-up.
`uv` is used when it is there; should it fail (it does not read pip's configuration), venv and pip do the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
VENV = TREE / ".venv"
STAMP = VENV / "net-setup.json"
WHAT = ["-e", ".[dev]"]


def main() -> int:
    """Bring `.venv` up to date; the exit code."""
    with (TREE / ".setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = stamp()
        if read_stamp() == wanted and runs():
            return 0
        if VENV.exists() and not reusable(wanted):
            remove_venv()
        say("setting up .venv (once; a minute or two)")
        if not (with_uv() or with_pip()):
            say("failed: the output above says why; nothing outside the tree was changed")
            return 1
        STAMP.write_text(json.dumps(wanted))
    return 0


def say(text: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"setup: {text}\n")


def stamp() -> dict[str, str]:
    """What the environment depends on."""
    return {
        "pyproject": digest("pyproject.toml"),
        "version": digest("substrate/__init__.py"),  # its version goes into the installed metadata
        "tree": str(TREE),  # scripts in a virtual environment hold absolute paths
    }


def digest(name: str) -> str:
    """SHA-256 of a file of the tree."""
    return hashlib.sha256((TREE / name).read_bytes()).hexdigest()


def read_stamp() -> dict[str, str] | None:
    """The stamp of the last finished set-up, or None when there was none or it was cut short."""
    try:
        found: dict[str, str] = json.loads(STAMP.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found


def runs() -> bool:
    """Whether the environment's interpreter still starts (its base may have been upgraded away) and is new enough."""
    python = VENV / "bin" / "python"
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    return python.exists() and subprocess.run([python, "-c", check], check=False, capture_output=True).returncode == 0


def reusable(wanted: dict[str, str]) -> bool:
    """Whether packages can be brought up to date in place: it runs and the tree has not moved."""
    found = read_stamp()
    return runs() and (found is None or found["tree"] == wanted["tree"])


def remove_venv() -> None:
    """Remove the old environment, but only if it is one."""
    if not (VENV / "pyvenv.cfg").exists():
        raise SystemExit(f"setup: {VENV} exists and is no virtual environment; move it away")
    shutil.rmtree(VENV)


def run(*command: str | Path) -> bool:
    """Run a step in the tree; whether it worked."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=TREE, env=env, check=False).returncode == 0


def with_uv() -> bool:
    """Set up with uv; False when it is not there or did not succeed."""
    uv = shutil.which("uv")
    if uv is None:
        return False
    if not VENV.exists() and not run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, VENV):
        return False
    if run(uv, "pip", "install", "--quiet", "--python", VENV / "bin" / "python", *WHAT):
        return True
    say("uv did not succeed; trying venv and pip")
    return False


def with_pip() -> bool:
    """Set up with the standard library's venv and pip."""
    python = VENV / "bin" / "python"
    if not runs():
        if importlib.util.find_spec("ensurepip") is None:
            say(f"{sys.executable} has no ensurepip: install your system's python3-venv package, or uv")
            return False
        if not run(sys.executable, "-m", "venv", "--clear", VENV):
            return False
    has_pip = subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
    if not has_pip and not run(python, "-m", "ensurepip"):
        return False
    return run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WHAT)


if __name__ == "__main__":
    sys.exit(main())
