"""Answers the completion scripts: which words may come next. Silent whatever happens; a prompt is no place for errors."""

from __future__ import annotations

import contextlib
import io
from typing import Final

import click

from net_cli.context import App

VARIABLE: Final = "_NET_COMPLETE"


def answer(root: click.Group, instruction: str) -> int:
    """Print the candidates for the words in COMP_WORDS, in the format `bash_complete`, `zsh_complete` or `fish_complete`."""
    from click.shell_completion import shell_complete

    shell, _, verb = instruction.partition("_")
    if verb != "complete" or shell not in ("bash", "zsh", "fish"):
        return 1
    with contextlib.redirect_stderr(io.StringIO()):
        return shell_complete(root, {"obj": App([])}, "net", VARIABLE, instruction)
