"""
Diagnosis of a store: problems in it and in the filesystem around it, each with its cure.
"""

import contextlib
import importlib.util
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator

from pybtrfs import device, filesystem, mountinfo, syscall, sysfs
from pybtrfs.path import owned
from snapshotter.analysis import inventory
from snapshotter.contract import Snapshotter
from snapshotter.errors import DataLossError, UnavailableError, quoted
from snapshotter.maintenance import quarantine, repair, rotation
from snapshotter.maintenance.rotation import Rotation
from snapshotter.model import Kind, Problem
from snapshotter.store import holding_mounts
from snapshotter.store.barrier import WITHOUT_TURNS
from snapshotter.store.counters import Counters
from snapshotter.store.index import Snapshot
from snapshotter.store.layout import EMPTY, real_path
from snapshotter.text import format_size
from snapshotter.transport import library

More = Callable[[Snapshotter], Iterable[Problem]]

_ACCEPT = (
    "remove them and prepare them again; if you know that no write was lost, commit them while a daemon runs with "
    "`snapshotter serve --verify=false`"
)


def examine(root: str | os.PathLike[str], more: More | None = None) -> list[Problem]:
    """
    Return the problems of the store at *root* and of its filesystem.

    Changes nothing and needs no lock. Needs ``CAP_SYS_ADMIN`` only if another user owns the directories of the store.

    Args:
        more: Returns further problems of the store, if it can be opened.

    Raises:
        NotFoundError: *root* does not exist.
        FailedPreconditionError: *root* is not a store, is not on btrfs, or was written by a newer release.
    """
    path = real_path(root)
    try:
        with Snapshotter(path, read_only=True) as store:
            return [*of_store(store), *(more(store) if more else ())]
    except (DataLossError, UnavailableError) as error:
        cure = "replace the disk if it fails; else unmount the filesystem, and look at it with `btrfs check`"
        if isinstance(error, DataLossError):
            cure = "`snapshotter doctor --fix` repairs the record of the store"
        return [Problem(path, str(error), cure), *_around(path)]


def of_store(store: Snapshotter) -> list[Problem]:
    """
    Return the problems of an open store and of its filesystem.
    """
    places = () if store.is_copy else (*_places(store.root), *_held(store))
    return [*store.problems(), *places, *_losses(store), *_around(store.root)]


def _around(root: str) -> Iterator[Problem]:
    yield from _library()
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


def _losses(store: Snapshotter) -> Iterator[Problem]:
    opened = store.opened
    actives = [each for each in opened.index.snapshots() if each.kind is Kind.ACTIVE and not each.quarantine]
    if reported := [active for active in actives if opened.write_errors.is_reported(active)]:
        what = f"the disk may have refused data of {_named(reported)}, which cannot be committed any more"
        yield Problem(store.root, what, f"repair the disk; {_ACCEPT}")
    unreported = opened.write_errors.unreported(actives)
    now = opened.volumes.write_errors()
    changes: dict[str, list[Snapshot]] = {}
    for active in unreported:
        changes.setdefault(_change(active.record.write_errors, now), []).append(active)
    for change, snapshots in changes.items():
        what = (
            f"{change} since {_named(snapshots)} began, so the disk may have refused data, and they cannot be "
            "committed after the next opening of the store"
        )
        yield Problem(store.root, what, f"check the disk; {_ACCEPT}")


def _named(snapshots: list[Snapshot]) -> str:
    more = f" and {len(snapshots) - 1} more active snapshots" if len(snapshots) > 1 else ""
    return f"snapshot {quoted(min(each.key for each in snapshots))}{more}"


def _change(before: Counters, now: Counters) -> str:
    """
    Return the reason why data may have been lost between two readings of the counters of refused writes.
    """
    differing = before.differing(now)
    if differing is None or before.devices is None or now.devices is None:
        return f"the counters of refused writes went from {before.total} to {now.total} in all"
    return ", and ".join(
        _change_of(devid, before.devices.get(devid, 0), now.devices.get(devid)) for devid in sorted(differing)
    )


def _change_of(devid: int, before: int, now: int | None) -> str:
    if now is None:
        return f"device {devid} was removed"
    reset = ", which is a reset that hides later errors," if now < before else ""
    return f"the counter of refused writes of device {devid} went from {before} to {now}{reset}"


def _held(store: Snapshotter) -> Iterator[Problem]:
    for volume in inventory.take(store, measured=False).pending:
        for mount in holding_mounts.locate(volume.mounts):
            what = f"snapshot {quoted(volume.key)} is removed, but its space is held by the mount at {mount.text}"
            yield Problem(f"{store.root}/{volume.path}", what, f"{mount.cure}, then `snapshotter cleanup`")


def _library() -> Iterator[Problem]:
    if importlib.util.find_spec("google.protobuf") is None:
        return  # a daemon is not wanted, because its extra is not installed
    try:
        library.load()
    except UnavailableError as error:
        what, _, cure = str(error).partition(": ")
        yield Problem(library.SONAME, f"the daemon and its clients cannot start: {what}", cure)


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
    directory = sysfs.directory(filesystem.get_info(root).fsid_bytes)
    qgroups = f"{directory}/qgroups"
    if sysfs.read(f"{qgroups}/enabled") == "1" and sysfs.read(f"{qgroups}/mode") in ("qgroup", ""):
        what = "full qgroups are enabled: removing snapshots can stall the filesystem for minutes"
        yield Problem(root, what, f"btrfs quota disable {shlex.quote(root)}")
    with owned(os.open(root, os.O_RDONLY)) as fd:
        mount = mountinfo.own(fd)
    if mount and WITHOUT_TURNS.isdisjoint(mount.options):
        rotates = rotation.of(f"{directory}/devices")
        if rotates is not Rotation.POSSIBLE:
            doubt = "if the disk is no hard disk, " if rotates is Rotation.CLAIMED else ""
            cure = (
                f"{doubt}run `mount -o remount,ssd {shlex.quote(mount.point)}`, and add ssd to its options in "
                "/etc/fstab or in its mount unit"
            )
            yield Problem(root, "it is mounted without the option ssd, so concurrent changes wait for each other", cure)


def _devices(root: str) -> Iterator[Problem]:
    at = shlex.quote(root)
    for each in device.iterate(root):
        state = device.get_state(root, each)
        if state.missing:
            cure = (
                f"attach the device, unmount the filesystem and mount it again, then run `btrfs scrub start -B {at}`; "
                f"for a device that is lost, run `btrfs replace start {each.devid} DEVICE {at}`"
            )
            yield Problem(root, f"device {each.devid} of its filesystem is missing", cure)
            continue
        stats = device.get_stats(root, each.devid)
        if errors := stats.write_errs + stats.flush_errs:
            cure = (
                f"replace the disk, or repair the copies of its data with `btrfs scrub start -B {at}`; then restart "
                "the daemon, or run `snapshotter cleanup` without a daemon, which puts on record the snapshots that "
                f"may have lost data; only then run `btrfs device stats --reset {each.path}`"
            )
            yield Problem(each.path, f"{errors} writes to it have failed", cure)
        if image := sysfs.read(f"/sys/class/block/{os.path.basename(os.path.realpath(each.path))}/loop/backing_file"):
            with contextlib.suppress(FileNotFoundError):  # deleted, or in another mount namespace
                status = os.stat(image)
                if (allocated := status.st_blocks * 512) < status.st_size:
                    what = (
                        f"{format_size(allocated)} of its {format_size(status.st_size)} are allocated: if the disk "
                        "below it is full, data is lost"
                    )
                    yield Problem(image, what, f"fallocate --length {status.st_size} {shlex.quote(image)}")
