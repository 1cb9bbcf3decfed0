# shellcheck shell=bash
# bash completion for autoip.  bash-completion loads it from
# PREFIX/share/bash-completion/completions/autoip; sourcing it works as well.

_autoip() {
    # The line is read here, since readline splits words at '=' as well, and the words of -o have some.
    local line=${COMP_LINE:0:COMP_POINT}
    local current=${line##*[[:space:]]}
    local -a before
    read -ra before <<<"${line%"$current"}"
    local command=run previous=${before[-1]} interfaces='' path options words
    local clients="dhclient ifupdown dhcpcd udhcpc networkd-dispatcher networkmanager"

    for path in /sys/class/net/*; do
        # A bonding driver puts a file there that is no interface.
        [[ -d $path ]] && interfaces+=" ${path##*/}"
    done
    case ${before[1]} in
    status | watch | wait | refresh | stop | probe | hooks) command=${before[1]} ;;
    esac

    COMPREPLY=()
    case $command:$previous in
    run:--ip | run:--delay | run:--after | run:--linger | wait:--timeout | probe:--delay) return ;;
    hooks:hooks)
        [[ $current == -* ]] || {
            mapfile -t COMPREPLY < <(compgen -W "install remove list" -- "$current")
            return
        }
        ;;
    hooks:--client)
        mapfile -t COMPREPLY < <(compgen -W "$clients" -- "$current")
        return
        ;;
    hooks:--root)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        return
        ;;
    run:--script | run:--config | hooks:--program)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    run:--script-style)
        mapfile -t COMPREPLY < <(compgen -W "avahi zcip" -- "$current")
        return
        ;;
    run:--policy)
        mapfile -t COMPREPLY < <(compgen -W "alongside fallback route-only" -- "$current")
        return
        ;;
    run:-o)
        case $current in
        if=* | *,if=*)
            mapfile -t COMPREPLY < <(compgen -W "$interfaces" -- "${current##*=}")
            ;;
        ip=* | *,ip=* | delay=* | *,delay=*) ;;
        *)
            # What stands before the last comma stays.
            local kept=
            [[ $current == *,* ]] && kept=${current%,*},
            words="if= ip= delay= debug abandon"
            mapfile -t COMPREPLY < <(compgen -P "$kept" -W "$words" -- "${current##*,}")
            ;;
        esac
        compopt -o nospace
        return
        ;;
    esac

    options="-h --help"
    case $command in
    run) options+=" --ip --abandon --delay --up --policy --after --linger --route-only --default-route --config --hook --early --no-state --script --script-style --debug --syslog -o --version" ;;
    status | watch) options+=" --json" ;;
    wait) options+=" --timeout" ;;
    probe) options+=" --delay --json" ;;
    hooks) options+=" --client --root --no-conf --program" ;;
    esac
    words=$interfaces
    ((${#before[@]} == 1)) && words+=" run status watch wait refresh stop probe hooks"
    [[ $current == -* ]] && words=$options
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _autoip autoip
