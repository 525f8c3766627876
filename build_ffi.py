"""
Definitions of the cffi modules, which setup.py builds.

``pybtrfs._btrfs`` has the ioctls and system calls that the standard library lacks: functions in ``btrfs.c``, the
kernel's structs and numbers in ``btrfs_uapi.h``. ``snapshotter.transport._http2`` has the sessions of libnghttp2, which
it calls through pointers, so that the library is needed at run time only.
"""

import re
from pathlib import Path

from cffi import FFI

SRC = Path(__file__).parent / "src"

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


def module(name: str, source: str, declared: list[str], included: list[str], macros: dict[str, str]) -> FFI:
    """
    Return the module *name*, whose C file is *source*, beside its headers.

    Args:
        declared: The headers with the functions and values for Python.
        included: The other headers of *source*.
    """
    directory = SRC.joinpath(*name.split(".")[:-1])
    ffi = FFI()
    for header in declared:
        ffi.cdef(declarations((directory / header).read_text()))
    ffi.set_source(
        name,
        f'#include "{source}"\n',  # not in sources: in one file with their callers, the functions are inlined
        depends=[str((directory / file).relative_to(SRC.parent)) for file in (source, *declared, *included)],
        define_macros=[("_GNU_SOURCE", "1"), *macros.items()],
        include_dirs=[str(directory)],
        py_limited_api=True,
    )
    return ffi


version = (SRC / "pybtrfs/_version.py").read_text().split('"')[1]

btrfs = module("pybtrfs._btrfs", "btrfs.c", ["btrfs_uapi.h", "btrfs.h"], [], {"PYBTRFS_VERSION": f'"{version}"'})
btrfs.cdef("static const char *const PYBTRFS_VERSION;")
for constant in CONSTANTS.split():
    btrfs.cdef(f"#define {constant} ...")

http2 = module("snapshotter.transport._http2", "http2.c", ["http2.h"], ["nghttp2.h"], {})
