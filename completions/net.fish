# fish completion of net; install: net completion fish > ~/.config/fish/completions/net.fish
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
