"""NetworkManager, followed on D-Bus: an optional extra."""
