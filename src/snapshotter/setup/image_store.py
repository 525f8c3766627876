"""
A store where there is no btrfs: in an image file, mounted at its root.
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

_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")


def create(root: str, file: str, size: int, *, sparse: bool = False, check: Callable[[], None] = lambda: None) -> None:
    """
    Make the image *file* of *size* bytes, mount it at *root*, and make a store there; all of it, or nothing.

    It stays mounted until the next boot; `mount_unit` brings it back then. Needs CAP_SYS_ADMIN.

    Args:
        sparse: Do not reserve the space: a disk below that fills up then loses data that was written already.
        check: Called last, when everything can still be undone: an exception of it undoes everything.

    Raises:
        NotFoundError: The directory that *root* would be in does not exist.
        FailedPreconditionError: *root* is not an empty directory, *file* exists, or btrfs or a privilege is missing.
        InvalidArgumentError: *size* is too small; a path holds what a mount unit cannot.
        ResourceExhaustedError: There is not enough space.
    """
    root, file = real_path(root), real_path(file)
    for path in (root, file):
        if not path.isprintable():
            raise InvalidArgumentError(f"{path!r} cannot stand in a systemd unit: choose another path")
    if size < image.MINIMUM_SIZE:
        raise InvalidArgumentError(f"an image of {size} bytes is too small: the least is {image.MINIMUM_SIZE}")
    with contextlib.ExitStack() as undo:
        try:
            os.mkdir(root, 0o700)
            undo.callback(os.rmdir, root)
        except FileExistsError:
            check_empty(root)
        except FileNotFoundError as error:
            raise NotFoundError(f"{os.path.dirname(root)!r} does not exist: make it first") from error
        try:
            image.create(file, size, sparse=sparse)
        except FileExistsError as error:
            raise FailedPreconditionError(f"{file!r} exists: choose another with --image-file") from error
        except OSError as error:
            text = f"cannot make {file!r} of {size} bytes: {error.strerror}"
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
    What it means that a mount of an image failed with *error*, and the cure.
    """
    match error.errno:
        case errno.ENODEV:
            cure = "this kernel has no btrfs: try `modprobe btrfs`"
        case errno.ENOENT | errno.ENXIO:
            cure = "there are no loop devices here: try `modprobe loop`"
        case errno.EPERM | errno.EACCES:
            cure = "CAP_SYS_ADMIN or access to the loop devices is missing: run it as root, and not in a container"
        case _:
            cure = str(error)
    return FailedPreconditionError(f"cannot mount a btrfs from an image: {cure}")


def mount_unit(root: str, file: str) -> str:
    """
    The systemd unit that mounts the image *file* at *root*, with how to install it as a comment.
    """
    root, file = real_path(root), real_path(file)
    name = _unit_name(root)
    what, where = file.replace("%", "%%"), root.replace("%", "%%")
    return f"""\
# Mounts the store again after a reboot. Save this as '/etc/systemd/system/{name}', then
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
    As ``systemd-escape --path --suffix=mount`` says.
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
