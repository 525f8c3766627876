"""
The fake btrfs for users' tests: comparison with the kernel, limits, and copies of trees.
"""

import errno
import os
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybtrfs import filesystem, kernel, subvolume, syscall, tree_search
from pybtrfs.errors import NotBtrfsError
from pybtrfs.testing import copy_tree, remove_tree
from pybtrfs.testing import fake_btrfs as fake_btrfs_of
from tests.pybtrfs.subvolume.common import NOBODY, as_user, make, mounted, open_directory

PATHS = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "c/a"])
BOOLEANS = st.booleans()


def content(root: Path) -> list[Any]:
    """
    Return all answers about the subvolumes below *root*, except values that are never the same twice.
    """
    ids: dict[str, str] = {}
    found = []
    for path, info in subvolume.iterate(root, top=0):
        ids[str(info.uuid)] = path
        own = subvolume.get_info(root / path)
        assert (own.id, own.parent_id, own.dir_id, own.uuid) == (info.id, info.parent_id, info.dir_id, info.uuid)
        below = [subvolume.get_child_path(root / path, child) for child in subvolume.children(root / path)]
        origin = ids.get(str(own.parent_uuid), own.parent_uuid is not None)
        found.append((path, own.read_only, origin, sorted(below), len(list(subvolume.ancestors(root, own.id)))))
    return found


def asked(root: Path, path: str) -> list[Any]:
    """
    Return all answers about one file.
    """
    return [
        outcome(root, question, root / path)
        for question in (subvolume.is_subvolume, subvolume.get_read_only, lambda path: subvolume.get_info(path).name)
    ]


