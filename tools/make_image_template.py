#!/usr/bin/env python3
"""
Regenerate ``src/pybtrfs/_image_template.py`` from ``mkfs.btrfs``.

The template holds the superblocks and live tree blocks of an empty btrfs,
with placeholders for what makes each filesystem its own.
"""

import base64
import struct
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

SIZE = 128 << 20
NODESIZE = 16 << 10
SUPERBLOCKS = (64 << 10, 64 << 20)
FS_TREE_OBJECTID = 5
ROOT_ITEM_KEY = 132
DEV_ITEM_KEY = 216

PLACEHOLDERS = {
    "FSID": b"the filesystem's",
    "DEVICE_UUID": b"the one device's",
    "CHUNK_TREE_UUID": b"the chunk tree's",
    "TOP_LEVEL_UUID": b"the top level's ",
    "TOP_LEVEL_UUID_KEY": b"the top \xfblevel's ",  # objectid, type and offset in the tree of uuids
    "SIZE": b"its size",
    "TIME": b"its time",
}
MODULE = '''"""
An empty btrfs, made by ``tools/make_image_template.py``; do not edit.
"""

# What differs between two filesystems.
{placeholders}

# zlib of the blocks, each behind its offset (u64) and length (u32), in base85.
TEMPLATE = """
{text}
"""
'''


def main() -> None:
    before = int(time.time())
    image = make()
    packed = pack(image, range(before, int(time.time()) + 1))
    target = Path(__file__).parent.parent / "src/pybtrfs/_image_template.py"
    target.write_text(render(packed))


def make() -> bytes:
    """
    An image by ``mkfs.btrfs``; single metadata, since a second copy in the same file protects nothing.
    """
    features = subprocess.run(["mkfs.btrfs", "-O", "list-all"], capture_output=True, text=True, check=True).stderr
    # Newer mkfs makes a block group tree by default, which kernels before 6.1 refuse.
    without = ["-O", "^block-group-tree"] if "block-group-tree" in features else []
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(SIZE)
        command = ["mkfs.btrfs", "-q", "-m", "single", "-n", str(NODESIZE), "-s", "4096", *without, image.name]
        subprocess.run(command, check=True)
        return Path(image.name).read_bytes()


def pack(image: bytes, made: range) -> bytes:
    """
    The live blocks of *image*, made in the seconds *made*, with placeholders.

    mkfs leaves stale blocks behind. An empty filesystem's trees are one
    block each, named by the superblock or by a root item.
    """
    superblock = image[SUPERBLOCKS[0] :][:4096]
    fsid = superblock[32:48]
    found = {  # by the logical address that each block gives itself
        struct.unpack_from("<Q", image, offset + 48)[0]: offset
        for offset in range(1 << 20, SIZE, 4096)
        if image[offset + 32 : offset + 48] == fsid and offset not in SUPERBLOCKS
    }
    root_address, chunk_root_address = struct.unpack_from("<QQ", superblock, 80)
    root, chunk_root = (image[found[address] :][:NODESIZE] for address in (root_address, chunk_root_address))
    roots = [item for _, kind, item in items(root) if kind == ROOT_ITEM_KEY]
    addresses = [
        *struct.unpack_from("<QQ", superblock, 80),
        *(struct.unpack_from("<Q", item, 176)[0] for item in roots),
    ]
    lengths = dict.fromkeys(SUPERBLOCKS, 4096) | {found[address]: NODESIZE for address in addresses}
    packed = b"".join(
        struct.pack("<QI32x", offset, length) + image[offset + 32 : offset + length]  # without the checksum
        for offset, length in sorted(lengths.items())
    )
    [fs_tree] = [item for objectid, kind, item in items(root) if (objectid, kind) == (FS_TREE_OBJECTID, ROOT_ITEM_KEY)]
    [device] = [item for _, kind, item in items(chunk_root) if kind == DEV_ITEM_KEY]
    top_level = fs_tree[247:263]
    values = {
        "FSID": [fsid],
        "DEVICE_UUID": [device[66:82]],
        "CHUNK_TREE_UUID": [root[64:80]],
        "TOP_LEVEL_UUID": [top_level],
        "TOP_LEVEL_UUID_KEY": [top_level[:8] + b"\xfb" + top_level[8:]],
        "SIZE": [struct.pack("<Q", SIZE)],
        "TIME": [struct.pack("<Q", second) for second in made],
    }
    for name, placeholder in PLACEHOLDERS.items():
        for value in values[name]:
            packed = packed.replace(value, placeholder)
        assert placeholder in packed, name
    return packed


def items(leaf: bytes) -> list[tuple[int, int, bytes]]:
    """
    The object id, key type and data of each item in *leaf*.
    """
    count, level = struct.unpack_from("<IB", leaf, 96)
    assert level == 0, "an empty filesystem's tree is one leaf"
    headers = (struct.unpack_from("<QBQII", leaf, 101 + 25 * slot) for slot in range(count))
    return [(objectid, kind, leaf[101 + at : 101 + at + size]) for objectid, kind, _, at, size in headers]


def render(packed: bytes) -> str:
    """
    The template module.
    """
    text = base64.b85encode(zlib.compress(packed, 9)).decode()
    lines = [text[start : start + 120] for start in range(0, len(text), 120)]
    placeholders = [f'{name} = {str(value)[0]}"{str(value)[2:-1]}"' for name, value in PLACEHOLDERS.items()]
    return MODULE.format(placeholders="\n".join(placeholders), text="\n".join(lines))


if __name__ == "__main__":
    main()
