"""
A store in an image file that is mounted at the root, for machines without btrfs.
"""

import contextlib
import errno
import os
import string
from collections.abc import Callable

from pybtrfs import image
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from snapshotter.mounting import check_empty
from snapshotter.store.layout import real_path
from snapshotter.text import format_size

_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")


def create(root: str, file: str, size: int, *, sparse: bool = False, check: Callable[[], None] = lambda: None) -> None:
    """
    Create the image *file*, mount it at *root*, and create a store there; undo all steps if one fails.

    The image stays mounted until the next boot; `mount_unit` mounts it again. Needs ``CAP_SYS_ADMIN``.

    Args:
        size: The size of the image, in bytes.
        sparse: Do not reserve the space. If the disk below fills up, data already written to the store is lost.
        check: Called as the last step; an exception undoes all steps.

    Raises:
        NotFoundError: The parent directory of *root* does not exist.
        FailedPreconditionError: *root* is a mount point or not an empty directory, *file* exists, or btrfs, loop
            devices or a privilege are missing.
        InvalidArgumentError: *size* is too small, or a path has characters that a mount unit cannot contain.
        ResourceExhaustedError: The disk is full.
    """
    root, file = real_path(root), real_path(file)
    for path in (root, file):
        if not path.isprintable():
            raise InvalidArgumentError(f"{path!r} has characters that a unit file cannot contain: choose another path")
    if size < image.MINIMUM_SIZE:
        least = format_size(image.MINIMUM_SIZE)
        raise InvalidArgumentError(f"an image of {format_size(size)} is too small: the minimum is {least}")
    with contextlib.ExitStack() as undo:
        try:
            os.mkdir(root, 0o700)
            undo.callback(os.rmdir, root)
        except FileExistsError:
            check_empty(root)
        except FileNotFoundError as error:
            raise NotFoundError(f"{os.path.dirname(root)!r} does not exist: create it first") from error
        try:
            image.create(file, size, sparse=sparse)
        except FileExistsError as error:
            raise FailedPreconditionError(f"{file!r} exists: choose another file with --image-file") from error
        except OSError as error:
            text = f"cannot create {file!r} of {format_size(size)}: {error.strerror}"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise (ResourceExhaustedError if full else FailedPreconditionError)(text) from error
        undo.callback(os.unlink, file)
        try:
            mounted = image.mount(file, root)
        except OSError as error:
            raise unmountable(error) from error
        undo.callback(mounted.unmount)
        Snapshotter.create(root).close()
        check()
        undo.pop_all()


def unmountable(error: OSError) -> FailedPreconditionError:
    """
    Return the error with the cure, for a mount of an image that failed with *error*.
    """
    match error.errno:
        case errno.ENODEV:
            cure = "this kernel has no btrfs: try `modprobe btrfs`"
        case errno.ENOENT | errno.ENXIO:
            cure = "loop devices are missing: try `modprobe loop`"
        case errno.EPERM | errno.EACCES:
            cure = "CAP_SYS_ADMIN or access to loop devices is missing: run the command as root, outside of containers"
        case _:
            cure = str(error)
    return FailedPreconditionError(f"cannot mount a btrfs from an image: {cure}")


def mount_unit(root: str, file: str) -> str:
    """
    Return a systemd unit that mounts the image *file* at *root*; a comment says how to install it.
    """
    root, file = real_path(root), real_path(file)
    name = _unit_name(root)
    what, where = file.replace("%", "%%"), root.replace("%", "%%")
    return f"""\
# Mounts the store after a reboot. Save this file as '/etc/systemd/system/{name}', then run
#   systemctl daemon-reload && systemctl enable '{name}'
[Unit]
Description=snapshot store in {what}

[Mount]
What={what}
Where={where}
Type=btrfs
Options=loop,{image.DEFAULT_OPTIONS}

[Install]
WantedBy=local-fs.target
"""


def _unit_name(root: str) -> str:
    """
    Return the name of the mount unit for *root*, as ``systemd-escape --path --suffix=mount`` prints it.
    """
    escaped = []
    for at, byte in enumerate(os.fsencode(root.strip("/"))):
        char = chr(byte)
        if char == "/":
            escaped.append("-")
        elif char in _PLAIN and not (char == "." and at == 0):
            escaped.append(char)
        else:
            escaped.append(f"\\x{byte:02x}")
    return "".join(escaped) + ".mount"
