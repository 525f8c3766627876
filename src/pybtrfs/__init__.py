"""
A btrfs binding that needs nothing but the kernel.
"""

from pybtrfs._btrfs import ffi, lib
from pybtrfs._version import __version__

__all__ = ["__version__"]

_compiled = ffi.string(lib.PYBTRFS_VERSION).decode()
if _compiled != __version__:
    raise ImportError(
        f"pybtrfs has version {__version__!r}, but its compiled module has {_compiled!r}. Another distribution named "
        "pybtrfs has probably overwritten files of btrfs-snapshotter. Uninstall both, then install btrfs-snapshotter."
    )
