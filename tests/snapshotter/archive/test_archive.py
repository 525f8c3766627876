"""
Snapshots as tars, and from them.
"""

import bz2
import gzip
import io
import itertools
import lzma
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pybtrfs import subvolume, syscall
from snapshotter import Snapshotter
from snapshotter.archive import packing, tar, unpacking
from snapshotter.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from snapshotter.mounting import mounted
from tests.snapshotter.conftest import entries

pytestmark = pytest.mark.btrfs

_numbers = itertools.count()


def pack(path: Path) -> bytes:
    stream = io.BytesIO()
    fd = os.open(path, os.O_RDONLY)
    try:
        packing.pack(fd, stream)
    finally:
        os.close(fd)
    return stream.getvalue()


def unpack(data: bytes, path: Path) -> Path:
    path.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        unpacking.unpack(io.BytesIO(data), fd)
    finally:
        os.close(fd)
    return path


def described(root: Path) -> dict[str, Any]:
    """
    All that a tar has to keep.
    """
    paths = {".": root} | {str(path.relative_to(root)): path for path in root.rglob("*")}
    statuses = {name: path.lstat() for name, path in paths.items()}
    return {name: (entry, statuses[name].st_mtime_ns, statuses[name].st_rdev) for name, entry in entries(root).items()}


NAME = st.binary(min_size=1, max_size=6).filter(lambda name: not {*name} & {*b"\0/"} and name not in (b".", b".."))
KIND = st.sampled_from(["file", "directory", "symlink", "fifo", "device", "link", "sparse"])
TIME = st.integers(-(10**18), 4 * 10**18) | st.integers(0, 10**10).map(lambda second: second * 10**9)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b=c", "user.ü%", "trusted.t", "security.capabilit"]), st.binary(max_size=8)
)
FILES = st.lists(
    st.tuples(
        st.lists(NAME, min_size=1, max_size=3),
        KIND,
        st.binary(max_size=2000),
        st.integers(0, 0o7777),
        st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 70000)),
        TIME,
        XATTRS,
    ),
    max_size=8,
)


def make(root: Path, files: list[Any]) -> None:
    """
    Make *files*, as far as they can be.
    """
    made: list[bytes] = []
    for parts, kind, content, mode, owner, time, xattrs in files:
        path = os.path.join(os.fsencode(root), *parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            match kind:
                case "directory":
                    os.mkdir(path)
                case "symlink":
                    os.symlink(b"nowhere/" + content.replace(b"\0", b""), path)
                case "fifo":
                    os.mkfifo(path)
                case "device":
                    os.mknod(path, stat.S_IFCHR, os.makedev(owner[1] % 4096, owner[0] % 2**20))
                case "link":
                    os.link(made[len(content) % len(made)], path, follow_symlinks=False)
                case _:
                    with open(path, "xb") as file:
                        file.write(content)
                        if kind == "sparse":
                            file.seek(1 << 20 | len(content) << 12)
                            file.write(content)
                            file.truncate(4 << 20)
        except (OSError, ZeroDivisionError):
            continue
        if kind != "directory":
            made.append(path)
        os.chown(path, *owner, follow_symlinks=False)
        made_mode = os.lstat(path).st_mode  # a link's is that of what it leads to
        if not stat.S_ISLNK(made_mode):
            os.chmod(path, mode)
        for name, value in xattrs.items():
            if stat.S_ISREG(made_mode) or stat.S_ISDIR(made_mode) or not name.startswith("user."):
                os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(time, time), follow_symlinks=False)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=FILES)
@example(files=[([b"\xff\n"], "file", b"x", 0o6755, (2**32 - 2, 1), -1, {"user.b=c": b"\xff\0=\n"})])
@example(files=[([b"a"], "sparse", b"", 0o600, (0, 0), 1, {}), ([b"b"], "link", b"", 0o600, (0, 0), 1, {})])
@example(files=[([b"long" * 50] * 3, "symlink", b"y" * 300, 0, (0, 0), 1, {"trusted.t": b"\xc3"})])
def test_round_trip(btrfs: Path, files: list[Any]) -> None:
    """
    What was packed is unpacked: owners, modes, times to the nanosecond, attributes, links, devices, holes, any names.
    """
    source, target = btrfs / f"s{next(_numbers)}", btrfs / f"t{next(_numbers)}"
    source.mkdir()
    try:
        make(source, files)
        data = pack(source)
        unpack(data, target)
        assert described(target) == described(source)
        assert pack(target) == data
    finally:
        for path in (source, target):
            shutil.rmtree(os.fsencode(path), ignore_errors=True)


