"""What Linux can do and what it reports: netlink, ARP sockets, filters, timers, capabilities."""
