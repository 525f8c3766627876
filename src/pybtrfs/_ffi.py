"""
The door to the compiled module: its structs and functions, and the checks around a call.

This module and the package's version check alone import ``pybtrfs._btrfs``.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from pybtrfs._btrfs import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from pybtrfs._btrfs import CData as CData
    from pybtrfs._btrfs import CType

__all__ = ["call", "check", "ffi", "lib", "new", "typeof", "uncleared", "without_nul"]

_Result = TypeVar("_Result")

# Clearing a large buffer can take longer than the call that fills it.
uncleared = ffi.new_allocator(should_clear_after_alloc=False)

# Parsing a declaration takes longer than allocating the struct.
typeof = cache(ffi.typeof)


def new(cdecl: str, values: object, allocate: Callable[[CType, object], CData] = ffi.new) -> CData:
    """
    Return a new C object of type *cdecl*, initialised with *values*.

    Raises:
        ValueError: *values* do not fit into the type.
    """
    try:
        return allocate(typeof(cdecl), values)
    except (IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"{values!r:.80} does not fit: {error}") from error


def call(function: Callable[..., _Result], *arguments: object) -> _Result:
    """
    Return the result of the C function for *arguments*.

    Raises:
        ValueError: A number among *arguments* does not fit into its C type.
    """
    try:
        return function(*arguments)
    except OverflowError as error:
        raise ValueError(f"{arguments!r:.80} do not fit: {error}") from error


def check(result: int, call: str, privilege: str = "", filename: object = None) -> int:
    """
    Return *result* if it is not negative, or raise the OSError that -errno stands for.

    Args:
        result: The result of a C function: -errno when the kernel refused.
        call: The name of the system call or ioctl, for a note on the error.
        privilege: The privilege that the call needs, for a second note if errno is EPERM.
    """
    if result >= 0:
        return result
    # A local variable for the error would form a reference cycle with this frame. The frame, and all that its callers
    # hold, would then live until the next garbage collection, even if the error is handled.
    raise _refusal(-result, call, privilege, filename)


def without_nul(name: bytes) -> bytes:
    """
    Return *name*, which C ends at its first NUL byte.

    Raises:
        ValueError: *name* contains a NUL byte.
    """
    if b"\0" in name:
        raise ValueError(f"embedded null byte in {name!r}")
    return name


def _refusal(number: int, call: str, privilege: str, filename: object) -> OSError:
    error = OSError(number, os.strerror(number))
    error.filename = filename
    error.add_note(call)
    if privilege and number == errno.EPERM:
        error.add_note(f"needs {privilege}")
    return error
