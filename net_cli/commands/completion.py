"""`net completion`: scripts for bash, zsh and fish. The scripts ask `net` itself, so they never go stale."""

from __future__ import annotations

from typing import Final

from net_cli.context import App, pass_app
from net_cli.core import group

BASH: Final = r"""# bash completion of net; install: net completion bash > ~/.local/share/bash-completion/completions/net
_net_complete() {
    local type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(IFS=$'\n'; COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _NET_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _net_complete net
"""

ZSH: Final = r"""#compdef net
# zsh completion of net; install: net completion zsh > a directory of $fpath, as the file _net
_net() {
    local -a lines plain described
    local type value text
    (( $+commands[net] )) || return 1
    lines=("${(@f)$(COMP_WORDS="${(pj:\n:)words}" COMP_CWORD=$((CURRENT - 1)) _NET_COMPLETE=zsh_complete net 2>/dev/null)}")
    for type value text in "${lines[@]}"; do
        case $type in
            plain) if [[ $text == _ ]]; then plain+=("$value"); else described+=("$value:$text"); fi ;;
            file) _files ;;
            dir) _files -/ ;;
        esac
    done
    (( $#described )) && _describe -V 'net' described -U
    (( $#plain )) && compadd -U -V net -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _net "$@"; else compdef _net net; fi
"""

FISH: Final = r"""# fish completion of net; install: net completion fish > ~/.config/fish/completions/net.fish
function __net_complete
    set -lx COMP_WORDS (commandline -cp)
    set -lx COMP_CWORD (commandline -t)
    set -lx _NET_COMPLETE fish_complete
    for line in (net 2>/dev/null)
        set -l parts (string split -m 1 ',' -- $line)
        switch $parts[1]
            case plain
                echo -- $parts[2]
            case file
                __fish_complete_path $parts[2]
            case dir
                __fish_complete_directories $parts[2]
        end
    end
end
complete --no-files --command net --arguments '(__net_complete)'
"""

SCRIPTS: Final = {"net.bash": BASH, "_net": ZSH, "net.fish": FISH}
"""File name under `completions/` and content."""


@group("completion", examples=['eval "$(net completion bash)"', "net completion zsh > ~/.zfunc/_net"])
def completion() -> None:
    """Print a completion script for your shell.

    Completes commands, options, and the names of nodes, daemons, chains, operators, identities and profiles.
    """


@completion.command("bash", examples=['eval "$(net completion bash)"'])
@pass_app
def bash(app: App) -> None:
    """Print the script for bash (4.4 or later)."""
    app.out.text(BASH)


@completion.command("zsh", examples=["net completion zsh > ~/.zfunc/_net"])
@pass_app
def zsh(app: App) -> None:
    """Print the script for zsh."""
    app.out.text(ZSH)


@completion.command("fish", examples=["net completion fish > ~/.config/fish/completions/net.fish"])
@pass_app
def fish(app: App) -> None:
    """Print the script for fish."""
    app.out.text(FISH)
