"""
The interface of libbtrfsutil without the library: the parts that test_differential does not compare.
"""

import errno
import gc
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem, ioctl, subvolume, syscall
from pybtrfs.compat import btrfsutil
from tests.conftest import in_child
from tests.pybtrfs.subvolume.common import FORMS, below, form, make, nest, without

pytestmark = pytest.mark.btrfs

ALIASES = {
    "fs_sync": "sync",
    "fs_start_sync": "start_sync",
    "fs_wait_sync": "wait_sync",
    "subvolume_is_valid": "is_subvolume",
    "subvolume_get_id": "subvolume_id",
    "subvolume_get_path": "subvolume_path",
    "subvolume_get_info": "subvolume_info",
    "subvolume_get_read_only": "get_subvolume_read_only",
    "subvolume_set_read_only": "set_subvolume_read_only",
    "subvolume_get_default": "get_default_subvolume",
    "subvolume_set_default": "set_default_subvolume",
    "subvolume_create": "create_subvolume",
    "subvolume_snapshot": "create_snapshot",
    "subvolume_delete": "delete_subvolume",
    "subvolume_list_deleted": "deleted_subvolumes",
}


@pytest.mark.parametrize(("new", "old"), ALIASES.items())
def test_both_styles(new: str, old: str) -> None:
    """
    Each function has its old and its new name.
    """
    assert getattr(btrfsutil, new) is getattr(btrfsutil, old)


@pytest.mark.fake
@pytest.mark.parametrize("kind", FORMS[:-1])
def test_any_form(base: Path, kind: str) -> None:
    """
    An existing file is a path in any form, or a file descriptor.
    """
    make(base, "a")
    with form(base, kind) as path:
        assert btrfsutil.is_subvolume(path)
        assert btrfsutil.subvolume_id(path) == btrfsutil.subvolume_info(path).id == subvolume.get_id(base)
        assert list(btrfsutil.SubvolumeIterator(path)) == [("a", subvolume.get_id(base / "a"))]
        btrfsutil.create_snapshot(path, base / "b")
    assert below(base) == ["a", "b"]


@pytest.mark.fake
def test_times_are_not_cut(base: Path) -> None:
    """
    Times have fractions of a second, and the last two are not fields of the tuple.
    """
    info = btrfsutil.subvolume_info(base)
    assert info.otime == subvolume.get_info(base).raw.otime / 1e9
    assert info.otime % 1
    assert (len(info), info[-1]) == (14, info.otime)
    assert (info.stime, info.rtime) == (0, 0)
    assert pickle.loads(pickle.dumps(info)) == info
    assert pickle.loads(pickle.dumps(info)).rtime == 0


@pytest.mark.fake
def test_an_error(base: Path) -> None:
    """
    An error has the code of the step, the errno, both names and the message of libbtrfsutil, also after pickling. It is
    not an instance of another subclass of OSError.
    """
    with pytest.raises(btrfsutil.BtrfsUtilError) as caught:
        btrfsutil.create_snapshot(base, base)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert not isinstance(error, FileExistsError)
        assert (error.btrfsutilerror, error.errno) == (btrfsutil.ERROR_SNAP_CREATE_FAILED, errno.EEXIST)
        assert (error.filename, error.filename2) == (str(base), str(base))
        assert str(error) == (
            f"[BtrfsUtilError 17 Errno 17] Could not create snapshot: File exists: '{base}' -> '{base}'"
        )
        assert error.__notes__ == ["BTRFS_IOC_SNAP_CREATE_V2"]
    plain = btrfsutil.BtrfsUtilError(errno.ENOENT, "missing")
    assert (str(plain), plain.btrfsutilerror) == ("[Errno 2] missing", None)


def test_every_refusal_has_a_code() -> None:
    """
    Every call that can be refused has a code and a message.
    """
    for code in btrfsutil._CODES.values():
        assert btrfsutil._WORDS[code]


@pytest.mark.fake
def test_async(base: Path) -> None:
    """
    A subvolume or snapshot created with async_ is durable after waiting for the returned transaction.
    """
    for transid in (
        btrfsutil.create_subvolume(base / "a", async_=True),
        btrfsutil.create_snapshot(base, base / "b", async_=True),
    ):
        assert transid is not None
        assert transid >= subvolume.get_info(base / "a").otransid
        btrfsutil.wait_sync(base, transid)


