# What cffi makes of csrc/privileges.h (see csrc/build_privileges.py).
from typing import Any

class ffi:
    @staticmethod
    def new(cdecl: str, init: object = ...) -> Any: ...

class lib:
    CAP_NET_ADMIN: int
    CAP_NET_RAW: int
    @staticmethod
    def autoip_privileges_permitted(permitted: Any) -> int: ...
    @staticmethod
    def autoip_privileges_limit(keep: int, pass_on: bool) -> int: ...
    @staticmethod
    def autoip_privileges_files_as(user: int, group: int) -> int: ...
