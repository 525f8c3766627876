"""
Images with every kind of file, made without external tools, and the expected contents of their applied layers.
"""

import copy
import gzip
import hashlib
import io
import itertools
import json
import os
import platform
import random
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

BUSYBOX = Path("/bin/busybox")  # static, of Debian's busybox-static
APPLETS = ["cat", "chmod", "dd", "echo", "ln", "ls", "mkdir", "rm", "sh", "sleep", "stat", "sync", "touch", "true"]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
XATTR = "SCHILY.xattr."

# The bytes that `setcap cap_net_raw+ep` writes: version 2 and effective, permitted, inheritable, and the upper halves.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@dataclass(frozen=True, slots=True)
class Member:
    """
    An entry of a layer.
    """

    info: tarfile.TarInfo
    content: bytes = b""


def member(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    to: str = "",
    device: tuple[int, int] = (0, 0),
    mtime: str = "",
    xattrs: dict[str, bytes] | None = None,
) -> Member:
    """
    Make an entry whose time follows from its name. *to* is the target of a symlink.
    """
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, to, len(content)
    info.uid, info.gid = owner
    info.devmajor, info.devminor = device
    info.pax_headers = {"mtime": mtime or f"{zlib.crc32(os.fsencode(name)) % 10**9 + 10**9}.123456789"}
    for key, value in (xattrs or {}).items():
        info.pax_headers[XATTR + key] = os.fsdecode(value)
    return Member(info, content)


def directory(name: str, mode: int = 0o755, **attributes: Any) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(name: str, to: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, mode=0o777, to=to)


def link(name: str, to: Member) -> Member:
    """
    Make another name of *to*, with the same attributes, because a hard link in a tar applies them again.
    """
    info = copy.copy(to.info)
    info.name, info.linkname, info.type, info.size = name, to.info.name, tarfile.LNKTYPE, 0
    return Member(info)


def whiteout(name: str) -> Member:
    head, tail = os.path.split(name)
    return member(os.path.join(head, WHITEOUT + tail))


def opaque(name: str) -> Member:
    return member(os.path.join(name, OPAQUE))


def layer(*members: Member) -> bytes:
    """
    Return the tar archive of *members*, in their order.
    """
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for item in members:
            archive.addfile(item.info, io.BytesIO(item.content))
    return data.getvalue()


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


class Image:
    """
    An image in OCI's format. Its two lowest layers are compressed by gzip.

    Args:
        layers: The tar archives of the layers, the lowest first.
        command: The default command of a container.
    """

    def __init__(self, name: str, layers: tuple[bytes, ...], *, command: tuple[str, ...] = ("/bin/sh",)) -> None:
        self.name = name
        self.layers = layers
        self.blobs: dict[str, bytes] = {}
        config = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [digest(archive) for archive in layers]},
        }
        compressed = [self._add(gzip.compress(archive, 1, mtime=0), f"{LAYER}+gzip") for archive in layers[:2]]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._add(json.dumps(config).encode(), CONFIG),
            "layers": compressed + [self._add(archive, LAYER) for archive in layers[2:]],
        }
        self.manifest = self._add(json.dumps(manifest).encode(), MANIFEST)

    def _add(self, blob: bytes, media_type: str) -> dict[str, Any]:
        self.blobs[digest(blob)] = blob
        return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}

    @property
    def chain_ids(self) -> list[str]:
        """
        The names of the committed snapshots, the lowest first.
        """
        diff_ids = [digest(archive) for archive in self.layers]
        return list(itertools.accumulate(diff_ids, lambda parent, own: digest(f"{parent} {own}".encode())))

    def write(self, path: Path) -> Path:
        """
        Write the archive that ``ctr images import`` reads.
        """
        index = {
            "schemaVersion": 2,
            "manifests": [self.manifest | {"annotations": {"io.containerd.image.name": self.name}}],
        }
        files = {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(index).encode(),
        } | {f"blobs/{name.replace(':', '/')}": blob for name, blob in self.blobs.items()}
        path.write_bytes(layer(*(member(name, content) for name, content in files.items())))
        return path


