"""
Streams of subvolumes, compared with those of the ``btrfs`` command.
"""

import errno
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import image, inode, subvolume
from pybtrfs.send import get_stream_version, send
from tests.pybtrfs.subvolume.common import FORMS, form

pytestmark = pytest.mark.btrfs


@pytest.fixture
def snapshots(base: Path) -> tuple[Path, Path]:
    """
    Two read-only snapshots of a subvolume; between them files were changed, cloned, renamed and deleted.
    """
    inode.set_compression(base, "zstd")
    (base / "directory").mkdir()
    (base / "directory" / "file").write_bytes(os.urandom(4096) * 100)
    (base / "gone").write_bytes(b"gone")
    os.setxattr(base / "gone", "user.name", b"value")
    os.symlink("directory/file", base / "link")
    subvolume.snapshot(base, base.parent / "first", read_only=True)
    (base / "directory" / "file").rename(base / "renamed")
    (base / "gone").unlink()
    (base / "new").write_bytes(os.urandom(1 << 20))
    subprocess.run(["cp", "--reflink=always", base / "renamed", base / "clone"], check=True)
    subvolume.snapshot(base, base.parent / "second", read_only=True)
    return base.parent / "first", base.parent / "second"


def theirs(*arguments: object) -> bytes:
    """
    Return the stream of the ``btrfs`` command.
    """
    return subprocess.run(["btrfs", "-q", "send", *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout


def ours(target: Any, **options: Any) -> bytes:
    output = io.BytesIO()
    assert send(target, output, **options) == len(output.getvalue())
    return output.getvalue()


@pytest.mark.parametrize("kind", FORMS)
def test_send(snapshots: tuple[Path, Path], kind: str) -> None:
    """
    A stream has the bytes of the command's stream.
    """
    with form(snapshots[1], kind) as target:
        assert ours(target) == theirs(snapshots[1])


@pytest.mark.parametrize("kind", FORMS)
def test_parent(snapshots: tuple[Path, Path], kind: str) -> None:
    """
    The stream of the changes to a parent has the bytes of the command's stream.
    """
    first, second = snapshots
    with form(first, kind) as parent:
        assert ours(second, parent=parent) == theirs("-p", first, second)


def test_clone_sources(snapshots: tuple[Path, Path], base: Path) -> None:
    """
    Clone sources give the bytes of the command's stream, which has less data than a stream without them.
    """
    first, second = snapshots
    subvolume.create(base.parent / "other")
    subprocess.run(["cp", "--reflink=always", second / "new", base.parent / "other" / "new"], check=True)
    subvolume.set_read_only(base.parent / "other", read_only=True)
    stream = ours(second, parent=first, clone_sources=[base.parent / "other"])
    assert stream == theirs("-p", first, "-c", base.parent / "other", second)
    assert len(stream) < len(ours(second, parent=first)) - (1 << 20)


def test_version(snapshots: tuple[Path, Path]) -> None:
    """
    Compressed data is sent in version 2, and a version that the kernel does not offer is refused with the newest.
    """
    _, second = snapshots
    assert ours(second, version=2) == theirs("--proto", 2, second)
    compressed = ours(second, compressed_data=True)
    assert compressed == theirs("--proto", 2, "--compressed-data", second)
    assert len(compressed) < len(ours(second))
    for version in (0, get_stream_version() + 1):
        with pytest.raises(ValueError, match=rf"version {version} .* use 1 to {get_stream_version()}"):
            ours(second, version=version)
    with pytest.raises(ValueError, match="version 1 of the stream has no compressed data: use 2"):
        ours(second, version=1, compressed_data=True)


def test_no_file_data(snapshots: tuple[Path, Path]) -> None:
    """
    A stream without data has the bytes of the command's stream.
    """
    assert ours(snapshots[1], no_file_data=True) == theirs("--no-data", snapshots[1])


def test_outputs(snapshots: tuple[Path, Path], tmp_path: Path) -> None:
    """
    A descriptor, a buffered file and an unbuffered file, also in append mode, get the same bytes at their positions.
    """
    stream = theirs(snapshots[0])
    for mode, buffering in (("wb", -1), ("wb", 0), ("ab", -1), ("ab", 0)):
        (tmp_path / "stream").unlink(missing_ok=True)
        with open(tmp_path / "stream", mode, buffering=buffering) as file:
            file.write(b"before")
            send(snapshots[0], file)
            file.write(b"after")
        assert (tmp_path / "stream").read_bytes() == b"before" + stream + b"after"
    fd = os.open(tmp_path / "stream", os.O_WRONLY | os.O_TRUNC)
    send(snapshots[0], fd)
    os.close(fd)
    assert (tmp_path / "stream").read_bytes() == stream


def test_a_full_output(snapshots: tuple[Path, Path]) -> None:
    """
    A full output that does not block is an error, and not a hole in the stream.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb"), open(writer, "wb", buffering=0) as file:
        for output in (writer, file):
            with pytest.raises(BlockingIOError):
                send(snapshots[1], output)


def test_progress(snapshots: tuple[Path, Path]) -> None:
    """
    The progress ends with the size of the stream, and an exception of the callback ends sending.
    """
    seen: list[int] = []
    stream = ours(snapshots[1], progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(stream)

    def stop(sent: int) -> None:
        raise RuntimeError(sent)

    # Each write of the kernel may be read alone or with the next.
    with pytest.raises(RuntimeError) as raised:
        ours(snapshots[1], progress=stop)
    assert 0 < int(str(raised.value)) <= len(stream)


def test_interruption(snapshots: tuple[Path, Path]) -> None:
    """
    An interrupted call leaves no thread and no descriptor, even if the default of SIGPIPE is restored.
    """
    before = threading.active_count(), os.listdir("/proc/self/fd")
    old = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            ours(snapshots[1], progress=lambda sent: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGPIPE, old)
    assert (threading.active_count(), os.listdir("/proc/self/fd")) == before


def test_not_read_only(snapshots: tuple[Path, Path], base: Path) -> None:
    """
    A writable subvolume, parent or clone source is named with its cure.
    """
    first, _ = snapshots
    options: dict[str, Any]
    for target, options in ((base, {}), (first, {"parent": base}), (first, {"clone_sources": [base]})):
        with pytest.raises(PermissionError) as raised:
            ours(target, **options)
        assert raised.value.filename == base
        assert raised.value.__notes__[-1] == f"{base!r} is not read-only: send a read-only snapshot of it"


def test_a_deleted_parent(snapshots: tuple[Path, Path]) -> None:
    """
    A deleted parent is named with its cure.
    """
    first, second = snapshots
    with subvolume.Subvolume(first) as parent:
        subvolume.delete(first)
        with pytest.raises(FileNotFoundError) as raised:
            ours(second, parent=parent)
        assert raised.value.filename is parent
        assert raised.value.__notes__[-1].endswith("was deleted: choose another, or send without it")


def test_not_a_subvolume(snapshots: tuple[Path, Path]) -> None:
    """
    A file inside a subvolume does not stand for the subvolume.
    """
    first, second = snapshots
    options: dict[str, Any]
    for target, options in (
        (second / "directory", {}),
        (second, {"parent": first / "directory"}),
        (second, {"clone_sources": [first / "directory"]}),
    ):
        with pytest.raises(OSError, match="not the root of a subvolume"):
            ours(target, **options)


def test_another_filesystem(snapshots: tuple[Path, Path]) -> None:
    """
    A parent on another filesystem is refused, because its id may be that of a subvolume here.
    """
    with image.temporary(128 << 20) as other:
        subvolume.create(other / "parent")
        for options in ({"parent": other / "parent"}, {"clone_sources": [other / "parent"]}):
            with pytest.raises(OSError, match="not on the filesystem") as raised:
                ours(snapshots[1], **options)
            assert (raised.value.errno, raised.value.filename) == (errno.EXDEV, other / "parent")


def _refusal(path: Path) -> tuple[int | None, list[str]]:
    try:
        ours(path)
    except OSError as error:
        return error.errno, error.__notes__
    return None, []


def test_unprivileged(snapshots: tuple[Path, Path], unprivileged: Callable[..., Any]) -> None:
    """
    An ordinary user is refused, and the note names the privilege.
    """
    number, notes = unprivileged(_refusal, snapshots[1])
    assert number == errno.EPERM
    assert any("CAP_SYS_ADMIN" in note for note in notes)
