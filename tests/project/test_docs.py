"""The texts of the project: links lead somewhere, nothing of the writer's machine is left in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_docs


def test_the_texts_of_this_tree_are_sound() -> None:
    assert check_docs.problems() == []


def test_the_pages_a_visitor_expects_are_there() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        assert (check_docs.TREE / name).stat().st_size > 500, name


GOOD = """\
# One `net` page
## Twice
## Twice
[a](#one-net-page) [b](#twice-1) [c](other.md#there) [d](<with space.md>) [e](https://example.org/x) [f]: `[g](no.md)`
<a id="made"></a> [h](#made) ![i](folder/)

```sh
[not a link](nowhere.md)
```
[j]: other.md
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "other.md").write_text("# There\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.md").write_text(GOOD.replace("<with space.md>", "with%20space.md"))
    (tmp_path / "with space.md").write_text("text\n")
    return tmp_path


def test_sound_pages_have_no_problems(tree: Path) -> None:
    assert check_docs.problems(tree) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[x](missing.md)", "leads nowhere"),
        ("![x](missing.png)", "leads nowhere"),
        ("[x][y]\n\n[y]: missing.md", "leads nowhere"),
        ("[x](other.md#elsewhere)", "does not have"),
        ("[x](#elsewhere)", "does not have"),
        ("[x](../../outside.md)", "leaves the tree"),
        ("see /wo" + "rk/main/file", "somebody's machine"),
        ("see /tm" + "p/bash_jobs.0/x", "somebody's machine"),
        ("TODO" + "-LEAD: write this", "placeholder"),
        ("from py" + "pi.org/simple", "registry"),
    ],
)
def test_each_problem_is_found_and_placed(tree: Path, line: str, what: str) -> None:
    (tree / "bad.md").write_text(f"# Bad\n\n{line}\n")
    found = check_docs.problems(tree)
    assert len(found) == 1, found
    assert found[0].startswith("bad.md:")
    assert what in found[0]


def test_words_are_looked_for_in_every_text_but_not_in_caches(tree: Path) -> None:
    bad = "path = '/wo" + "rk/main'\n"
    (tree / "code.py").write_text(bad)
    (tree / ".mypy_cache").mkdir()
    (tree / ".mypy_cache" / "x.json").write_text(bad)
    (tree / "picture.png").write_bytes(b"\0" + bad.encode())
    (tree / "latin.txt").write_bytes(b"caf\xe9\n")
    assert [row.partition(":")[0] for row in check_docs.problems(tree)] == ["code.py", "latin.txt"]
