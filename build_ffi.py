"""
Definition of ``pybtrfs._btrfs``, the cffi module with the ioctls and system calls that the standard library lacks.

The C code stands in ``src/pybtrfs``: functions in ``btrfs.c``, their declarations in ``btrfs.h``, the kernel's structs
and numbers in ``btrfs_uapi.h``. setup.py builds the module from `ffi`.
"""

import re
from pathlib import Path

from cffi import FFI

PACKAGE = Path(__file__).parent / "src/pybtrfs"
HEADERS = ["btrfs_uapi.h", "btrfs.h"]

# From <sys/mount.h> and <fcntl.h>.
CONSTANTS = """
    MS_RDONLY MS_NOSUID MS_NODEV MS_NOEXEC MS_REMOUNT MS_NOATIME MS_BIND MS_REC MS_PRIVATE
    MNT_FORCE MNT_DETACH UMOUNT_NOFOLLOW O_PATH AT_FDCWD AT_EMPTY_PATH AT_RECURSIVE
"""


def declarations(header: str) -> str:
    """
    Return *header* in cffi's syntax, which leaves the values of constants and the layouts of structs to the compiler.
    """
    header = re.sub(r"^(#pragma|#include|_Static_assert).*", "", header, flags=re.MULTILINE)
    header = re.sub(r"^#define (\w+) .*", r"#define \1 ...", header, flags=re.MULTILINE)
    return re.sub(r"^};", "    ...;\n};", header, flags=re.MULTILINE)


version = (PACKAGE / "_version.py").read_text().split('"')[1]

ffi = FFI()
ffi.cdef("static const char *const PYBTRFS_VERSION;")
for header in HEADERS:
    ffi.cdef(declarations((PACKAGE / header).read_text()))
for constant in CONSTANTS.split():
    ffi.cdef(f"#define {constant} ...")
ffi.set_source(
    "pybtrfs._btrfs",
    '#include "btrfs.c"\n',  # not in sources: in one file with their callers, the functions are inlined
    depends=[f"src/pybtrfs/{file}" for file in ("btrfs.c", *HEADERS)],
    define_macros=[("_GNU_SOURCE", "1"), ("PYBTRFS_VERSION", f'"{version}"')],
    include_dirs=[str(PACKAGE)],
    py_limited_api=True,
)