def test_qgroups(btrfs_mount: Callable[..., Path]) -> None:
    """
    A new subvolume joins the given qgroups; a missing qgroup is ENOENT.
    """
    top = btrfs_mount()
    fd = os.open(top, os.O_RDONLY)
    try:
        ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE)
        ioctl.quota_rescan_wait(fd)
    finally:
        os.close(fd)
    inherit = btrfsutil.QgroupInherit()
    inherit.add_group(1 << 48 | 7)
    assert inherit.groups == [1 << 48 | 7]
    inherit.groups.clear()
    with pytest.raises(btrfsutil.BtrfsUtilError) as caught:
        btrfsutil.create_subvolume(top / "a", qgroup_inherit=inherit)
    assert caught.value.errno == errno.ENOENT
    btrfsutil.create_subvolume(top / "a", qgroup_inherit=btrfsutil.QgroupInherit())
    with pytest.raises(TypeError):
        btrfsutil.create_subvolume(top / "b", qgroup_inherit=[])  # type: ignore[arg-type]


@pytest.mark.fake
def test_a_received_subvolume(base: Path) -> None:
    """
    A received subvolume that becomes writable loses its received uuid.
    """
    with form(base, "fd") as fd:
        ioctl.set_received_subvol(fd, bytes(range(16)), 1)
    btrfsutil.set_subvolume_read_only(base)
    assert btrfsutil.subvolume_info(base).received_uuid == bytes(range(16))
    btrfsutil.set_subvolume_read_only(base, False)
    assert btrfsutil.subvolume_info(base).received_uuid == bytes(16)


def test_deleted_subvolumes(base: Path) -> None:
    """
    A deleted subvolume that is open is listed as deleted, and its file descriptor leads to its info.
    """
    make(base, "a")
    filesystem.sync(base)
    with subvolume.Subvolume(base / "a") as held:
        subvolid = btrfsutil.subvolume_id(held.fileno())
        btrfsutil.delete_subvolume(base / "a")
        assert subvolid in btrfsutil.deleted_subvolumes(base)
        info = btrfsutil.subvolume_info(held.fileno())
        assert (info.id, info.parent_id, info.dir_id) == (subvolid, 0, 0)


def test_delete_recursive_of_what_is_mounted_over(base: Path) -> None:
    """
    A recursive deletion does not empty a filesystem that is mounted on the subvolume.
    """
    make(base, "a", "b", "b/c")
    syscall.mount(base / "b", base / "a", "", syscall.MS_BIND)
    try:
        with pytest.raises(btrfsutil.BtrfsUtilError) as caught:
            btrfsutil.delete_subvolume(base / "a", recursive=True)
        assert (caught.value.btrfsutilerror, caught.value.errno) == (btrfsutil.ERROR_OPEN_FAILED, errno.EXDEV)
    finally:
        syscall.umount2(base / "a")
    assert below(base) == ["a", "b", "b/c"]


