# fish completion for autoip.

set -l others status watch wait refresh stop probe hooks

function __autoip_interfaces
    # A bonding driver puts a file there that is no interface.
    for path in /sys/class/net/*/
        basename $path
    end
end

function __autoip_words
    # What stands before the last comma stays.
    set -l before (string match -r '.*,' -- (commandline -ct))
    for word in if=(__autoip_interfaces) ip= delay= debug abandon
        echo "$before$word"
    end
end

function __autoip_hooks_first
    # Only `hooks` stands before.
    set -l words (commandline -opc)
    test (count $words) -eq 2; and test $words[2] = hooks
end

complete -c autoip -f
complete -c autoip -n 'not __autoip_hooks_first' -a '(__autoip_interfaces)'
complete -c autoip -n __autoip_hooks_first -a 'install remove list'
complete -c autoip -s h -l help -d 'Show a summary'

complete -c autoip -n __fish_is_first_arg -a run -d 'Serve interfaces until stopped'
complete -c autoip -n __fish_is_first_arg -a status -d 'How things stand'
complete -c autoip -n __fish_is_first_arg -a watch -d 'Events as they happen'
complete -c autoip -n __fish_is_first_arg -a wait -d 'Return when an address is held'
complete -c autoip -n __fish_is_first_arg -a refresh -d 'Probe the address again, now'
complete -c autoip -n __fish_is_first_arg -a stop -d 'End serving an interface'
complete -c autoip -n __fish_is_first_arg -a probe -d 'Ask whether any IPv4 address is free'
complete -c autoip -n __fish_is_first_arg -a hooks -d 'What makes DHCP clients start and stop autoip'

set -l run "not __fish_seen_subcommand_from $others"
complete -c autoip -n $run -l ip -x -d 'First candidate'
complete -c autoip -n $run -l abandon -d 'Give up at the first conflict'
complete -c autoip -n $run -l delay -x -d 'Longest pause between two probes, 1 to 8000 ms'
complete -c autoip -n $run -l up -d 'Set the interface up if it is down'
complete -c autoip -n $run -l policy -x -a 'alongside fallback route-only' -d 'When there is to be an address'
complete -c autoip -n $run -l after -x -d 'Seconds without a routable address before one is claimed'
complete -c autoip -n $run -l linger -x -d 'Seconds that it stays beside a new routable one'
complete -c autoip -n $run -l route-only -d 'No address, only a route to link-local hosts'
complete -c autoip -n $run -l default-route -d 'All is on the link while there is no default route'
complete -c autoip -n $run -l config -r -F -d 'Read FILE instead of the configuration'
complete -c autoip -n $run -l hook -d 'Started by a hook of a DHCP client'
complete -c autoip -n $run -l early -d 'With --hook: DHCP has not had its chance yet'
complete -c autoip -n $run -l no-state -d 'Neither read nor write the last address'
complete -c autoip -n $run -l script -r -F -d 'Run FILE when the address comes and goes'
complete -c autoip -n $run -l script-style -x -a 'avahi zcip' -d 'Whose scripts'
complete -c autoip -n $run -l debug -d 'Verbose'
complete -c autoip -n $run -l syslog -d 'Log to syslog as well'
complete -c autoip -n $run -s o -x -a '(__autoip_words)' -d 'The option string of the AutoIP module'
complete -c autoip -n $run -l version -d 'Show the version'

complete -c autoip -n '__fish_seen_subcommand_from status watch probe' -l json -d 'JSON, for scripts'
complete -c autoip -n '__fish_seen_subcommand_from wait' -l timeout -x -d 'Give up after so many seconds'
complete -c autoip -n '__fish_seen_subcommand_from probe' -l delay -x -d 'Longest pause between two probes, 1 to 8000 ms'

set -l hooks '__fish_seen_subcommand_from hooks'
complete -c autoip -n $hooks -l client -x -a 'dhclient ifupdown dhcpcd udhcpc networkd-dispatcher networkmanager' -d 'For this DHCP client'
complete -c autoip -n $hooks -l root -x -a '(__fish_complete_directories)' -d 'An image that is being built'
complete -c autoip -n $hooks -l no-conf -d "Leave the client's configuration alone"
complete -c autoip -n $hooks -l program -r -F -d 'The program to start'
