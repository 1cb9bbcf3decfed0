#!/usr/bin/env bash
# The Debian packages that the build and the tests need, in this one place.
#
#   tools/deps.sh GROUP...
#
#   build   a Python with venv and headers, a C compiler
#   demo    the tools that `make run` without IFACE needs besides
#   test    the tools and the other link-local programs that the tests run (root)
#   check   the tools of `make check`
#   bench   the programs that `make bench` compares with besides
#   attack  libFuzzer, for `make attack`
#   deb     what debian/control needs for `make deb`
#   roots   the tools that make bare Debian machines (lab/roots.py)
#   ci      build, test, check, attack
#
# Looks for each tool and takes the package only if the tool is missing. On Debian it prints which packages it
# installs and installs all of them at once, with sudo if it does not run as root. Otherwise it prints the
# missing tools and fails. PYTHON names the interpreter (default python3).
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
python=${PYTHON:-python3}
packages=()

fail() {
    echo "autoip: $*" >&2
    exit 1
}

# need PACKAGE COMMAND: add PACKAGE to the list if there is no such command.
need() {
    command -v "$2" >/dev/null || packages+=("$1")
}

need_python() {
    # A version manager may have a shim for a Python that is not there: run it.
    if ! "$python" -c '' 2>/dev/null; then
        [[ $python =~ ^python3(\.[0-9]+)?$ ]] || fail "$python: no such Python"
        packages+=("$python" "$python-venv" "$python-dev")
        return
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is $("$python" -V 2>&1); Python 3.10 or newer is needed (PYTHON=python3.12)"
    local missing=()
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(venv)
    "$python" -c 'import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not os.path.exists(header))' || missing+=(dev)
    ((${#missing[@]})) || return 0
    local program
    program=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    [[ $program =~ ^/usr/bin/python3\.[0-9]+$ ]] ||
        fail "$program is not Debian's and lacks: ${missing[*]} (venv: ensurepip; dev: Python.h)"
    packages+=("${missing[@]/#/${program#/usr/bin/}-}")
}

need_compiler() {
    need gcc gcc
    # A compiler without the headers of libc and the kernel.
    printf '#include <stdio.h>\n#include <linux/if_packet.h>\n' |
        gcc -E - >/dev/null 2>&1 || packages+=(libc6-dev)
}

need_peers() {
    # Without root the tests that use these are skipped.
    ((EUID == 0)) || return 0
    need nftables nft
    need iputils-ping ping
    need tcpdump tcpdump
    need strace strace
    need avahi-autoipd avahi-autoipd
    need avahi-daemon avahi-daemon
    need dhcpcd-base dhcpcd
    [[ -x /lib/systemd/systemd-networkd ]] || packages+=(systemd)
}

# The DHCP clients beside which autoip is a fallback, and servers for them.
need_dhcp() {
    ((EUID == 0)) || return 0
    need isc-dhcp-client dhclient
    need isc-dhcp-server dhcpd
    need network-manager NetworkManager
    need dbus dbus-daemon
    need udhcpc udhcpc
    need ifupdown ifup
    need networkd-dispatcher networkd-dispatcher
}

# The tools that check the service, the manual and the completions.
need_documents() {
    # Without root nothing can be installed, and the tests that use these are skipped.
    ((EUID == 0)) || return 0
    need systemd systemd-analyze
    need udev udevadm
    need mandoc mandoc
    need zsh zsh
    need fish fish
}

# The tools that make a bare Debian and boot it, for the service under a real systemd.
need_booted() {
    ((EUID == 0)) || return 0
    need debootstrap debootstrap
    need systemd-container systemd-nspawn
}

# The library of sanitizers and of libFuzzer is a package beside the compiler, named after its version.
need_fuzzer() {
    need clang clang
    local version
    version=$(clang -dumpversion 2>/dev/null || true)
    printf 'int LLVMFuzzerTestOneInput(void) { return 0; }\n' |
        clang -x c -w -fsanitize=fuzzer,address,undefined -o /dev/null - 2>/dev/null ||
        packages+=("libclang-rt${version:+-${version%%.*}}-dev")
}

# The names of the build dependencies in debian/control, and what Debian takes for granted.
need_deb() {
    dpkg-checkbuilddeps 2>/dev/null && return
    local names
    mapfile -t names < <(sed -n '/^Build-Depends:/,/^[A-Z]/p' debian/control |
        sed -nE 's/^(Build-Depends:)? +([a-z0-9-]+).*/\2/p')
    packages+=(build-essential "${names[@]}")
}

collect() {
    case $1 in
    build)
        need_python
        need_compiler
        ;;
    demo)
        need iproute2 ip
        ;;
    test)
        need iproute2 ip
        need_documents
        need_peers
        need_dhcp
        need_booted
        ;;
    check)
        need shellcheck shellcheck
        need valgrind valgrind
        ;;
    bench)
        need arp-scan arp-scan
        need nmap nmap
        ;;
    attack)
        need_fuzzer
        ;;
    deb)
        need_deb
        ;;
    roots)
        need debootstrap debootstrap
        need git git
        need python3 python3
        ;;
    ci)
        collect build
        collect test
        collect check
        collect attack
        ;;
    *) fail "unknown group: $1 (build, demo, test, check, bench, attack, deb, roots, ci)" ;;
    esac
}

policy=/usr/sbin/policy-rc.d
mark='# Written by tools/deps.sh of autoip, removed when it ends.'
log=

cleanup() {
    if [[ -f $policy ]] && grep -qxF "$mark" "$policy"; then rm -f "$policy"; fi
    [[ -z $log ]] || rm -f "$log"
}

# Run apt-get without questions. Print its output only if it fails.
apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" \
        </dev/null >>"$log" 2>&1
}

install() {
    log=$(mktemp)
    trap cleanup EXIT
    # Packages with a service must not start it here.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
        chmod 755 "$policy"
    fi
    # If one repository does not answer, the next command may still succeed.
    apt update || true
    if ! apt install -y --no-install-recommends "$@"; then
        cat "$log" >&2
        fail "cannot install from Debian: $*"
    fi
}

if [[ ${1:-} == --install ]]; then
    shift
    install "$@"
    exit
fi
for group; do
    collect "$group"
done
((${#packages[@]})) || exit 0
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
if [[ ! -e /etc/debian_version ]] || ! command -v apt-get >/dev/null; then
    fail "not a Debian system; install what these Debian packages hold: ${packages[*]}"
fi
if ((EUID == 0)); then
    echo "autoip: installing from Debian: ${packages[*]}"
    install "${packages[@]}"
elif command -v sudo >/dev/null; then
    echo "autoip: installing from Debian, with sudo: ${packages[*]}"
    sudo bash "${BASH_SOURCE[0]}" --install "${packages[@]}" ||
        fail "missing from this machine: ${packages[*]}"
else
    fail "missing from this machine, and there is no sudo; run as root:" \
        "apt-get install -y --no-install-recommends ${packages[*]}"
fi
