"""
Builds ``pybtrfs._btrfs``: the ioctls and system calls that Python's standard library lacks.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffi = FFI()
ffi.cdef(
    """
    static const char *const PYBTRFS_VERSION;
    int pybtrfs_ioctl(int fd, unsigned long request, void *argument);
    """
)
version = (HERE / "src/pybtrfs/_version.py").read_text().split('"')[1]
ffi.set_source(
    "pybtrfs._btrfs",
    """
    #include "btrfs_uapi.h"
    #include <sys/ioctl.h>

    static int pybtrfs_ioctl(int fd, unsigned long request, void *argument)
    {
        return ioctl(fd, request, argument);
    }
    """,
    define_macros=[("PYBTRFS_VERSION", f'"{version}"')],
    include_dirs=[str(HERE / "src/pybtrfs")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
