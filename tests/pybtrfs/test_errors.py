"""
The file that each error names: the caller's own argument, for every function that takes a file.
"""

import errno
import inspect
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import UUID

import pytest

from pybtrfs import device, extent, filesystem, image, inode, send, space, subvolume, syscall, tree_search
from pybtrfs.errors import NotBtrfsError, NotSubvolumeError
from pybtrfs.extent import Extent
from pybtrfs.subvolume import SubvolumeRef
from pybtrfs.tree_search import MIN_KEY
from tests.conftest import become_nobody, in_child

pytestmark = pytest.mark.btrfs

O_PATH_NOTE = "the file descriptor was opened with O_PATH: open the file for reading"
UNKNOWN = 1 << 40  # the id of no subvolume
UUID_ = UUID(int=1)


class Call(NamedTuple):
    """
    A function of a target.

    Args:
        root: The target must be the root of a subvolume.
        privileged: An ordinary user is refused.
        unreadable: The target need not be readable.
        unknown: The call asks for a subvolume that does not exist.
    """

    run: Callable[[Any], object]
    root: bool = False
    privileged: bool = False
    unknown: bool = False
    unreadable: bool = False


CALLS = {
    "device.find_node": Call(device.find_node),
    "device.get_info": Call(lambda target: device.get_info(target, 1)),
    "device.get_stats": Call(device.get_stats),
    "device.iterate": Call(lambda target: list(device.iterate(target))),
    "device.get_state": Call(lambda target: device.get_state(target, device.DeviceInfo(1, bytes(16), 0, 0, "/dev/x"))),
    "extent.get_references": Call(lambda target: extent.get_references(target, 0), privileged=True),
    "extent.has_reference": Call(lambda target: extent.has_reference(target, 5, Extent(1, 1, 256, 0)), privileged=True),
    "extent.iterate": Call(lambda target: list(extent.iterate(target, 5)), privileged=True),
    "extent.unshared": Call(lambda target: extent.unshared(target, [Extent(1, 1, 256, 0)], [5]), privileged=True),
    "filesystem.get_info": Call(filesystem.get_info),
    "filesystem.resize": Call(lambda target: filesystem.resize(target, "max"), privileged=True),
    "filesystem.start_sync": Call(filesystem.start_sync),
    "filesystem.sync": Call(filesystem.sync),
    "filesystem.wait_sync": Call(filesystem.wait_sync),
    "inode.get_compression": Call(inode.get_compression),
    "inode.get_nodatacow": Call(inode.get_nodatacow),
    "inode.set_compression": Call(lambda target: inode.set_compression(target, "zstd"), privileged=True),
    "inode.set_nodatacow": Call(inode.set_nodatacow, privileged=True),
    "send.send": Call(lambda target: send.send(target, io.BytesIO()), root=True, privileged=True),
    "space.get": Call(space.get),
    "space.get_survivable": Call(space.get_survivable),
    "subvolume.Subvolume": Call(lambda target: subvolume.Subvolume(target).close(), root=True),
    "subvolume.ancestors": Call(lambda target: list(subvolume.ancestors(target)), privileged=True),
    "subvolume.changes": Call(lambda target: list(subvolume.changes(target, target)), privileged=True),
    "subvolume.children": Call(lambda target: list(subvolume.children(target))),
    "subvolume.count_deleted": Call(subvolume.count_deleted),
    "subvolume.delete_by_id": Call(lambda target: subvolume.delete_by_id(target, UNKNOWN), unknown=True),
    "subvolume.find_received_uuid": Call(
        lambda target: subvolume.find_received_uuid(target, UUID_), privileged=True, unknown=True
    ),
    "subvolume.find_uuid": Call(lambda target: subvolume.find_uuid(target, UUID_), privileged=True, unknown=True),
    "subvolume.get_child_path": Call(
        lambda target: subvolume.get_child_path(target, SubvolumeRef(UNKNOWN, 256)), unknown=True
    ),
    "subvolume.get_default": Call(subvolume.get_default, privileged=True),
    "subvolume.get_id": Call(subvolume.get_id),
    "subvolume.get_info": Call(subvolume.get_info),
    "subvolume.get_info by id": Call(lambda target: subvolume.get_info(target, UNKNOWN), privileged=True, unknown=True),
    "subvolume.get_path": Call(lambda target: subvolume.get_path(target, UNKNOWN), privileged=True, unknown=True),
    "subvolume.get_path_below": Call(lambda target: subvolume.get_path_below(target, UNKNOWN), unknown=True),
    "subvolume.get_read_only": Call(subvolume.get_read_only, root=True),
    "subvolume.get_root": Call(subvolume.get_root, unreadable=True),
    "subvolume.iterate": Call(lambda target: list(subvolume.iterate(target)), privileged=True),
    "subvolume.iterate the own": Call(lambda target: list(subvolume.iterate(target, top=0))),
    "subvolume.iterate a missing": Call(
        lambda target: list(subvolume.iterate(target, top=UNKNOWN)), privileged=True, unknown=True
    ),
    "subvolume.iterate_below": Call(lambda target: list(subvolume.iterate_below(target))),
    "subvolume.iterate_deleted": Call(lambda target: list(subvolume.iterate_deleted(target)), privileged=True),
    "subvolume.origins": Call(lambda target: list(subvolume.origins(target))),
    "subvolume.set_default": Call(lambda target: subvolume.set_default(target, UNKNOWN), privileged=True, unknown=True),
    "subvolume.set_read_only": Call(subvolume.set_read_only, root=True, privileged=True),
    "subvolume.wait_deleted": Call(lambda target: subvolume.wait_deleted(target, UNKNOWN, 1), privileged=True),
    "tree_search.is_permitted": Call(tree_search.is_permitted),
    "tree_search.read": Call(tree_search.read, privileged=True),
    "tree_search.search": Call(lambda target: list(tree_search.search(target, max_key=MIN_KEY)), privileged=True),
    "tree_search.search_changes": Call(lambda target: list(tree_search.search_changes(target, 0)), privileged=True),
    "tree_search.search_files": Call(lambda target: list(tree_search.search_files(target)), privileged=True),
    "tree_search.search_subvolume_records": Call(
        lambda target: list(tree_search.search_subvolume_records(target)), privileged=True
    ),
    "tree_search.search_subvolumes": Call(
        lambda target: list(tree_search.search_subvolumes(target, tuple)), privileged=True
    ),
    "tree_search.sum_changes": Call(lambda target: tree_search.sum_changes(target, 0), privileged=True),
}


