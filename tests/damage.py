"""
Damage of one block of metadata in an image that is not mounted.
"""

import re
import subprocess

_GARBAGE = bytes([0xFF]) * 4096


def damage(image: str, subvolid: int, *, inside: bool) -> None:
    """
    Overwrite one block of the subvolume *subvolid* in the file *image*.

    Args:
        inside: Overwrite a leaf in the middle of the tree, so that the subvolume can be opened; otherwise the root.
    """
    dump = _output("btrfs", "inspect-internal", "dump-tree", "-t", str(subvolid), image)
    blocks = re.findall(r"^(?:leaf|node) (\d+) (?:items|level)", dump, re.MULTILINE)
    assert len(blocks) > 3 or not inside
    block = blocks[len(blocks) // 2] if inside else blocks[0]
    places = re.findall(r"physical (\d+)", _output("btrfs-map-logical", "-l", block, image))
    assert places
    with open(image, "r+b") as file:
        for place in places:
            file.seek(int(place))
            file.write(_GARBAGE)


def _output(*argv: str) -> str:
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
