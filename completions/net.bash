# bash completion of net; install: net completion bash > ~/.local/share/bash-completion/completions/net
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
