"""
Directory trees and tars to test with.
"""

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

from snapshotter.archive import packing, unpacking
from tests.snapshotter.conftest import entries


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
    Return everything that a tar has to keep of the files below *root*.
    """
    paths = {".": root} | {str(path.relative_to(root)): path for path in root.rglob("*")}
    statuses = {name: path.lstat() for name, path in paths.items()}
    return {name: (entry, statuses[name].st_mtime_ns, statuses[name].st_rdev) for name, entry in entries(root).items()}


def make(root: Path, files: list[Any]) -> None:
    """
    Make *files*, skipping the impossible ones.
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
        made_mode = os.lstat(path).st_mode  # of a hard link: the mode of its target
        if not stat.S_ISLNK(made_mode):
            os.chmod(path, mode)
        for name, value in xattrs.items():
            if stat.S_ISREG(made_mode) or stat.S_ISDIR(made_mode) or not name.startswith("user."):
                os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(time, time), follow_symlinks=False)


def made(*members: tuple[str, bytes, str | bytes]) -> bytes:
    """
    Return a tar of *members*: each a name, a type, and a link target or the content.
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
