"""What stands for a script where none was chosen, so that script.py is imported only if there is one."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import final


@final
class NoScript:
    """As `script.ScriptRunner`, but nothing is called."""

    quiet = True
    reported: IPv4Address | None = None

    def bound(self, address: IPv4Address) -> None:
        """Report to nobody that the address is held."""

    def lost(self, *, conflict: bool = False) -> None:
        """Report to nobody that the address is gone."""

    async def stop(self) -> None:
        """End at once."""
