"""The installer of the DHCP clients' hooks; their files are in hooks/."""