@pytest.fixture
def tree(btrfs: Path) -> Path:
    """
    A directory with each kind of file.
    """
    root = btrfs / "tree"
    root.mkdir()
    values: list[Any] = [0o640, (1, 70000), 1_600_000_000_123_456_789, {"user.a": b"\xff"}]
    name = os.fsencode("ü") + b"\xff"
    make(
        root,
        [
            ([name, b"file"], "file", b"content", *values),
            ([name, b"other"], "link", b"", *values),
            ([b"sparse"], "sparse", b"data", *values),
            ([b"symlink"], "symlink", b"/etc/passwd", *values[:3], {}),
            ([b"fifo"], "fifo", b"", *values[:3], {}),
            ([b"device"], "device", b"", *values[:3], {}),
            ([b"long" * 40, b"name" * 50], "directory", b"", *values),
        ],
    )
    return root


def test_holes(tree: Path, btrfs: Path) -> None:
    """
    Holes take no space in the tar, nor afterwards.
    """
    (tree / "hole").touch()
    os.truncate(tree / "hole", 1 << 40)
    data = pack(tree)
    assert len(data) < 100_000
    target = unpack(data, btrfs / "target")
    assert (target / "hole").stat().st_size == 1 << 40
    assert (target / "hole").stat().st_blocks == 0
    os.sync()
    assert (target / "sparse").stat().st_blocks <= (tree / "sparse").stat().st_blocks


def test_sockets(btrfs: Path) -> None:
    """
    Sockets are left out.
    """
    (btrfs / "s").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(btrfs / "s", os.O_PATH)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    assert list(described(unpack(pack(btrfs / "s"), btrfs / "t"))) == ["."]


def test_gnu_tar_reads(tree: Path, btrfs: Path) -> None:
    """
    GNU tar makes the same of it.
    """
    (btrfs / "target").mkdir()
    command = [
        "tar",
        "--extract",
        "--warning=no-unknown-keyword",
        "--xattrs",
        "--xattrs-include=*",
        "--same-owner",
        "--same-permissions",
    ]
    subprocess.run([*command, "--numeric-owner", "-C", btrfs / "target"], input=pack(tree), check=True)
    assert described(btrfs / "target") == described(tree)


@pytest.mark.parametrize("flags", [["--format=pax", "--xattrs"], ["--format=pax", "--xattrs", "--sparse"]])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_gnu_tar_writes(tree: Path, btrfs: Path, flags: list[str], compress: Callable[[bytes], bytes]) -> None:
    """
    What GNU tar makes can be unpacked, also compressed.
    """
    packed = subprocess.run(["tar", "--create", *flags, "-C", tree, "."], stdout=subprocess.PIPE, check=True).stdout
    assert described(unpack(compress(packed), btrfs / "target")) == described(tree)


