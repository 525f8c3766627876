"""
Quota groups: their ids, and their inheritance by new subvolumes on real btrfs.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs import filesystem, ioctl, items, subvolume
from pybtrfs.items import Key, QgroupLimits
from pybtrfs.qgroup import QgroupInherit, QgroupLimit, qgroupid
from pybtrfs.tree_search import MAX, search
from tests.pybtrfs.subvolume.common import needing

GROUP = qgroupid(1, 7)


@given(st.integers(0, (1 << 16) - 1), st.integers(0, (1 << 48) - 1))
def test_qgroupid(level: int, number: int) -> None:
    """
    An id contains its level and number.
    """
    assert divmod(qgroupid(level, number), 1 << 48) == (level, number)


@pytest.mark.parametrize(("level", "number"), [(-1, 0), (1 << 16, 0), (0, -1), (0, 1 << 48)])
def test_wrong_qgroupid(level: int, number: int) -> None:
    """
    A level or number that does not fit is refused and shown.
    """
    with pytest.raises(ValueError, match=f"'{level}/{number}'"):
        qgroupid(level, number)


@pytest.fixture
def top(btrfs_mount: Callable[..., Path]) -> Iterator[Path]:
    """
    A separate filesystem with simple quotas and a qgroup 1/7.
    """
    path = btrfs_mount()
    fd = os.open(path, os.O_RDONLY)
    try:
        with needing("simple quotas", refusal=errno.EINVAL):
            ioctl.quota_ctl(fd, ioctl.QUOTA_CTL_ENABLE_SIMPLE_QUOTA)
        ioctl.qgroup_create(fd, GROUP)
        yield path
    finally:
        os.close(fd)


def limits(top: Path, group: int) -> QgroupLimits:
    filesystem.sync(top)  # they are written with the next commit
    key = Key(0, items.QGROUP_LIMIT_KEY, group)
    (item,) = search(top, tree_id=items.QUOTA_TREE_OBJECTID, min_key=key, max_key=key)
    return items.qgroup_limit(item.data)


def members(top: Path, group: int) -> set[int]:
    key = Key(group, items.QGROUP_RELATION_KEY, 0)
    found = search(top, tree_id=items.QUOTA_TREE_OBJECTID, min_key=key, max_key=key._replace(offset=MAX))
    return {item.offset for item in found}


@pytest.mark.btrfs
@pytest.mark.parametrize("how", ["create", "snapshot"])
def test_a_limit_at_create(top: Path, how: str) -> None:
    """
    A new subvolume with a limit cannot grow beyond it.
    """
    inherit = QgroupInherit(limit=QgroupLimit(max_rfer=1 << 20))
    if how == "create":
        subvolume.create(top / "new", inherit=inherit)
    else:
        subvolume.create(top / "source")
        subvolume.snapshot(top / "source", top / "new", inherit=inherit)
    set_limits = limits(top, subvolume.get_id(top / "new"))
    assert (set_limits.flags, set_limits.max_rfer) == (1, 1 << 20)
    with pytest.raises(OSError) as caught, open(top / "new/file", "wb", buffering=0) as file:
        for _ in range(4):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    assert caught.value.errno == errno.EDQUOT


@pytest.mark.btrfs
def test_both_limits(top: Path) -> None:
    """
    Each given limit is set, and no other.
    """
    subvolume.create(top / "new", inherit=QgroupInherit(limit=QgroupLimit(2 << 20, 1 << 20)))
    assert limits(top, subvolume.get_id(top / "new"))[:3] == (3, 2 << 20, 1 << 20)
    subvolume.create(top / "none", inherit=QgroupInherit(limit=QgroupLimit()))
    assert limits(top, subvolume.get_id(top / "none")).flags == 0


@pytest.mark.btrfs
def test_joining_groups(top: Path) -> None:
    """
    A new subvolume joins the given qgroups. Inside a member it joins the member's qgroups, unless an empty list is
    given.
    """
    subvolume.create(top / "member", inherit=QgroupInherit((GROUP,)))
    subvolume.create(top / "member/automatic")
    subvolume.create(top / "member/apart", inherit=QgroupInherit())
    expected = {subvolume.get_id(top / name) for name in ("member", "member/automatic")}
    assert members(top, GROUP) == expected


@pytest.mark.btrfs
def test_a_missing_group(top: Path) -> None:
    """
    A qgroup that does not exist is a FileNotFoundError, and nothing is created.
    """
    with pytest.raises(FileNotFoundError) as caught:
        subvolume.create(top / "new", inherit=QgroupInherit((qgroupid(1, 8),)))
    assert caught.value.filename == top / "new"
    assert caught.value.__notes__[-1] == "one of the qgroups to join does not exist"
    assert os.listdir(top) == []


@pytest.mark.btrfs
@pytest.mark.parametrize(
    ("groups", "note"),
    [
        ((qgroupid(1, 7), qgroupid(0, 5)), "a subvolume cannot join a qgroup of level 0: 0/5"),
        (tuple(qgroupid(1, number) for number in range(504)), "a subvolume cannot join more than 503 qgroups at once"),
    ],
)
@pytest.mark.parametrize("how", ["create", "batch", "snapshot"])
def test_groups_that_cannot_be_joined(top: Path, groups: tuple[int, ...], note: str, how: str) -> None:
    """
    EINVAL has a note with the reason.
    """
    subvolume.create(top / "source")
    inherit = QgroupInherit(groups)
    with pytest.raises(OSError) as caught:
        if how == "create":
            subvolume.create(top / "new", inherit=inherit)
        elif how == "batch":
            with subvolume.batch() as batch:
                batch.create(top / "new", inherit=inherit)
        else:
            subvolume.snapshot(top / "source", top / "new", inherit=inherit)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.__notes__[-1] == note


@pytest.mark.btrfs
def test_a_limit_later(top: Path) -> None:
    """
    The limit of a qgroup is set and changed by the raw ioctl.
    """
    fd = os.open(top, os.O_RDONLY)
    try:
        ioctl.qgroup_limit(fd, GROUP, QgroupLimit(max_rfer=5 << 20))
        assert limits(top, GROUP)[:2] == (1, 5 << 20)
        ioctl.qgroup_limit(fd, GROUP, QgroupLimit(max_excl=4 << 20))
        assert limits(top, GROUP)[:3] == (3, 5 << 20, 4 << 20)
        ioctl.qgroup_create(fd, GROUP, create=False)
    finally:
        os.close(fd)
