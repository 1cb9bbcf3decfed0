# What cffi makes of csrc/privileges.h (see csrc/build_privileges.py).
from typing import Any

class ffi:  # noqa: N801
    @staticmethod
    def new(cdecl: str, init: object = ...) -> Any: ...

class lib:  # noqa: N801
    CAP_NET_ADMIN: int
    CAP_NET_RAW: int
    @staticmethod
    def autoip_privileges_permitted(permitted: Any) -> int: ...
    @staticmethod
    def autoip_privileges_limit(keep: int) -> int: ...