def made(*members: tuple[str, bytes, str | bytes]) -> bytes:
    """
    A tar of members, each a name, a type, and what it links to or has in it.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, kind, what in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o755
            if isinstance(what, bytes):
                member.size = len(what)
                file.addfile(member, io.BytesIO(what))
            else:
                member.linkname = what
                file.addfile(member)
    return stream.getvalue()


FILE, LINK, SYMLINK, DIR, FIFO = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE

ESCAPES = {
    "up": made(("../canary", FILE, b"x")),
    "up inside": made(("a/../../canary", FILE, b"x")),
    "up as a directory": made(("..", DIR, "")),
    "absolute and up": made(("/../canary", FILE, b"x")),
    "behind a symlink": made(("a", SYMLINK, ".."), ("a/canary", FILE, b"x")),
    "behind an absolute symlink": made(("a", SYMLINK, "/"), ("a/etc/canary", FILE, b"x")),
    "behind a symlink to be made a directory": made(("a", SYMLINK, ".."), ("a/b/canary", FILE, b"x")),
    "behind two": made(("a", SYMLINK, "."), ("a/b", SYMLINK, ".."), ("a/b/canary", FILE, b"x")),
    "behind a symlink to itself": made(("a", SYMLINK, "a"), ("a/canary", FILE, b"x")),
    "behind a magic link": made(("a", SYMLINK, "/proc/self/root"), ("a/canary", FILE, b"x")),
    "directory behind a symlink": made(("a", SYMLINK, ".."), ("a/canary", DIR, "")),
    "fifo behind a symlink": made(("a", SYMLINK, ".."), ("a/canary", FIFO, "")),
    "link to what is outside": made(("a", LINK, "../canary")),
    "link to what is behind a symlink": made(("a", SYMLINK, ".."), ("b", LINK, "a/canary")),
    "link to an absolute path": made(("a", LINK, "/etc/passwd")),
    "link to a directory": made(("a", DIR, ""), ("b", LINK, "a")),
    "link to nothing": made(("a", LINK, "b")),
    "link to the root": made(("a", LINK, ".")),
    "in a file": made(("a", FILE, b"x"), ("a/canary", FILE, b"x")),
    "the root as a file": made((".", FILE, b"x")),
    "the root as a symlink": made(("./", SYMLINK, "..")),
    "an unknown type": made(("a", b"Z", b"")),
}


@pytest.mark.parametrize("shape", ESCAPES)
def test_escapes(btrfs: Path, shape: str) -> None:
    """
    Nothing is made, changed or reached outside of the directory; the member is named.
    """
    inside = btrfs / "outside" / "inside"
    inside.mkdir(parents=True)
    (btrfs / "outside" / "canary").write_text("canary")
    before = described(btrfs / "outside")
    with pytest.raises(InvalidArgumentError, match=r"^member "):
        unpack(ESCAPES[shape], inside)
    outside = {name: what for name, what in described(btrfs / "outside").items() if not name.startswith("inside")}
    assert outside == {name: what for name, what in before.items() if name != "inside"}


def test_replaced(btrfs: Path) -> None:
    """
    A later member replaces an earlier one of its name, whatever both are; links are replaced, not followed.
    """
    canary = btrfs / "canary"
    canary.write_text("canary")
    data = made(
        ("a", SYMLINK, str(canary)),
        ("a", FILE, b"one"),
        ("b", LINK, "a"),
        ("a", FILE, b"two"),
        ("a", LINK, "a"),
        ("c/d/e", FILE, b"x"),
        ("c", SYMLINK, str(canary)),
        ("d", SYMLINK, "/"),
        ("d", DIR, ""),
        ("e/f", FILE, b"x"),
        ("e", DIR, ""),
    )
    target = unpack(data, btrfs / "target")
    assert canary.read_text() == "canary"
    assert {path.name: path.read_text() for path in target.rglob("*") if path.is_file() and not path.is_symlink()} == {
        "a": "two",
        "b": "one",
        "f": "x",
    }
    assert os.readlink(target / "c") == str(canary)
    assert (target / "d").is_dir() and not (target / "d").is_symlink()


def test_damaged(tree: Path, btrfs: Path) -> None:
    """
    A tar that is cut off anywhere, or is none, is refused; so is a header that would fill the memory.
    """
    data = pack(tree)
    end = data.rstrip(b"\0")
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 40
    cuts = [data[:length] for length in range(0, len(end), 512)]
    damaged = [*cuts, data[:700], b"x" * 2000, gzip.compress(data)[:-20], huge.tobuf(), bz2.compress(data)[:-20]]
    flipped = bytearray(gzip.compress(data))
    flipped[len(flipped) // 2] ^= 1
    for number, damage in enumerate([*damaged, bytes(flipped)]):
        with pytest.raises(InvalidArgumentError, match="it is no tar, or a damaged one"):
            unpack(damage, btrfs / f"target{number}")


def test_inherited(btrfs: Path) -> None:
    """
    What is unpacked has the access control lists of the tar, not those of the directory that it comes to.
    """
    (btrfs / "source").mkdir()
    (btrfs / "source" / "file").touch()
    (btrfs / "target").mkdir()
    acl = bytes.fromhex("0200000001000700ffffffff02000700e803000004000700ffffffff10000700ffffffff")
    acl += bytes.fromhex("20000500ffffffff")
    os.setxattr(btrfs / "target", "system.posix_acl_default", acl)
    unpack(pack(btrfs / "source"), btrfs / "target")
    assert os.listxattr(btrfs / "target" / "file") == []
    os.setxattr(btrfs / "source", "system.posix_acl_default", acl)
    os.setxattr(btrfs / "source" / "file", "system.posix_acl_access", acl)
    assert described(unpack(pack(btrfs / "source"), btrfs / "again")) == described(btrfs / "source")


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return file.getnames()


class TestSnapshots:
    @pytest.fixture
    def store(self, btrfs: Path) -> Any:
        with Snapshotter.create(btrfs / "store") as store:
            yield store

    def saved(self, store: Snapshotter, key: str) -> bytes:
        stream = io.BytesIO()
        tar.save(store, key, stream)
        return stream.getvalue()

    def load(self, store: Snapshotter, key: str, data: bytes, *rest: Any) -> None:
        tar.load(store, key, io.BytesIO(data), *rest)

    def test_kinds(self, store: Snapshotter, tree: Path) -> None:
        """
        A committed snapshot, a view and an active one give what was loaded, which is committed with its labels.
        """
        data = pack(tree)
        self.load(store, "base", data, "", {"a": "b"})
        info = store.stat("base")
        assert (str(info.kind), info.parent, info.labels) == ("Committed", "", {"a": "b"})
        store.view("v", "base")
        store.prepare("a", "base")
        assert self.saved(store, "base") == self.saved(store, "v") == self.saved(store, "a") == data
        assert len(self.saved(store, "a")) - packing.size_of(store, "a") < 20_000
        with mounted(store.mounts("a")) as path:
            Path(path, "new").write_text("new")
        assert b"new" in self.saved(store, "a")

    def test_nothing(self, store: Snapshotter) -> None:
        """
        A view of nothing is the root alone.
        """
        store.view("v")
        assert names(self.saved(store, "v")) == ["."]

    def test_on_a_parent(self, store: Snapshotter, tree: Path) -> None:
        """
        With a parent its files stay, unless a member takes their place.
        """
        self.load(store, "base", made(("kept", FILE, b"kept"), ("changed", FILE, b"old"), ("d/f", FILE, b"x")))
        self.load(store, "top", made(("changed", FILE, b"new"), ("d", FILE, b"file now")), "base")
        assert store.stat("top").parent == "base"
        with mounted(store.view("v", "top")) as path:
            content = {name: Path(path, name).read_bytes() for name in os.listdir(path)}
        assert content == {"kept": b"kept", "changed": b"new", "d": b"file now"}

    def test_refused(self, store: Snapshotter, tree: Path) -> None:
        """
        What fails leaves nothing behind.
        """
        self.load(store, "base", pack(tree))
        for error, arguments in (
            (AlreadyExistsError, ("base", pack(tree))),
            (NotFoundError, ("x", pack(tree), "none")),
            (InvalidArgumentError, ("x", b"damaged")),
            (InvalidArgumentError, ("x", ESCAPES["up"])),
            (InvalidArgumentError, ("x", made(("a", FILE, b"x")), "", {"": "no key"})),
            (FailedPreconditionError, ("x", made(("n" * 256, FILE, b"x")))),
        ):
            with pytest.raises(error):
                self.load(store, *arguments)
            assert [info.name for info in store.walk()] == ["base"]
            assert len(os.listdir(f"{store.root}/snapshots")) == 1

    def test_full(self, btrfs_mount: Callable[..., Path]) -> None:
        """
        A disk that runs full leaves nothing of the import.
        """
        mount = btrfs_mount(200 << 20)
        with open(mount / "filler", "xb") as filler:
            os.posix_fallocate(filler.fileno(), 0, 100 << 20)
        with Snapshotter.create(mount / "store") as store:
            with pytest.raises(ResourceExhaustedError):
                self.load(store, "x", made(("random", FILE, os.urandom(90 << 20))))
            assert list(store.walk()) == []
            assert os.listdir(f"{store.root}/snapshots") == []

    def test_removed_meanwhile(self, store: Snapshotter, tree: Path) -> None:
        """
        An export of what is destroyed meanwhile fails, instead of ending early.
        """
        self.load(store, "base", pack(tree))

        class Removing(io.BytesIO):
            def write(self, data: Any) -> int:
                if "base" in (info.name for info in store.walk()):
                    store.remove("base")
                    store.cleanup()
                return super().write(data)

        with Snapshotter(store.root, read_only=True) as reading, pytest.raises(DataLossError):
            tar.save(reading, "base", Removing())

    def test_changed_meanwhile(self, store: Snapshotter) -> None:
        """
        A file of an active snapshot that goes, or becomes shorter, fails the export with the cure.
        """
        with mounted(store.prepare("a")) as path:
            for name in "ab":
                Path(path, name).write_bytes(os.urandom(10_000))

            class Changing(io.BytesIO):
                def __init__(self, change: Callable[[], None]) -> None:
                    super().__init__()
                    self.change = change

                def write(self, data: Any) -> int:
                    if b"a\0\0\0" in data:
                        self.change()
                    return super().write(data)

            for change in (lambda: os.truncate(Path(path, "a"), 10), lambda: os.unlink(Path(path, "b"))):
                with pytest.raises(FailedPreconditionError, match="export a fork of the snapshot"):
                    tar.save(store, "a", Changing(change))

    def test_mounted_inside(self, store: Snapshotter) -> None:
        """
        What is mounted in a snapshot's directory is not exported.
        """
        with mounted(store.prepare("a")) as path:
            os.mkdir(f"{path}/inside")
        inside = f"{store.subvolume('a')}/inside"
        syscall.mount("none", inside, "tmpfs")
        try:
            with pytest.raises(FailedPreconditionError, match="something is mounted in it"):
                self.saved(store, "a")
        finally:
            syscall.umount2(inside)

    def test_nested(self, store: Snapshotter) -> None:
        """
        A nested subvolume is exported as the directory that it looks like.
        """
        with mounted(store.prepare("a")) as path:
            subvolume.create(f"{path}/nested")
            Path(path, "nested", "file").write_text("x")
        assert "nested/file" in names(self.saved(store, "a"))