def test_recursive_unprivileged(btrfs_mount: Callable[..., Path], unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user can snapshot and delete his subvolumes recursively, at any depth.
    """
    top = btrfs_mount()
    top.chmod(0o777)

    def use() -> list[str]:
        for name in ("a", "a/b", "a/b/c"):
            btrfsutil.create_subvolume(top / name)
        btrfsutil.create_snapshot(top / "a", top / "d", recursive=True)
        btrfsutil.delete_subvolume(top / "a", recursive=True)
        return [path for path, _ in btrfsutil.SubvolumeIterator(top, post_order=True)]

    assert unprivileged(use) == ["d/b/c", "d/b", "d"]


def test_info_in_post_order_unprivileged(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user gets the info of the subvolume at each path, in pre-order and post-order.
    """
    make(base, "a", "a/b")

    def listed(post_order: bool) -> list[tuple[str, int]]:
        with btrfsutil.SubvolumeIterator(base, info=True, post_order=post_order) as found:
            return [(path, info.id) for path, info in found if isinstance(info, btrfsutil.SubvolumeInfo)]

    expected = [(name, subvolume.get_id(base / name)) for name in ("a", "a/b")]
    assert unprivileged(listed, False) == expected
    assert unprivileged(listed, True) == expected[::-1]


def test_root_without_privilege(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The answer of the kernel decides, not the uid: without tree searches root gets the unprivileged listing.
    """
    make(base, "a", "a/b")
    without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    subvolid = subvolume.get_id(base)
    for top in (0, subvolid):
        assert [path for path, _ in btrfsutil.SubvolumeIterator(base, top)] == ["a", "a/b"]
    (path, info), _ = btrfsutil.SubvolumeIterator(base, info=True)
    assert isinstance(info, btrfsutil.SubvolumeInfo)
    assert (path, info.id) == ("a", subvolume.get_id(base / "a"))
    assert btrfsutil.subvolume_info(base, subvolid).id == subvolid
    with btrfsutil.SubvolumeIterator(base, 5) as found, pytest.raises(btrfsutil.BtrfsUtilError) as caught:
        next(found)
    assert (caught.value.btrfsutilerror, caught.value.filename) == (btrfsutil.ERROR_SEARCH_FAILED, None)
    with pytest.raises(btrfsutil.BtrfsUtilError):
        btrfsutil.subvolume_info(base, 5)


@pytest.mark.parametrize("privileged", [True, False])
def test_the_iterator_owns_its_descriptor(base: Path, privileged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An iterator owns a close-on-exec file descriptor until it is closed, collected or initialised again.
    """
    if not privileged:
        without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    make(base, "a", "a/b", "a/b/c", "d")
    before = set(os.listdir("/proc/self/fd"))
    with btrfsutil.SubvolumeIterator(base, post_order=True) as found:
        assert next(found)[0] == "a/b/c"
        assert not os.get_inheritable(found.fileno())
        assert os.path.sameopenfile(found.fileno(), found.fileno())
        found.__init__(base)  # type: ignore[misc]
        assert next(found)[0] == "a"
    found.close()
    for use in (found.fileno, lambda: next(found)):
        with pytest.raises(ValueError, match="closed iterator"):
            use()
    assert set(os.listdir("/proc/self/fd")) == before
    forgotten = btrfsutil.SubvolumeIterator(base)
    next(forgotten)
    del forgotten
    gc.collect()  # PyPy collects late,
    gc.collect()  # and the objects that it referenced later still
    with pytest.raises(btrfsutil.BtrfsUtilError):
        btrfsutil.SubvolumeIterator(base / "missing")
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.fake
def test_the_iterator_leaves_a_descriptor_alone(base: Path) -> None:
    """
    A given file descriptor is not closed.
    """
    with form(base, "fd") as fd:
        with btrfsutil.SubvolumeIterator(fd) as found:
            assert found.fileno() == fd
        os.fstat(fd)


def test_the_iterator_after_an_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error ends the iteration.
    """
    make(base, "a")
    with btrfsutil.SubvolumeIterator(base, info=True) as found:
        without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EIO)
        with pytest.raises(btrfsutil.BtrfsUtilError):
            next(found)
        assert list(found) == []


@pytest.mark.parametrize("privileged", [True, False])
def test_the_iterator_while_others_delete(base: Path, privileged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Concurrent deletions do not break an iteration.
    """
    if not privileged:
        without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    make(base, "a", "a/b", *(f"c/{number}" for number in range(300)), "d")
    found = btrfsutil.SubvolumeIterator(base)
    assert next(found)[0] == "a"
    monkeypatch.undo()
    subvolume.delete(base / "a", recursive=True)
    for number in range(300):
        subvolume.delete(base / f"c/{number}")
    if not privileged:
        without(monkeypatch, "BTRFS_IOC_TREE_SEARCH_V2", refusal=errno.EPERM)
    assert [path for path, _ in found][-1] == "d"


def test_delete_no_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A recursive deletion of an empty path is ENOENT, as in libbtrfsutil, and deletes nothing in the current directory.
    """
    make(base, "a")
    monkeypatch.chdir(base)
    with pytest.raises(btrfsutil.BtrfsUtilError) as caught:
        btrfsutil.delete_subvolume("", recursive=True)
    assert (caught.value.errno, caught.value.btrfsutilerror) == (errno.ENOENT, btrfsutil.ERROR_OPEN_FAILED)
    assert below(base) == ["a"]


def listed(path: Path, post_order: bool) -> list[int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with btrfsutil.SubvolumeIterator(path, info=True, post_order=post_order) as entries:
        return [len(entry[0].split("/")) for entry in entries]


def test_any_number_of_levels(base: Path, unprivileged: Callable[..., Any]) -> None:
    """
    Subvolumes in each other are listed in both orders, and deleted, however many there are.
    """
    depth = 1201
    nest(base / "n", depth)
    for post_order, expected in ((False, list(range(1, depth + 1))), (True, list(range(depth, 0, -1)))):
        assert unprivileged(listed, base, post_order) == in_child(listed, base, post_order) == expected
    btrfsutil.delete_subvolume(base / "n", recursive=True)
    assert os.listdir(base) == []
