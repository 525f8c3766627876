"""
``snapshotter init``.
"""

import argparse

from snapshotter.cli import arguments, interruption, protection
from snapshotter.contract import Snapshotter
from snapshotter.errors import AlreadyExistsError, InvalidArgumentError
from snapshotter.model import LOCAL
from snapshotter.store.layout import real_path
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    init = commands.add("init", _init, example="snapshotter init --root /var/lib/snapshots --image 20G")
    init.add_argument(
        "--image", metavar="SIZE", type=arguments.size, help="create a btrfs of this size in an image file, as in 20G"
    )
    init.add_argument(
        "--image-file", metavar="FILE", help="path of the image file (default: the root with .img appended)"
    )
    init.add_argument(
        "--sparse", action="store_true", help="do not reserve the space of the image; a full disk then loses data"
    )
    init.add_argument("--adopt", action="store_true", help="adopt a store that was moved here with its subvolumes")
    init.add_argument(
        "--client",
        metavar="NAME",
        help=f"bind the store to this client, also an existing store ({LOCAL} is this command)",
    )
    init.add_argument("--yes", action="store_true", help="with --containerd-is-gone, proceed without asking")
    protection.add_flags(init)


def _init(parsed: argparse.Namespace) -> None:
    root = arguments.root(parsed)
    if parsed.adopt and (parsed.image or parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--adopt cannot be combined with --image, --image-file or --sparse")
    if parsed.image is None and (parsed.image_file or parsed.sparse):
        raise InvalidArgumentError("--image-file and --sparse need --image SIZE")
    if parsed.client == "":
        raise InvalidArgumentError("--client '' is empty: give the name of a client")
    said = ""
    with arguments.exclusive("init"):
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
                said = f"created a store in {printable(root)}\n"
            except AlreadyExistsError:
                if parsed.client is None:
                    raise
        if parsed.client is not None:
            with Snapshotter(root, client=None) as store:
                if parsed.client != (bound := store.opened.ownership.client):
                    protection.check_rebinding(parsed, bound, [info.name for info in store.walk()])
                store.bind(parsed.client)
            said = said or f"{printable(root)} is now bound to client {printable(parsed.client)}\n"
    print(said, end="")
