import bz2
import gzip
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.errors import InvalidArgumentError
from tests.snapshotter.archive.trees import DIR, ESCAPES, FILE, LINK, SYMLINK, described, made, pack, unpack

pytestmark = pytest.mark.btrfs


@pytest.mark.parametrize("flags", [["--format=pax", "--xattrs"], ["--format=pax", "--xattrs", "--sparse"]])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_gnu_tar_writes(tree: Path, btrfs: Path, flags: list[str], compress: Callable[[bytes], bytes]) -> None:
    """
    Tars of GNU tar are unpacked, compressed ones too.
    """
    packed = subprocess.run(["tar", "--create", *flags, "-C", tree, "."], stdout=subprocess.PIPE, check=True).stdout
    assert described(unpack(compress(packed), btrfs / "target")) == described(tree)


@pytest.mark.parametrize("shape", ESCAPES)
def test_escapes(btrfs: Path, shape: str) -> None:
    """
    Nothing outside of the directory is made, changed or reached, and the message names the member.
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
    A later member replaces an earlier member of the same name, of any types. Links are replaced, not followed.
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
    assert (target / "d").is_dir()
    assert not (target / "d").is_symlink()


def test_damaged(tree: Path, btrfs: Path) -> None:
    """
    A tar that ends early at any block, other data, and a header that would fill the memory are refused.
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
        with pytest.raises(InvalidArgumentError, match="the stream is not a tar, or is damaged: "):
            unpack(damage, btrfs / f"target{number}")


def test_inherited(btrfs: Path) -> None:
    """
    Unpacked files have the access control lists in the tar, and inherit none from their directory.
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
