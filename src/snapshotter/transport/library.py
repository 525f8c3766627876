"""
The door to libnghttp2: the compiled module, and the library that it calls.

This module alone imports ``snapshotter.transport._http2``.
"""

import itertools
from functools import cache
from typing import TYPE_CHECKING

import _cffi_backend

from snapshotter.errors import UnavailableError
from snapshotter.transport._http2 import ffi, lib

if TYPE_CHECKING:
    from snapshotter.transport._http2 import Buffer as Buffer
    from snapshotter.transport._http2 import CData as CData

__all__ = ["SONAME", "ffi", "lib", "load"]

SONAME = "libnghttp2.so.14"

_CURE = "install libnghttp2-14 (Debian, Ubuntu, openSUSE), libnghttp2 (Fedora, Arch) or nghttp2-libs (Alpine)"


@cache
def load() -> object:
    """
    Load libnghttp2, which all functions of the compiled module need. Return it, because its owner keeps it open.

    Raises:
        UnavailableError: The library is missing, or lacks a function.
    """
    try:
        # Neither dlopen() in C, which would tie the wheel to a new C library, nor ctypes, which some versions cannot
        # import under systemd's MemoryDenyWriteExecute.
        library = _cffi_backend.load_library(SONAME, 0)
    except OSError as error:
        raise UnavailableError(f"{SONAME} is missing, which speaks HTTP/2: {_CURE}") from error
    any_function = ffi.typeof("void(*)(void)")
    for index in itertools.count():
        name = lib.http2_function(index)
        if not name:
            return library
        symbol = ffi.string(name).decode()
        try:
            function = library.load_function(any_function, symbol)  # type: ignore[no-untyped-call] # not in its stub
        except AttributeError as error:
            if index < lib.HTTP2_REQUIRED_FUNCTIONS:
                raise UnavailableError(f"{SONAME} is too old, because it lacks {symbol}: {_CURE}") from error
            function = ffi.NULL
        lib.http2_bind(index, ffi.cast("void *", function))
    raise AssertionError  # for mypy