def base() -> list[Member]:
    """
    Return the layer that can run: busybox under its names.
    """
    if not BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    return [
        *(directory(name) for name in ("bin", "dev", "etc", "proc", "sys", "var")),
        directory("root", 0o700),
        directory("tmp", 0o1777),
        member("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in APPLETS),
        member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
        member("etc/group", b"root:x:0:\nuser:x:1000:\n"),
    ]


def kinds() -> list[Member]:
    """
    Return every kind of file, and the files that the next layers change.
    """
    noise = random.Random(5)
    xattrs = {"user.text": b"value", "user.binary": b"\0\xff\n=\x80", "user.empty": b""}
    twin = member("kinds/twin", b"two names", mode=0o640, owner=(1000, 1000), xattrs={"user.twin": b"yes"})
    pair = member("changed/pair", b"one inode")
    triple = member("changed/triple", b"three names")
    levels = [f"level-{number:03}-of-a-deep-tree" for number in range(80)]
    deep = list(itertools.accumulate(["deep", *levels], os.path.join))
    return [
        directory("kinds", mtime="7258118400.5"),  # the year 2200
        member("kinds/empty"),
        member("kinds/secret", b"nobody reads it", mode=0),
        member("kinds/setuid", b"#!/bin/sh\n", mode=0o4755),
        member("kinds/setgid", b"#!/bin/sh\n", mode=0o2755, owner=(1000, 1000)),
        directory("kinds/setgid-directory", 0o2775, owner=(0, 1000)),
        directory("kinds/sticky", 0o1777),
        member("kinds/owned", b"by a large id", owner=(4_000_000_000, 65534)),
        member("kinds/capable", b"#!/bin/sh\n", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        member("kinds/xattrs", xattrs=xattrs),
        directory("kinds/xattrs-directory", xattrs=xattrs),
        twin,
        link("kinds/sticky/twin", twin),
        symlink("kinds/relative", "empty"),
        symlink("kinds/dangling", "/no/such/file"),
        symlink("kinds/to-directory", "sticky"),
        symlink("kinds/far", "x" * 1000),
        member("kinds/fifo", kind=tarfile.FIFOTYPE, mode=0o622),
        member("kinds/null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        member("kinds/block", kind=tarfile.BLKTYPE, mode=0o600, device=(259, 1000)),
        member("kinds/old", b"the epoch", mtime="0"),
        member(f"kinds/{os.fsdecode(bytes([99, 0xE9, 0xFF]))}", b"not UTF-8"),
        member("kinds/äöü €", b"UTF-8"),
        member("kinds/new\nline\ttab", b"white space"),
        member("kinds/" + "n" * 255, b"the longest name"),
        member("kinds/noise", noise.randbytes(16 << 20)),
        member("kinds/zeros", bytes(16 << 20)),
        *map(directory, deep),
        member(f"{deep[-1]}/file", b"deep"),
        directory("changed"),
        member("changed/content", b"first"),
        member("changed/attributes", b"same"),
        member("changed/file-to-directory", b"a file"),
        directory("changed/directory-to-file"),
        member("changed/directory-to-file/child", b"a child"),
        directory("changed/kept", 0o700),
        member("changed/kept/child", b"stays below a directory that changes"),
        symlink("changed/symlink-to-directory", "kept"),
        pair,
        link("changed/pair-replaced", pair),
        triple,
        link("changed/triple-removed", triple),
        link("changed/triple-kept", triple),
        directory("gone"),
        member("gone/file", b"removed, and made again later"),
        directory("gone/tree"),
        member("gone/tree/file", b"removed with its directory"),
        directory("gone/opaque"),
        member("gone/opaque/file", b"hidden"),
        directory("gone/opaque/tree"),
        member("gone/opaque/tree/file", b"hidden"),
        member("gone/opaque/again", b"hidden, and there again"),
    ]


def changes(below: Iterable[Member]) -> list[Member]:
    """
    Return every kind of change of a layer to the layer below.
    """
    there = {item.info.name: item for item in below}
    return [
        whiteout("gone/file"),
        whiteout("gone/tree"),
        directory("gone/opaque", 0o750),
        member("gone/opaque/again", b"new", owner=(1000, 1000)),
        opaque("gone/opaque"),  # does not hide an earlier entry of the directory
        member("gone/opaque/late", b"new"),
        member("changed/content", b"second, and longer"),
        member("changed/attributes", b"same", mode=0o4711, owner=(1000, 1000), xattrs={"user.new": b"1"}),
        directory("changed/file-to-directory", 0o711),
        member("changed/file-to-directory/child", b"a child"),
        member("changed/directory-to-file", b"a file"),
        directory("changed/kept", 0o755, owner=(1000, 1000)),
        directory("changed/symlink-to-directory"),
        member("changed/pair-replaced", b"an inode of its own"),
        whiteout("changed/triple-removed"),
        link("changed/linked-from-below", there["kinds/twin"]),
        member("implicit/parents/of/a-file", b"in directories without entries"),
    ]


def remakes() -> list[Member]:
    """
    Return every way in which a layer can make a removed file again.
    """
    return [
        member("gone/file", b"made again", mode=0o600),
        directory("gone"),
        whiteout("kinds/noise"),
        whiteout("changed/kept"),
        directory("changed/kept", 0o711),
        member("changed/kept/new", b"in a directory removed and made by one layer"),
    ]


def every_kind(name: str) -> Image:
    """
    Return the image *name* of five layers. The last layer is empty.
    """
    lower = kinds()
    return Image(name, (layer(*base()), layer(*lower), layer(*changes(lower)), layer(*remakes()), layer()))


def small(name: str) -> Image:
    """
    Return the image *name*: busybox and a layer of its own.
    """
    return Image(name, (layer(*base()), layer(member("name", name.encode()))))


@dataclass(slots=True)
class Node:
    """
    The expected or actual state of a file.

    Args:
        content: The digest of a regular file, the target of a symlink, or the number of a device.
        mtime: The time in nanoseconds, or None if no layer sets it.
    """

    mode: int = stat.S_IFDIR | 0o755
    owner: tuple[int, int] = (0, 0)
    content: object = None
    mtime: int | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)


_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}


def applied(layers: Iterable[bytes]) -> dict[str, Node]:
    """
    Return the files that *layers* make, by path, by the OCI image specification. Names of the same file share a `Node`.
    """
    tree = {".": Node()}
    for archive in layers:
        _apply(tree, _members(archive))
    return tree


def names(archive: bytes) -> list[str]:
    """
    Return the names in the tar archive of a layer.
    """
    return [item.info.name for item in _members(archive)]


def _members(archive: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8") as tar:
        return [Member(info, _content(tar, info)) for info in tar]


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info) if info.isreg() else None
    return file.read() if file else b""


def _apply(tree: dict[str, Node], members: list[Member]) -> None:
    # Whiteouts hide files of the layers below, wherever they stand in their layer.
    for item in members:
        head, tail = os.path.split(item.info.name)
        if tail == OPAQUE:
            for path in _below(tree, head):
                _remove(tree, path)
        elif tail.startswith(WHITEOUT):
            _remove(tree, os.path.join(head, tail.removeprefix(WHITEOUT)))
    times = {}
    for item in members:
        path = item.info.name
        if os.path.basename(path).startswith(WHITEOUT):
            continue
        for parent in reversed(list(_parents(path))):
            tree.setdefault(parent, Node())
        node = tree[item.info.linkname] if item.info.islnk() else _node(item)
        if not (item.info.isdir() and path in tree and stat.S_ISDIR(tree[path].mode)):
            _remove(tree, path)
        tree[path] = node
        if item.info.isdir():
            times[path] = node.mtime
        tree[os.path.dirname(path) or "."].mtime = None
    for path, mtime in times.items():
        tree[path].mtime = mtime


def _node(item: Member) -> Node:
    info = item.info
    content: object = None
    if info.isreg():
        content = digest(item.content)
    elif info.issym():
        content = info.linkname
    elif info.isdev() and not info.isfifo():
        content = os.makedev(info.devmajor, info.devminor)
    return Node(
        _TYPES[info.type] | info.mode,
        (info.uid, info.gid),
        content,
        int(Decimal(info.pax_headers.get("mtime", info.mtime)) * 10**9),
        {
            name.removeprefix(XATTR): os.fsencode(value)
            for name, value in info.pax_headers.items()
            if name.startswith(XATTR)
        },
    )


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


def _below(tree: dict[str, Node], path: str) -> list[str]:
    return [name for name in tree if name.startswith(f"{path}/")]


def _remove(tree: dict[str, Node], path: str) -> None:
    for name in [*_below(tree, path), path]:
        if tree.pop(name, None):
            tree[os.path.dirname(path) or "."].mtime = None


def found(root: Path) -> dict[str, Node]:
    """
    Return the files in the directory *root*, in the form of `applied`.
    """
    tree: dict[str, Node] = {}
    inodes: dict[int, Node] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        tree[str(path.relative_to(root))] = inodes.setdefault(status.st_ino, _read(path, status))
    return tree


def _read(path: Path, status: os.stat_result) -> Node:
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = digest(path.read_bytes())
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif status.st_rdev:
        content = status.st_rdev
    return Node(
        status.st_mode,
        (status.st_uid, status.st_gid),
        content,
        status.st_mtime_ns,
        {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)},
    )


def differences(expected: dict[str, Node], actual: dict[str, Node]) -> list[str]:
    """
    Return descriptions of the differences from *expected*.
    """
    found_only = [f"{path!r} should not be there" for path in actual.keys() - expected.keys()]
    missing = [f"{path!r} is missing" for path in expected.keys() - actual.keys()]
    wrong = []
    for path in expected.keys() & actual.keys():
        want, have = expected[path], actual[path]
        if want.mtime is None:
            have = copy.copy(have)
            have.mtime = None
        if want != have:
            wrong.append(f"{path!r} is {have}, not {want}")
        if (names := _names(expected, path)) != _names(actual, path):
            wrong.append(f"{path!r} is not one file with {sorted(names - {path})}")
    return sorted(found_only + missing + wrong)


def _names(tree: dict[str, Node], path: str) -> set[str]:
    return {name for name, node in tree.items() if node is tree[path]}
