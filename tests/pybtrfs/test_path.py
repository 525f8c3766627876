"""
The forms of a file: paths, open files, names in open directories.
"""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pybtrfs import kernel, subvolume, syscall
from pybtrfs.path import at, opened, using


def place(dirfd: int, name: bytes) -> tuple[int, int, bytes]:
    """
    Return the arguments that `at` passes: the directory's file descriptor, its inode, and the name.
    """
    return dirfd, os.fstat(dirfd).st_ino, name


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_a_path_is_opened_and_closed(tmp_path: Path, form: Callable[[Path], str | bytes | Path]) -> None:
    """
    A path in any form gets a file descriptor, close-on-exec, until the end of the block.
    """
    with opened(form(tmp_path)) as fd:
        assert os.fstat(fd).st_ino == tmp_path.stat().st_ino
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert not is_open(fd)


def test_a_path_is_opened_with_flags(tmp_path: Path) -> None:
    """
    Flags decide how a path is opened, which is close-on-exec in any case.
    """
    with opened(tmp_path, syscall.O_PATH) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & syscall.O_PATH
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_an_open_file_is_used_as_it_is(tmp_path: Path) -> None:
    """
    A file descriptor, bare or in an object, is neither duplicated nor closed.
    """
    with open(tmp_path / "file", "wb") as file:
        for target in (file, file.fileno()):
            with opened(target) as fd:
                assert fd == file.fileno()
            assert is_open(fd)


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    """
    A FIFO without a writer is opened at once.
    """
    os.mkfifo(tmp_path / "fifo")
    with opened(tmp_path / "fifo"):
        pass


@pytest.mark.parametrize("target", [None, 1.5, [b"a"], object()])
def test_what_is_no_file_is_refused(target: object) -> None:
    """
    An object that is neither a path nor an open file is a TypeError that shows it.
    """
    with pytest.raises(TypeError, match="neither a path nor an open file"), opened(target):  # type: ignore[arg-type]
        pass


def test_a_negative_file_descriptor_is_refused() -> None:
    """
    A negative file descriptor is a ValueError.
    """
    with pytest.raises(ValueError, match="-1"), opened(-1):
        pass


def test_an_error_closes_the_file_and_gets_its_name(tmp_path: Path) -> None:
    """
    An error in the block keeps its class and errno, gets the caller's path, and leaves nothing open.
    """
    with pytest.raises(FileExistsError) as caught, opened(tmp_path) as fd:
        raise OSError(17, "File exists")
    assert caught.value.filename is tmp_path
    assert not is_open(fd)


@pytest.mark.parametrize("form", [os.fspath, os.fsencode, Path])
def test_a_call_with_a_path(tmp_path: Path, form: Callable[[Path], str | bytes | Path]) -> None:
    """
    A call gets a file descriptor of the path and its arguments, and its result is returned; then nothing is open.
    """
    seen = []

    def call(fd: int, *arguments: object) -> str:
        seen.append((fd, os.path.samestat(os.fstat(fd), tmp_path.stat()), arguments))
        return "result"

    assert using(form(tmp_path), call, 1, "a") == "result"
    [(fd, same, arguments)] = seen
    assert (same, arguments) == (True, (1, "a"))
    assert not is_open(fd)


def test_a_call_with_an_open_file(tmp_path: Path) -> None:
    """
    A call gets the file descriptor of an open file, which stays open; no file is refused before the call.
    """
    with (tmp_path / "file").open("w") as file:
        assert using(file, os.dup2, file.fileno()) == file.fileno()
        assert using(file.fileno(), lambda fd: fd) == file.fileno()
        assert is_open(file.fileno())
    with pytest.raises(ValueError, match="-1"):
        using(-1, os.close)
    with pytest.raises(TypeError, match="neither a path nor an open file"):
        using(None, os.close)  # type: ignore[arg-type]


def test_a_refused_call_closes_the_file_and_gets_its_name(tmp_path: Path) -> None:
    """
    An error of the call keeps its class and errno, gets the caller's path, and leaves nothing open.
    """
    seen = []

    def call(fd: int) -> None:
        seen.append(fd)
        raise OSError(17, "File exists")

    with pytest.raises(FileExistsError) as caught:
        using(tmp_path, call)
    assert caught.value.filename is tmp_path
    assert not is_open(seen[0])


@pytest.mark.parametrize(
    ("path", "name"),
    [("name", b"name"), ("{}/name", b"name"), ("{}/name//", b"name"), ("{}/-", b"-"), ("{}/ \n", b" \n")],
)
@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_a_destination_is_a_directory_and_a_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[str], str | bytes | Path],
    path: str,
    name: bytes,
) -> None:
    """
    A path is split into its directory, which is opened, and its last name. Trailing slashes are ignored.
    """
    monkeypatch.chdir(tmp_path)
    dirfd, inode, found = at(form(path.format(tmp_path)), place)
    assert (inode, found) == (tmp_path.stat().st_ino, name)
    assert not is_open(dirfd)


@pytest.mark.parametrize("name", ["name", b"name", b"\xff\xfe", "\udcff", "n" * 255, "...", " "])
def test_a_name_in_an_open_directory(tmp_path: Path, name: str | bytes) -> None:
    """
    A name in an open directory may be any name that the kernel accepts, and need not be UTF-8.
    """
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert at((directory, name), place) == (directory, tmp_path.stat().st_ino, os.fsencode(name))
        assert is_open(directory)
    finally:
        os.close(directory)


BAD_NAMES = ["", b"", ".", b"..", "n" * 256, b"n" * 256, "é" * 128, "a\0b", b"\0"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a/b", b"/", "/a"])
def test_a_bad_name_is_refused_before_any_call(monkeypatch: pytest.MonkeyPatch, name: str | bytes) -> None:
    """
    Names that are empty, "." or "..", longer than 255 bytes, or with a slash or NUL byte are ValueErrors that show the
    name. The kernel is not called.
    """
    monkeypatch.setattr(kernel.current, "vol_ioctl", lambda *_: pytest.fail("the kernel was called"))
    for call in (subvolume.create, subvolume.delete, lambda dest: subvolume.snapshot(0, dest)):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            call((0, name))


@pytest.mark.parametrize(
    "path", ["", "/", "///", b"", "/tmp/../", *(f"/tmp/{n}" for n in BAD_NAMES if n and isinstance(n, str))]
)
def test_a_path_with_a_bad_name_is_refused(path: str | bytes) -> None:
    """
    A path whose last name is bad is refused, too.
    """
    with pytest.raises(ValueError, match="name"):
        at(path, place)


def test_a_null_byte_in_the_directory_is_refused() -> None:
    """
    A NUL byte elsewhere in a path is a ValueError, too.
    """
    with pytest.raises(ValueError, match="null"):
        at("/tmp/a\0b/name", place)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
@example("n" * 255)
@example("\ud800")
def test_names_are_either_kept_or_refused(name: str | bytes) -> None:
    """
    A name is passed on byte for byte if the kernel accepts it. Every other name is a ValueError.
    """
    try:
        _, _, found = at((0, name), place)
    except ValueError:
        encoded = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
        surrogates = isinstance(name, str) and any("\ud800" <= c <= "\udfff" for c in name)
        assert surrogates or encoded in (b"", b".", b"..") or len(encoded) > 255 or b"/" in encoded or b"\0" in encoded
    else:
        assert found == os.fsencode(name)
        assert 1 <= len(found) <= 255
        assert found not in (b".", b"..")
        assert not {b"/"[0], 0} & set(found)