def outcome(root: Path, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """
    Return the result of a call, or its refusal.
    """
    try:
        return call(*arguments, **options)
    except OSError as error:
        names = [os.path.relpath(name, root) for name in (error.filename, error.filename2) if isinstance(name, Path)]
        return type(error), error.errno, names, getattr(error, "__notes__", [])


STEPS = st.one_of(
    st.tuples(st.just("create"), PATHS),
    st.tuples(st.just("snapshot"), PATHS, PATHS, BOOLEANS, BOOLEANS),
    st.tuples(st.just("delete"), PATHS, BOOLEANS),
    st.tuples(st.just("set_read_only"), PATHS, BOOLEANS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("ask"), PATHS),
)


def take(root: Path, name: str, *arguments: Any) -> Any:
    """
    Take one step in *root*.
    """
    paths = [root / argument for argument in arguments if isinstance(argument, str)]
    flags = [argument for argument in arguments if isinstance(argument, bool)]
    match name:
        case "create":
            return outcome(root, subvolume.create, *paths)
        case "snapshot":
            return outcome(root, subvolume.snapshot, *paths, read_only=flags[0], recursive=flags[1])
        case "delete":
            return outcome(root, subvolume.delete, *paths, recursive=flags[0])
        case "set_read_only":
            return outcome(root, subvolume.set_read_only, *paths, read_only=flags[0])
        case "ask":
            return asked(root, *arguments)
    return getattr(os, name)(*paths)


@pytest.mark.btrfs
def test_the_fake_beside_the_kernel(btrfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    Any steps give the same results, errors and subvolumes as on the kernel. A mkdir, rename or rmdir that the kernel
    refuses is skipped on the fake.
    """

    @settings(max_examples=40)
    @given(st.lists(STEPS, min_size=3, max_size=12))
    def compare(steps: list[tuple[Any, ...]]) -> None:
        fake, real = tmp_path_factory.mktemp("fake") / "base", btrfs / "base"
        subvolume.create(real)
        try:
            with fake_btrfs_of(fake.parent):
                subvolume.create(fake)
                for base in (fake, real):
                    make(base, "a", "a/a", "b/a")
                for step in steps:
                    if step[0] in ("mkdir", "rename", "rmdir"):
                        try:
                            take(real, *step)
                        except OSError:
                            continue
                    else:
                        expected = take(real, *step)
                        assert take(fake, *step) == expected
                        continue
                    take(fake, *step)
                assert content(fake) == content(real)
        finally:
            subvolume.delete(real, recursive=True)

    compare()


def by_handle(top: Path) -> None:
    with open_directory(top) as fd:
        syscall.open_by_handle_at(fd, 5, 256, 0, os.O_RDONLY)


def without_privileges(top: Path, caller: Callable[..., Any]) -> list[Any]:
    """
    Return the answers to a caller without CAP_SYS_ADMIN, and what each deletion leaves.
    """
    found = []
    for read_only, nested, recursive, unlink in product([False, True], repeat=4):
        make(top, "a", *["a/b"] * nested)
        for path in [top / "a/b"] * nested + [top / "a"]:
            (path / "directory").mkdir()
            for file in (path, path / "directory"):
                os.chown(file, NOBODY, NOBODY)
            subvolume.set_read_only(path, read_only=read_only)
        found += [
            outcome(top, caller, lambda: subvolume.delete(top / "a", recursive=recursive, unlink=unlink)),  # noqa: B023
            (top / "a").exists() and (subvolume.get_read_only(top / "a"), sorted(os.listdir(top / "a"))),
        ]
        if (top / "a").exists():
            found += [outcome(top, caller, subvolume.delete_by_id, top, subvolume.get_id(top / "a"))]
        if (top / "a").exists():
            caller(lambda: subvolume.delete(top / "a", recursive=True, unlink=True))
    for question in (
        lambda: list(subvolume.iterate(top, top=5)),
        lambda: subvolume.get_path(top, 256),
        lambda: subvolume.set_default(top, 5),
        lambda: subvolume.iterate_deleted(top).__next__(),
        lambda: by_handle(top),
    ):
        found.append(outcome(top, caller, question))
    return found


@pytest.mark.btrfs
@pytest.mark.parametrize("allowed", [False, True])
def test_the_fake_without_privileges(tmp_path: Path, allowed: bool) -> None:
    """
    The fake refuses what the kernel refuses an owner without CAP_SYS_ADMIN, and deletions leave the same.
    """
    with mounted("user_subvol_rm_allowed" if allowed else "") as top:
        real = without_privileges(top, as_user)
    with fake_btrfs_of(tmp_path, privileged=False, user_subvol_rm_allowed=allowed):
        fake = without_privileges(tmp_path, lambda call, *arguments: call(*arguments))
    assert fake == real


def test_elsewhere_the_kernel_answers(fake_btrfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    The real kernel answers for files outside the directory. Several fakes are several filesystems.
    """
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(NotBtrfsError):
        subvolume.create(other / "new")
    with pytest.raises(NotBtrfsError):
        subvolume.snapshot(fake_btrfs, other / "snapshot")
    with fake_btrfs_of(other):
        assert subvolume.is_subvolume(other)
        assert subvolume.is_subvolume(fake_btrfs)
        with pytest.raises(OSError) as caught:
            subvolume.snapshot(fake_btrfs, other / "snapshot")
        assert caught.value.errno == errno.EXDEV
    assert not subvolume.is_subvolume(other)


def test_afterwards_the_kernel_answers(tmp_path: Path) -> None:
    """
    At the end the kernel is the real one again, also after an exception, and new subvolumes stay as directories.
    """
    before = kernel.current
    with pytest.raises(ZeroDivisionError), fake_btrfs_of(tmp_path):
        subvolume.create(tmp_path / "subvolume")
        raise ZeroDivisionError
    assert kernel.current is before
    assert (tmp_path / "subvolume").is_dir()


def test_what_is_not_faked(fake_btrfs: Path) -> None:
    """
    An ioctl that the fake lacks is refused as by an old kernel, and never reaches the filesystem below.
    """
    with pytest.raises(OSError) as caught:
        filesystem.resize(fake_btrfs, "max", devid=1)
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.__notes__ == ["BTRFS_IOC_RESIZE", "this kernel does not have the ioctl"]


def test_transactions_and_identity(fake_btrfs: Path) -> None:
    """
    The filesystem has a UUID. Its transactions advance, and a future transaction cannot be waited for.
    """
    assert filesystem.get_info(fake_btrfs).fsid == filesystem.get_info(fake_btrfs).fsid
    transid = filesystem.start_sync(fake_btrfs)
    subvolume.create(fake_btrfs / "subvolume")
    assert subvolume.get_info(fake_btrfs / "subvolume").otransid > transid
    filesystem.sync(fake_btrfs)
    filesystem.wait_sync(fake_btrfs, transid)
    with pytest.raises(OSError) as caught:
        filesystem.wait_sync(fake_btrfs, transid + 100)
    assert caught.value.errno == errno.EINVAL


def test_what_is_renamed_or_removed_by_others(fake_btrfs: Path) -> None:
    """
    A renamed subvolume is found at its new path. It is gone when its directory is, and a new directory is not a
    subvolume.
    """
    make(fake_btrfs, "a", "b")
    moved = subvolume.get_id(fake_btrfs / "a")
    (fake_btrfs / "a").rename(fake_btrfs / "b/moved")
    assert subvolume.get_path(fake_btrfs, moved) == "b/moved"
    (fake_btrfs / "b/moved").rmdir()
    (fake_btrfs / "b/moved").mkdir()
    assert not subvolume.is_subvolume(fake_btrfs / "b/moved")
    assert [entry.path for entry in subvolume.iterate(fake_btrfs)] == ["b"]


@pytest.mark.parametrize(("privileged", "refusal"), [(True, errno.ENOTTY), (False, errno.EPERM)])
def test_searches_of_files(tmp_path: Path, privileged: bool, refusal: int) -> None:
    """
    A search for changed files is refused as on a kernel without the ioctl, or for want of a privilege.

    Other files reach the real kernel.
    """
    with fake_btrfs_of(tmp_path, privileged=privileged):
        subvolume.create(tmp_path / "a")
        for search in (tree_search.sum_changes, lambda *arguments: list(tree_search.search_changes(*arguments))):
            with pytest.raises(OSError) as caught:
                search(tmp_path / "a", 0)
            assert caught.value.errno == refusal
            with pytest.raises(NotBtrfsError):
                search("/proc", 0)


def test_a_copy_in_its_source(tmp_path: Path) -> None:
    """
    A copy inside its source does not contain itself, and hard links in it are links.
    """
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/file").write_text("content")
    (tmp_path / "link").hardlink_to(tmp_path / "directory/file")
    copy_tree(str(tmp_path), str(tmp_path / "directory/copy"))
    copy = tmp_path / "directory/copy"
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == ["directory", "directory/file", "link"]
    assert (copy / "link").samefile(copy / "directory/file")


def test_a_copy_that_fails(tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    A failed copy leaves nothing. Files that existed before remain.
    """
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "secret").mkdir(parents=True, mode=0)
    target.mkdir()
    with pytest.raises(FileExistsError):
        copy_tree(str(source), str(target))
    for directory in (tmp_path, target):
        directory.chmod(0o777)
    with pytest.raises(PermissionError):
        unprivileged(copy_tree, str(source), str(target / "copy"))
    assert list(target.iterdir()) == []


def test_removal_whatever_the_modes(tmp_path: Path, unprivileged: Callable[..., Any]) -> None:
    """
    The owner removes a tree from directories that he may neither read nor write. Symlinks are not followed.
    """
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)

    def fill_and_remove(path: Path) -> bool:
        (path / "closed/inner").mkdir(parents=True)
        (path / "closed/inner/file").touch()
        (path / "closed/link").symlink_to(outside)
        for directory in ("closed/inner", "closed"):
            (path / directory).chmod(0)
        remove_tree(str(path / "closed"))
        return not (path / "closed").exists()

    for directory in reversed(tmp_path.parents):
        if directory.is_relative_to(tempfile.gettempdir()):
            directory.chmod(0o755)
    tmp_path.chmod(0o777)
    assert unprivileged(fill_and_remove, tmp_path)
    assert outside.stat().st_mode & 0o777 == 0o500
