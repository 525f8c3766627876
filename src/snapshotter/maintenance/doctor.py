"""
What is wrong with a store, and around it, and how to mend it.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator

from pybtrfs import device, filesystem, mountinfo, syscall
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, UnavailableError
from snapshotter.maintenance import quarantine, repair
from snapshotter.model import Problem
from snapshotter.store.layout import EMPTY, real_path


def examine(root: str | os.PathLike[str]) -> list[Problem]:
    """
    Look at the store at *root* and at its filesystem, changing nothing and without the store's lock.

    Needs CAP_SYS_ADMIN only where the directories are not ours to read.

    Raises:
        NotFoundError: *root* does not exist.
        FailedPreconditionError: *root* is not a store, not on btrfs, or a newer release's.
    """
    path = real_path(root)
    try:
        with Snapshotter(path, read_only=True) as store:
            return of_store(store)
    except (DataLossError, UnavailableError) as error:
        cure = "`snapshotter doctor --fix` mends its record; a disk that fails is to be replaced"
        return [Problem(path, str(error), cure), *_around(path)]


def of_store(store: Snapshotter) -> list[Problem]:
    """
    The same for an open store.
    """
    places = () if store.is_copy else _places(store.root)
    return [*store.problems(), *places, *_around(store.root)]


def _around(root: str) -> Iterator[Problem]:
    yield from _directory(root)
    yield from _filesystem(root)
    yield from _devices(root)


def _places(root: str) -> Iterator[Problem]:
    if not repair.has_empty(root):
        what = "it is not the empty, read-only subvolume that a view without parent shows"
        yield Problem(os.path.join(root, EMPTY), what, "`snapshotter doctor --fix` makes it anew")
    for path in quarantine.quarantined(root):
        yield Problem(path, "no record accounts for it", "look at it, then `snapshotter purge` deletes it")


def _directory(root: str) -> Iterator[Problem]:
    mode = stat.S_IMODE(os.stat(root).st_mode)
    if mode != 0o700:
        yield Problem(
            root, f"its mode is {mode:04o}: others may reach into snapshots", f"chmod 0700 {shlex.quote(root)}"
        )
    if os.statvfs(root).f_flag & syscall.MS_RDONLY:
        yield Problem(root, "its filesystem is read-only", "look for the reason in dmesg, then mount it anew")
    if names := mountinfo.inherited(root):
        what = f"it is mounted {','.join(names)}, which containers inherit in the bind mode"
        yield Problem(root, what, f"mount it without {','.join(names)}")


def _filesystem(root: str) -> Iterator[Problem]:
    directory = f"/sys/fs/btrfs/{filesystem.get_info(root).fsid}/qgroups"
    if _read(f"{directory}/enabled") == "1" and _read(f"{directory}/mode") in ("qgroup", ""):
        what = "full qgroups are enabled: removing snapshots can stall it for minutes"
        yield Problem(root, what, f"btrfs quota disable {shlex.quote(root)}")


def _devices(root: str) -> Iterator[Problem]:
    for each in device.iterate(root):
        stats = device.get_stats(root, each.devid)
        if errors := stats.write_errs + stats.flush_errs:
            what = f"it has refused {errors} writes"
            yield Problem(each.path, what, f"replace the disk, then btrfs device stats --reset {each.path}")
        if image := _read(f"/sys/class/block/{os.path.basename(os.path.realpath(each.path))}/loop/backing_file"):
            with contextlib.suppress(FileNotFoundError):  # deleted, or another mount namespace's
                status = os.stat(image)
                if (reserved := status.st_blocks * 512) < status.st_size:
                    what = f"this image has {reserved} of its {status.st_size} bytes: a full disk below it loses data"
                    yield Problem(image, what, f"fallocate --length {status.st_size} {shlex.quote(image)}")


def _read(path: str) -> str:
    """
    What a file of sysfs says; nothing where there is none.
    """
    with contextlib.suppress(FileNotFoundError), open(path, errors="surrogateescape") as file:
        return file.read().removesuffix("\n")
    return ""
