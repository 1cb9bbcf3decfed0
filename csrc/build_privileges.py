"""Builds `autoip.kernel._privileges` with cffi.  Run by setup.py, from the top of the source tree."""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    #define CAP_NET_ADMIN ...
    #define CAP_NET_RAW ...

    int autoip_privileges_permitted(uint64_t *permitted);
    int autoip_privileges_limit(uint64_t keep, int pass_on);
    int autoip_privileges_files_as(uint32_t user, uint32_t group);
    """
)

ffibuilder.set_source(
    "autoip.kernel._privileges",
    '#include <linux/capability.h>\n#include "privileges.h"',
    sources=["csrc/privileges.c"],
    depends=["csrc/privileges.h"],
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
