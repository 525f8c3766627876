"""
Diagnosis of a store: problems in it and in the filesystem around it, each with its cure.
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
    Return the problems of the store at *root* and of its filesystem.

    Changes nothing and needs no lock. Needs ``CAP_SYS_ADMIN`` only if another user owns the directories of the store.

    Raises:
        NotFoundError: *root* does not exist.
        FailedPreconditionError: *root* is not a store, is not on btrfs, or was written by a newer release.
    """
    path = real_path(root)
    try:
        with Snapshotter(path, read_only=True) as store:
            return of_store(store)
    except (DataLossError, UnavailableError) as error:
        cure = "replace the disk if it fails; else unmount the filesystem, and look at it with `btrfs check`"
        if isinstance(error, DataLossError):
            cure = "`snapshotter doctor --fix` repairs the record of the store"
        return [Problem(path, str(error), cure), *_around(path)]


def of_store(store: Snapshotter) -> list[Problem]:
    """
    Return the problems of an open store and of its filesystem.
    """
    places = () if store.is_copy else _places(store.root)
    return [*store.problems(), *places, *_around(store.root)]


def _around(root: str) -> Iterator[Problem]:
    yield from _directory(root)
    yield from _filesystem(root)
    yield from _devices(root)


def _places(root: str) -> Iterator[Problem]:
    if not repair.has_empty(root):
        what = "it is not the empty, read-only subvolume that a view without a parent shows"
        yield Problem(os.path.join(root, EMPTY), what, "`snapshotter doctor --fix` recreates it")
    for path in quarantine.quarantined(root):
        if damage := quarantine.damage(path):
            cure = "`snapshotter purge` deletes it, after which the filesystem may turn read-only until it is remounted"
            yield Problem(path, f"a removed snapshot is kept, because it cannot be read: {damage}", cure)
        else:
            yield Problem(path, "it belongs to no snapshot", "inspect it, then delete it with `snapshotter purge`")


def _directory(root: str) -> Iterator[Problem]:
    mode = stat.S_IMODE(os.stat(root).st_mode)
    if mode != 0o700:
        what = f"its mode is {mode:04o}: other users can reach into snapshots"
        yield Problem(root, what, f"chmod 0700 {shlex.quote(root)}")
    if os.statvfs(root).f_flag & syscall.MS_RDONLY:
        cure = "find the reason with `dmesg`, then unmount it and mount it again"
        yield Problem(root, "its filesystem is read-only", cure)
    if names := mountinfo.inherited(root):
        what = f"it is mounted {','.join(names)}, which containers inherit in bind mode"
        yield Problem(root, what, f"mount it without {','.join(names)}")


def _filesystem(root: str) -> Iterator[Problem]:
    directory = f"/sys/fs/btrfs/{filesystem.get_info(root).fsid}/qgroups"
    if _read(f"{directory}/enabled") == "1" and _read(f"{directory}/mode") in ("qgroup", ""):
        what = "full qgroups are enabled: removing snapshots can stall the filesystem for minutes"
        yield Problem(root, what, f"btrfs quota disable {shlex.quote(root)}")


def _devices(root: str) -> Iterator[Problem]:
    for each in device.iterate(root):
        stats = device.get_stats(root, each.devid)
        if errors := stats.write_errs + stats.flush_errs:
            cure = f"replace the disk, then run `btrfs device stats --reset {each.path}`"
            yield Problem(each.path, f"{errors} writes to it have failed", cure)
        if image := _read(f"/sys/class/block/{os.path.basename(os.path.realpath(each.path))}/loop/backing_file"):
            with contextlib.suppress(FileNotFoundError):  # deleted, or in another mount namespace
                status = os.stat(image)
                if (allocated := status.st_blocks * 512) < status.st_size:
                    what = (
                        f"{allocated} of its {status.st_size} bytes are allocated: if the disk below it is full, "
                        "data is lost"
                    )
                    yield Problem(image, what, f"fallocate --length {status.st_size} {shlex.quote(image)}")


def _read(path: str) -> str:
    """
    Return the content of a file of sysfs, without the final newline; "" if the file does not exist.
    """
    with contextlib.suppress(FileNotFoundError), open(path, errors="surrogateescape") as file:
        return file.read().removesuffix("\n")
    return ""