DESTINATIONS: dict[str, Callable[[Any], object]] = {
    "create": subvolume.create,
    "delete": subvolume.delete,
    "delete recursive": lambda dest: subvolume.delete(dest, recursive=True),
    "delete unlink": lambda dest: subvolume.delete(dest, unlink=True),
    "batch.create": lambda dest: in_batch("create", dest),
    "batch.delete": lambda dest: in_batch("delete", dest),
}


def in_batch(change: str, dest: Any) -> None:
    with subvolume.batch() as batch:
        getattr(batch, change)(dest)


class Opened:
    """
    An open file, closed at the end of the ``with``.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd


@contextmanager
def as_target(path: Path, form: str) -> Iterator[Any]:
    if form in PATHS:
        yield PATHS[form](path)
        return
    with Opened(path) as file:
        yield file if form == "file" else file.fileno()


@contextmanager
def as_destination(path: Path, form: str) -> Iterator[tuple[Any, Any]]:
    """
    Yield *path* as a destination, and the name that stands for it in an error.
    """
    if form in PATHS:
        yield PATHS[form](path), PATHS[form](path)
        return
    directory, _, kind = form.partition(", ")
    name: Any = PATHS[kind](path.name)
    with Opened(path.parent) as file:
        yield (file if directory == "file" else file.fileno(), name), name


PATHS: dict[str, Callable[[Any], Any]] = {"str": str, "bytes": os.fsencode, "PathLike": Path}
OPEN = ["fd", "file"]
PAIRS = ["fd, str", "fd, bytes", "file, str"]


def check(error: OSError, *names: Any) -> None:
    """
    Check that an error names the files *names*. For a PathLike, Python itself has its text.
    """
    found = [name for name in (error.filename, error.filename2) if name is not None]
    assert [plain(name) for name in found] == [plain(name) for name in names], error
    assert [type(plain(name)) for name in found] == [type(plain(name)) for name in names]


def plain(name: Any) -> Any:
    return os.fspath(name) if isinstance(name, os.PathLike) else name


def test_the_table_is_complete() -> None:
    """
    Each public function that takes a target is in the table.
    """
    functions = {
        f"{module.__name__.removeprefix('pybtrfs.')}.{name}"
        for module in (device, extent, filesystem, inode, send, space, subvolume, tree_search)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        # As it is written, or as it is evaluated in modules that do without postponed annotations.
        if not name.startswith("_") and re.search("Target|HasFileno", str(inspect.signature(function)))
        if function.__module__.startswith(module.__name__)
    }
    assert functions - {name.partition(" ")[0] for name in CALLS} == {
        "subvolume.snapshot",
        "subvolume.temporary_snapshot",
        "subvolume.is_subvolume",  # raises only as opening does
    }


@pytest.mark.parametrize("form", PATHS)
@pytest.mark.parametrize("name", CALLS)
def test_a_missing_target(name: str, form: str, tmp_path: Path) -> None:
    """
    A path to nothing is named as it was given.
    """
    with as_target(tmp_path / "missing", form) as target, pytest.raises(FileNotFoundError) as caught:
        CALLS[name].run(target)
    check(caught.value, target)


@pytest.mark.parametrize("form", [*PATHS, *OPEN])
@pytest.mark.parametrize("name", CALLS)
def test_a_target_that_is_not_on_btrfs(name: str, form: str) -> None:
    """
    A file of another filesystem is named as it was given, also if a nested call finds out.
    """
    expected = NotSubvolumeError if CALLS[name].root else NotBtrfsError
    with as_target(Path("/proc"), form) as target, pytest.raises((NotBtrfsError, expected)) as caught:
        CALLS[name].run(target)
    check(caught.value, target)


@pytest.mark.parametrize("form", [*PATHS, *OPEN])
@pytest.mark.parametrize("kind", ["directory", "file"])
@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.root])
def test_a_target_that_is_no_subvolume(name: str, kind: str, form: str, btrfs: Path) -> None:
    """
    A file that is not the root of a subvolume is named as it was given.
    """
    (btrfs / "directory").mkdir()
    (btrfs / "file").touch()
    with as_target(btrfs / kind, form) as target, pytest.raises(NotSubvolumeError) as caught:
        CALLS[name].run(target)
    check(caught.value, target)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.unknown])
@pytest.mark.parametrize("form", [*PATHS, *OPEN])
def test_what_is_not_found(name: str, form: str, base: Path) -> None:
    """
    If the filesystem has no such subvolume, the file that stands for the filesystem is named as it was given.
    """
    with as_target(base, form) as target, pytest.raises(FileNotFoundError) as caught:
        CALLS[name].run(target)
    check(caught.value, target)


@pytest.mark.parametrize("form", [*PATHS, *OPEN])
def test_a_target_that_is_refused(form: str, base: Path) -> None:
    """
    A file that an ordinary user may not open, or may not call the ioctl on, is named as it was given.
    """
    (base / "closed").mkdir(mode=0)
    paths = [base] if form in OPEN else [base, base / "closed"]
    calls = [
        (name, path)
        for name, call in CALLS.items()
        for path in paths
        if (call.privileged if path == base else not call.unreadable)
    ]

    def allowed() -> list[str]:
        become_nobody()
        found = []
        for name, path in calls:
            with as_target(path, form) as target:
                try:
                    CALLS[name].run(target)
                except PermissionError as error:
                    check(error, target)
                else:
                    found.append(name)
        return found

    assert in_child(allowed) == []


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if not call.unreadable])
def test_a_target_opened_with_o_path(name: str, base: Path) -> None:
    """
    A file descriptor that only stands for a path is EBADF with one note that says so.
    """
    fd = os.open(base, syscall.O_PATH)
    try:
        if name == "subvolume.Subvolume":
            CALLS[name].run(fd)  # opens the subvolume itself
            return
        with pytest.raises(OSError) as caught:
            CALLS[name].run(fd)
    finally:
        os.close(fd)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, fd)
    assert [note for note in caught.value.__notes__ if "O_PATH" in note] == [O_PATH_NOTE]


def test_a_snapshot_with_o_path(base: Path) -> None:
    """
    A source that only stands for a path is EBADF, where the kernel says EINVAL; so is such a directory.
    """
    fd = os.open(base, syscall.O_PATH)
    try:
        for call, names in (
            (lambda: subvolume.snapshot(fd, base / "new"), [fd]),
            (lambda: subvolume.snapshot(base, (fd, "new")), [base, "new"]),
            (lambda: subvolume.create((fd, "new")), ["new"]),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
            assert caught.value.__notes__[-1] == O_PATH_NOTE
            check(caught.value, *names)
    finally:
        os.close(fd)


def test_a_subvolume_that_may_not_be_read(base: Path) -> None:
    """
    A subvolume that is given by its path alone, and that an ordinary user may not read, is named as it was given.
    """
    base.chmod(0)

    def refused() -> tuple[int | None, bool]:
        become_nobody()
        fd = os.open(base, syscall.O_PATH)
        with pytest.raises(PermissionError) as caught:
            subvolume.Subvolume(fd)
        return caught.value.errno, caught.value.filename == fd

    assert in_child(refused) == (errno.EACCES, True)


@pytest.mark.parametrize("form", PATHS)
@pytest.mark.parametrize("directory", ["missing", "file"])
@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_destination_without_a_directory(name: str, directory: str, form: str, tmp_path: Path) -> None:
    """
    A path in no directory is named whole, as it was given.
    """
    (tmp_path / "file").touch()
    expected = NotADirectoryError if directory == "file" else FileNotFoundError
    with as_destination(tmp_path / directory / "new", form) as (dest, named), pytest.raises(expected) as caught:
        DESTINATIONS[name](dest)
    check(caught.value, named)


@pytest.mark.parametrize("form", [*PATHS, *PAIRS])
@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_destination_that_is_not_on_btrfs(name: str, form: str) -> None:
    """
    A name on another filesystem is named as it was given.
    """
    with as_destination(Path("/proc/sys"), form) as (dest, named), pytest.raises(OSError) as caught:
        DESTINATIONS[name](dest)
    assert isinstance(caught.value, NotBtrfsError | NotSubvolumeError)
    check(caught.value, named)


@pytest.mark.parametrize("form", [*PATHS, *PAIRS])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("missing", FileNotFoundError), ("directory", NotSubvolumeError), ("file", NotADirectoryError)],
)
@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_destination_of_another_kind(name: str, kind: str, expected: type[OSError], form: str, btrfs: Path) -> None:
    """
    A name that is there already, or is no subvolume to delete, is named as it was given.
    """
    (btrfs / "directory").mkdir()
    (btrfs / "file").touch()
    if name.endswith("create"):
        kind, expected = ("directory" if kind == "missing" else kind), FileExistsError
    with as_destination(btrfs / kind, form) as (dest, named), pytest.raises(expected) as caught:
        DESTINATIONS[name](dest)
    check(caught.value, named)


@pytest.mark.parametrize("form", [*PATHS, *PAIRS])
def test_a_destination_that_is_refused(form: str, base: Path) -> None:
    """
    A name that an ordinary user may not create or delete is named as it was given.
    """
    subvolume.create(base / "nested")

    def allowed() -> list[str]:
        become_nobody()
        found = []
        for name, call in DESTINATIONS.items():
            with as_destination(base / ("new" if name.endswith("create") else "nested"), form) as (dest, named):
                try:
                    call(dest)
                except PermissionError as error:
                    check(error, named)
                else:
                    found.append(name)
        return found

    assert in_child(allowed) == []


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("dest_form", [*PATHS, *PAIRS])
@pytest.mark.parametrize("form", [*PATHS, *OPEN])
def test_a_snapshot(form: str, dest_form: str, recursive: bool, base: Path) -> None:
    """
    A snapshot names its source, its destination, or both, whichever is at fault.
    """
    (base / "directory").mkdir()
    source = base / "source"
    subvolume.create(source)
    for path, dest_path, expected, at_fault in (
        (source, base / "directory", FileExistsError, "both"),
        (Path("/proc"), base / "new", OSError, "both"),
        (source, Path("/proc/new"), NotBtrfsError, "dest"),
        (base / "directory", base / "new", NotSubvolumeError, "source"),
    ):
        with (
            as_target(path, form) as target,
            as_destination(dest_path, dest_form) as (dest, named),
            pytest.raises(expected) as caught,
        ):
            subvolume.snapshot(target, dest, recursive=recursive)
        check(caught.value, *{"both": (target, named), "source": (target,), "dest": (named,)}[at_fault])


def test_a_snapshot_from_or_to_nothing(base: Path) -> None:
    """
    A missing source is named alone. A destination whose directory is missing is named with the source.
    """
    for source, dest, names in (
        (base / "x", base / "new", [base / "x"]),
        (base, base / "x/new", [base, base / "x/new"]),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            subvolume.snapshot(source, dest)
        check(caught.value, *names)


def test_a_recursive_snapshot_that_fails_below(base: Path) -> None:
    """
    An error at a nested subvolume names source and destination, and the nested subvolume in a note.
    """
    subvolume.create(base / "nested")
    with tempfile.TemporaryDirectory() as other:
        syscall.mount(other, base / "nested", "", syscall.MS_BIND)
        try:
            with pytest.raises(OSError) as caught:
                subvolume.snapshot(base, base / "copy", recursive=True)
        finally:
            syscall.umount2(base / "nested")
    check(caught.value, base, base / "copy")
    assert caught.value.__notes__[-1] == "at 'nested' below it"


def test_a_temporary_snapshot(base: Path) -> None:
    """
    A temporary snapshot names its source, or its own path.
    """
    for source, directory, is_named in (
        (base / "x", base, lambda name: name == str(base / "x")),
        (base, base / "x", lambda name: name == str(base / "x")),
        (base, Path("/proc"), lambda name: name.startswith("/proc/snapshot-")),
    ):
        with pytest.raises(OSError) as caught, subvolume.temporary_snapshot(source, directory):
            pass
        assert is_named(os.fspath(caught.value.filename))
        assert caught.value.filename2 is None


@pytest.mark.parametrize("form", PATHS)
def test_an_image(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error names the image as it was given; an error of its mount names image and target.
    """

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, target = PATHS[form](tmp_path / "image"), PATHS[form](tmp_path / "target")
    (tmp_path / "target").mkdir()
    calls = image.attach, lambda path: image.mount(path, target), lambda path: image.grow(path, 1 << 30, sparse=True)
    for call in calls:
        with pytest.raises(FileNotFoundError) as missing:
            call(path)
        check(missing.value, path)
    image.create(path, image.MINIMUM_SIZE, sparse=True)
    with pytest.raises(OSError) as refused:
        image.mount(path, target, options="unknown")
    check(refused.value, path, target)
    monkeypatch.setattr(os, "fsync", refuse)
    for name, call in (("image", calls[-1]), ("new", lambda path: image.create(path, image.MINIMUM_SIZE, sparse=True))):
        path = PATHS[form](tmp_path / name)
        with pytest.raises(OSError) as full:
            call(path)
        check(full.value, path)
