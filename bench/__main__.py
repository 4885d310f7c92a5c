"""`python -m bench [names] [--out FILE or DIRECTORY] [--strict]`: run measurements, print the table, keep the JSON.

Without names everything is measured. A missed budget is shown, not an error (machines are noisy), unless --strict.
A measurement that cannot run is an error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import bench
from bench.harness import Row, machine, table


def names() -> list[str]:
    """Every module here that can measure."""
    found = []
    for info in pkgutil.iter_modules(bench.__path__):
        source = Path(bench.__path__[0]) / f"{info.name}.py"
        if source.exists() and "\ndef rows(" in source.read_text():
            found.append(info.name)
    return sorted(found)


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the budgets.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of: {', '.join(names())} (default: all)")
    parser.add_argument("--out", type=Path, help="write the JSON document to this file, or a new one in this directory")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a budget is missed")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        parser.error(f"no measurement called {', '.join(unknown)}; there are: {', '.join(names())}")

    document: dict[str, Any] = {"machine": machine(), "began_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    results: dict[str, list[Row]] = {}
    broken: dict[str, str] = {}
    for name in arguments.names or names():
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            results[name] = list(importlib.import_module(f"bench.{name}").rows())
        except Exception as error:  # one that cannot run must not hide the others; it is reported and exits 1
            traceback.print_exc()
            broken[name] = f"{type(error).__name__}: {error}"
    document |= {"results": results, "broken": broken}

    every = [entry for entries in results.values() for entry in entries]
    print(table(every))
    for name, why in broken.items():
        print(f"could not run {name}: {why}")
    if arguments.out:
        print(f"written: {write(document, arguments.out)}", file=sys.stderr)
    missed = [entry["name"] for entry in every if entry["ok"] is False]
    return 1 if broken or (arguments.strict and missed) else 0


def write(document: dict[str, Any], out: Path) -> Path:
    """Keep the document and say where."""
    path = out if out.suffix == ".json" else out / f"{document['began_at'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
