"""
``snapshotter init``.
"""

import argparse

from snapshotter.cli import arguments, interruption
from snapshotter.contract import Snapshotter
from snapshotter.errors import AlreadyExistsError, InvalidArgumentError
from snapshotter.model import LOCAL
from snapshotter.store.layout import real_path
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    init = commands.add("init", _init, example="snapshotter init --root /var/lib/snapshots --image 20G")
    init.add_argument("--image", metavar="SIZE", type=arguments.size, help="make a btrfs of this size, as in 20G")
    init.add_argument("--image-file", metavar="FILE", help="in that file; by default the root with .img behind it")
    init.add_argument("--sparse", action="store_true", help="do not reserve its space: a full disk loses data then")
    init.add_argument("--adopt", action="store_true", help="make a store of one that was moved here")
    init.add_argument(
        "--client", metavar="NAME", help=f"whose its snapshots are; {LOCAL} is this command. Also of a store there is"
    )


def _init(parsed: argparse.Namespace) -> None:
    root = arguments.root(parsed)
    if parsed.adopt and (parsed.image or parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--adopt takes the store as it is, without an image")
    if parsed.image is None and (parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--image-file and --sparse need --image SIZE")
    if parsed.client == "":
        raise InvalidArgumentError("the client of --client NAME is empty")
    said = ""
    with arguments.alone("init"):
        if parsed.adopt:
            Snapshotter.adopt(root, client=None).close()
            said = f"adopted {printable(root)}\n"
        elif parsed.image is not None:
            from snapshotter.setup import image_store

            file = parsed.image_file or real_path(root) + ".img"
            with interruption.deferred() as interrupted:
                image_store.create(root, file, parsed.image, sparse=parsed.sparse, check=interrupted.check)
            said = image_store.mount_unit(root, file)
        else:
            try:
                Snapshotter.create(root).close()
                said = f"made a store in {printable(root)}\n"
            except AlreadyExistsError:
                if parsed.client is None:
                    raise
        if parsed.client is not None:
            with Snapshotter(root, client=None) as store:
                store.bind(parsed.client)
            said = said or f"{printable(root)} is of client {printable(parsed.client)} now\n"
    print(said, end="")
