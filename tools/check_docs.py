"""Check the texts of the project: dead links in Markdown, placeholders, names of the machine they were written on.

`python -m tools.check_docs` prints one line per problem, `file:line: what`, and exits 1 if there is any. Links to
other sites are not fetched: a check must not depend on the network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

TREE = Path(__file__).resolve().parent.parent
SKIPPED = {".git", ".venv", "__pycache__", "node_modules", "dist", "build", "out"}
"""Folders that hold nothing of ours; so do all others whose name ends in `_cache`, and .hypothesis."""

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s<>]+)")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")

# Written so that this file does not find itself.
FORBIDDEN = [
    (re.compile(r"(?<![\w.$}])/(?:work|farm|root|home/\w+)/"), "a path of somebody's machine"),
    (re.compile(r"/tmp/(?:bash_jobs|brief)\b"), "a path of somebody's machine"),
    (
        re.compile(r"\b(?:test\.)?pypi[.](?:org|python)|pythonhosted[.]org|registry[.]npmjs|(?<!\w)crates[.]io"),
        "a registry's host",
    ),
    (re.compile(r"\bTODO[-]LEAD\b"), "a placeholder"),
]


def texts(tree: Path) -> Iterator[Path]:
    """Every text file of the tree, in order; binary files (with a NUL) are left out."""
    for path in sorted(tree.iterdir()):
        if path.name in SKIPPED or path.name.endswith("_cache") or path.name == ".hypothesis" or path.is_symlink():
            continue
        if path.is_dir():
            yield from texts(path)
        elif b"\0" not in path.read_bytes():
            yield path


def slug(heading: str) -> str:
    """The anchor a heading gets where Markdown is shown: lower case, words joined by hyphens, marks dropped."""
    plain = re.sub(r"[`*]|!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines outside fenced code."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and fence and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            yield number, line


def anchors(path: Path) -> set[str]:
    """Every anchor of a Markdown file; a repeated heading gets -1, -2 and so on."""
    found: set[str] = set()
    seen: dict[str, int] = {}
    for _, line in prose(path.read_text()):
        found.update(ANCHOR.findall(line))
        heading = HEADING.match(line)
        if heading:
            name = slug(heading[1])
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found


def link_problem(source: Path, target: str, tree: Path) -> str | None:
    """Why a link leads nowhere, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    name, _, fragment = target.partition("#")
    path = (source.parent / unquote(name)).resolve() if name else source
    if not path.is_relative_to(tree):
        return f"the link {target} leaves the tree"
    if not path.exists():
        return f"the link {target} leads nowhere"
    if fragment and path.suffix == ".md" and fragment not in anchors(path):
        return f"the link {target} names a heading that {path.name} does not have"
    return None


def dead_links(path: Path, tree: Path) -> Iterator[str]:
    """Problems with the links of one Markdown file."""
    for number, line in prose(path.read_text()):
        bare = re.sub(r"(`+)(?!`).*?\1", "", line)
        for target in [*LINK.findall(bare), *DEFINITION.findall(bare)]:
            problem = link_problem(path, target, tree)
            if problem:
                yield f"{path.relative_to(tree)}:{number}: {problem}"


def forbidden_words(path: Path, tree: Path) -> Iterator[str]:
    """Words that have no place in the project, anywhere in a file."""
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        yield f"{path.relative_to(tree)}:1: not UTF-8 ({error.reason})"
        return
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in FORBIDDEN:
            found = pattern.search(line)
            if found:
                yield f"{path.relative_to(tree)}:{number}: {what}: {found[0]}"


def problems(tree: Path = TREE) -> list[str]:
    """Everything wrong with the texts under `tree`."""
    found: list[str] = []
    for path in texts(tree):
        found += forbidden_words(path, tree)
        if path.suffix == ".md":
            found += dead_links(path, tree)
    return found


if __name__ == "__main__":
    rows = problems()
    sys.stderr.writelines(f"{row}\n" for row in rows)
    sys.exit(1 if rows else 0)
