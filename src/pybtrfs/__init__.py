"""
btrfs from Python with nothing but the kernel.
"""

from pybtrfs._btrfs import ffi, lib
from pybtrfs._version import __version__

__all__ = ["__version__"]

_compiled = ffi.string(lib.PYBTRFS_VERSION).decode()
if _compiled != __version__:
    raise ImportError(
        f"pybtrfs is version {__version__!r}, its compiled module {_compiled!r}: another distribution named pybtrfs "
        "has probably overwritten files of btrfs-snapshotter; uninstall both, and install btrfs-snapshotter again"
    )
