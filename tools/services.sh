#!/usr/bin/env bash
# Print the services of autoip that are enabled or running, one a line.
set -euo pipefail

{
    find /etc/systemd/system -path '*.*/autoip*.service' -printf '%f\n' 2>/dev/null || true
    if [[ -d /run/systemd/system ]]; then
        systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating \
            autoip.service 'autoip*@*.service' | cut -d ' ' -f 1
    fi
} | sort -u
