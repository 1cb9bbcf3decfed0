# shellcheck shell=bash
# bash completion for autoip. bash-completion loads it from
# PREFIX/share/bash-completion/completions/autoip; sourcing it works as well.
# The parts between "begin" and "end" are written by `python -m tools.documents` from the tables of options.

_autoip() {
    # The line is read here, since readline splits words at '=' as well, and the words of -o have some.
    local line=${COMP_LINE:0:COMP_POINT}
    local current=${line##*[[:space:]]}
    local -a before
    read -ra before <<<"${line%"$current"}"
    local command=run previous=${before[-1]} interfaces='' offered='' path commands module_words words
    local options="-h --help"
    if [[ $current == --*=* ]]; then
        previous=${current%%=*}=
        current=${current#*=}
    fi

    for path in /sys/class/net/*; do
        # A bonding driver puts a file there that is not an interface.
        [[ -d $path ]] && interfaces+=" ${path##*/}"
    done
    # begin COMMANDS
    commands="run status watch wait refresh reload stop route probe scan doctor hooks help version" module_words="if= ip= delay= debug abandon"
    case ${before[1]} in
    status | watch | wait | refresh | reload | stop | route | probe | scan | doctor | hooks | help | version) command=${before[1]} ;;
    esac
    # end COMMANDS
    # begin VALUES
    case $command:$previous in
    run:--ip | run:--range | run:--exclude | run:--delay | run:--after | run:--linger | run:--user | wait:--timeout | probe:--delay | scan:--count | scan:--mac | scan:--timeout | scan:--net | scan:--rate | scan:--delay) offered="nothing" ;;
    run:--policy) offered="alongside fallback route-only" ;;
    run:--config | run:--script | run:--trace | hooks:--program) offered="files" ;;
    run:--script-style) offered="avahi zcip" ;;
    run:-o) offered="words" ;;
    status:--json= | watch:--json= | probe:--json= | scan:--json= | doctor:--json=) offered="short pretty" ;;
    wait:--for) offered="link-local routable any" ;;
    route:route | version:version) offered="operand " ;;
    hooks:--client) offered="dhclient ifupdown dhcpcd udhcpc networkd-dispatcher networkmanager" ;;
    hooks:--root) offered="folders" ;;
    hooks:hooks) offered="operand install remove list" ;;
    help:help) offered="operand run status watch wait refresh reload stop route probe scan doctor hooks help version" ;;
    esac
    # end VALUES
    # begin OPTIONS
    case $command in
    run) options+=" --ip --range --exclude --delay --debug --abandon --up --policy --after --linger --route-only --default-route --configured --config --hook --early --no-state --script --script-style --user --trace --syslog --dry-run -o --version" ;;
    status) options+=" -j --json" ;;
    watch) options+=" -j --json" ;;
    wait) options+=" --timeout --for --any" ;;
    refresh) options+=" --if-waiting" ;;
    stop) options+=" --leftovers" ;;
    probe) options+=" --delay -j --json" ;;
    scan) options+=" --listen --first --count --mac --timeout --net --rate --delay --all -j --json" ;;
    doctor) options+=" -j --json" ;;
    hooks) options+=" --client --root --no-conf --program" ;;
    esac
    # end OPTIONS

    COMPREPLY=()
    case $offered in
    nothing) return ;;
    files)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    folders)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        return
        ;;
    words)
        case ${current##*,} in
        if=*)
            mapfile -t COMPREPLY < <(compgen -W "$interfaces" -- "${current##*=}")
            ;;
        *=*) ;;
        *)
            # The text before the last comma stays.
            local kept=
            [[ $current == *,* ]] && kept=${current%,*},
            mapfile -t COMPREPLY < <(compgen -P "$kept" -W "$module_words" -- "${current##*,}")
            ;;
        esac
        compopt -o nospace
        return
        ;;
    esac

    words=$interfaces
    ((${#before[@]} == 1)) && words+=" $commands"
    if [[ -n $offered && $offered != operand\ * ]]; then
        words=$offered
    elif [[ $current == -* ]]; then
        words=$options
    elif [[ -n $offered ]]; then
        words=${offered#operand }
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _autoip autoip
