"""The socket between the daemon and the commands: protocol, server, client."""
