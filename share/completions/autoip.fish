# fish completion for autoip.
# The parts between "begin" and "end" are written by `python -m tools.documents` from the tables of options.

function __autoip_interfaces
    # A bonding driver puts a file there that is not an interface.
    for path in /sys/class/net/*/
        basename $path
    end
end

function __autoip_words
    # The text before the last comma stays.
    set -l before (string match -r '.*,' -- (commandline -ct))
    # begin WORDS
    set -l words if=(__autoip_interfaces) ip= delay= debug abandon
    # end WORDS
    for word in $words
        echo "$before$word"
    end
end

function __autoip_hooks_first
    # Only `hooks` stands before.
    set -l words (commandline -opc)
    test (count $words) -eq 2; and test $words[2] = hooks
end

function __autoip_help_first
    # Only `help` stands before.
    set -l words (commandline -opc)
    test (count $words) -eq 2; and test $words[2] = help
end

function __autoip_no_interface
    set -l words (commandline -opc)
    __autoip_hooks_first; or contains -- "$words[2]" route help version
end

complete -c autoip -f
complete -c autoip -n 'not __autoip_no_interface' -a '(__autoip_interfaces)'
complete -c autoip -s h -l help -d 'Show a summary'
# begin OPTIONS
complete -c autoip -n __fish_is_first_arg -a run -d 'serve interfaces, in the foreground, until stopped'
complete -c autoip -n __fish_is_first_arg -a status -d 'how things stand'
complete -c autoip -n __fish_is_first_arg -a watch -d 'events as they happen, until interrupted'
complete -c autoip -n __fish_is_first_arg -a wait -d 'returns when the interfaces hold an address'
complete -c autoip -n __fish_is_first_arg -a refresh -d 'probes the address again, now'
complete -c autoip -n __fish_is_first_arg -a reload -d 'reads the configuration again and goes on as the program that is there now'
complete -c autoip -n __fish_is_first_arg -a stop -d 'ends serving the interface and takes its address off'
complete -c autoip -n __fish_is_first_arg -a route -d 'by which interface a link-local address is reached, and why'
complete -c autoip -n __fish_is_first_arg -a probe -d 'asks whether any IPv4 address is free on a link'
complete -c autoip -n __fish_is_first_arg -a scan -d 'which hosts are on the cable, with which addresses, and what they are'
complete -c autoip -n __fish_is_first_arg -a doctor -d 'what is in the way of link-local addresses here, and what cures it'
complete -c autoip -n __fish_is_first_arg -a hooks -d 'installs, removes or lists what makes DHCP clients start and stop autoip'
complete -c autoip -n __fish_is_first_arg -a help -d 'shows a summary of autoip, or of one command'
complete -c autoip -n __fish_is_first_arg -a version -d 'shows the version'

set -l where 'not __fish_seen_subcommand_from status watch wait refresh reload stop route probe scan doctor hooks help version'
complete -c autoip -n $where -l ip -x -d 'first candidate, 169.254.1.0 to 169.254.254.255, or mac'
complete -c autoip -n $where -l range -x -d 'the network from which candidates come'
complete -c autoip -n $where -l exclude -x -d 'addresses or networks that are never claimed, or none'
complete -c autoip -n $where -l delay -x -d 'longest pause between two probes, 1 to 8000 ms'
complete -c autoip -n $where -l debug -d 'verbose'
complete -c autoip -n $where -l abandon -d 'give up at the first conflict'
complete -c autoip -n $where -l up -d 'set the interface up if it is down at the start, or when it appears'
complete -c autoip -n $where -l policy -x -a 'alongside fallback route-only' -d 'when to have an address'
complete -c autoip -n $where -l after -x -d 'fallback: seconds, 0 to 86400, without a routable address before one is claimed'
complete -c autoip -n $where -l linger -x -d 'fallback: seconds, 0 to 86400, for which the address stays beside a new routable one'
complete -c autoip -n $where -l route-only -d 'no address: reach link-local hosts from the routable one (--policy route-only)'
complete -c autoip -n $where -l default-route -d 'reach all destinations on the link while there is no default route'
complete -c autoip -n $where -l configured -d 'serve what the configuration has with serve = yes, as it appears'
complete -c autoip -n $where -l config -r -F -d 'read FILE instead of /etc/autoip.conf and /etc/autoip.conf.d/*.conf'
complete -c autoip -n $where -l hook -d 'started by a DHCP client\'s hook: fallback, and at once'
complete -c autoip -n $where -l early -d 'with --hook: DHCP has not had its chance yet, so --after is 10'
complete -c autoip -n $where -l no-state -d 'neither read nor write the last address'
complete -c autoip -n $where -l script -r -F -d 'run FILE when the address comes and goes: BIND, CONFLICT, UNBIND or STOP, IFACE, ADDRESS'
complete -c autoip -n $where -l script-style -x -a 'avahi zcip' -d 'whose scripts: avahi (avahi-autoipd.action, the default) or zcip (BusyBox)'
complete -c autoip -n $where -l user -x -d 'started by root: become user NAME'
complete -c autoip -n $where -l trace -r -F -d 'append to FILE all that happens, for a report'
complete -c autoip -n $where -l syslog -d 'log to syslog as well'
complete -c autoip -n $where -l dry-run -d 'show which options are in force and where each comes from, and serve nothing'
complete -c autoip -n $where -s o -x -a '(__autoip_words)' -d 'the AutoIP module\'s option string: if=IFACE ip=ADDRESS delay=MS debug abandon'
complete -c autoip -n $where -l version -d 'show the version'

set -l where '__fish_seen_subcommand_from status'
complete -c autoip -n $where -s j -l json -a 'short pretty' -d 'one JSON object, for scripts'

set -l where '__fish_seen_subcommand_from watch'
complete -c autoip -n $where -s j -l json -a 'short pretty' -d 'a JSON object for each event, for scripts'

set -l where '__fish_seen_subcommand_from wait'
complete -c autoip -n $where -l timeout -x -d 'give up after so many seconds, 0 to 86400'
complete -c autoip -n $where -l for -x -a 'link-local routable any' -d 'which address'
complete -c autoip -n $where -l any -d 'until one of the interfaces has it'

set -l where '__fish_seen_subcommand_from refresh'
complete -c autoip -n $where -l if-waiting -d 'only end the waiting of --after, since DHCP has failed'

set -l where '__fish_seen_subcommand_from stop'
complete -c autoip -n $where -l leftovers -d 'remove only what a daemon that died has left on the interface'

set -l where '__fish_seen_subcommand_from probe'
complete -c autoip -n $where -l delay -x -d 'longest pause between two probes, 1 to 8000 ms'
complete -c autoip -n $where -s j -l json -a 'short pretty' -d 'one JSON object, for scripts'

set -l where '__fish_seen_subcommand_from scan'
complete -c autoip -n $where -l listen -d 'send nothing'
complete -c autoip -n $where -l first -d 'end at the first host'
complete -c autoip -n $where -l count -x -d 'end at so many hosts'
complete -c autoip -n $where -l mac -x -d 'only hosts whose hardware address is this, or begins like this'
complete -c autoip -n $where -l timeout -x -d 'end after so many seconds, 0 to 86400'
complete -c autoip -n $where -l net -x -d 'the network to ask through'
complete -c autoip -n $where -l rate -x -d 'ARP requests a second, or max'
complete -c autoip -n $where -l delay -x -d 'longest pause between two probes of an address that must be claimed first'
complete -c autoip -n $where -l all -d 'also each address of a host that has more than 16'
complete -c autoip -n $where -s j -l json -a 'short pretty' -d 'a JSON object for each host, for scripts'

set -l where '__fish_seen_subcommand_from doctor'
complete -c autoip -n $where -s j -l json -a 'short pretty' -d 'one JSON object, for scripts'

set -l where '__fish_seen_subcommand_from hooks'
complete -c autoip -n $where -l client -x -a 'dhclient ifupdown dhcpcd udhcpc networkd-dispatcher networkmanager' -d 'this client, also if it is not installed'
complete -c autoip -n $where -l root -x -a '(__fish_complete_directories)' -d 'an image that is being built'
complete -c autoip -n $where -l no-conf -d 'install: leave the client\'s configuration alone'
complete -c autoip -n $where -l program -r -F -d 'install: the program that the hooks start'
complete -c autoip -n __autoip_hooks_first -a 'install remove list'
complete -c autoip -n __autoip_help_first -a 'run status watch wait refresh reload stop route probe scan doctor hooks help version'
# end OPTIONS
