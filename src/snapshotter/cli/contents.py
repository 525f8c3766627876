"""
The commands about what is in a snapshot.
"""

import argparse

from snapshotter import mounting
from snapshotter.cli import arguments
from snapshotter.store import real_path


def add(commands: arguments.Commands) -> None:
    mount = commands.add("mount", _mount, "mount an active snapshot or a view", example="snapshotter mount web /mnt")
    mount.add_argument("key", metavar="KEY", type=arguments.key)
    mount.add_argument("target", metavar="DIR", help="empty")
    umount = commands.add("umount", _umount, "unmount a snapshot", example="snapshotter umount /mnt")
    umount.add_argument("target", metavar="DIR", help="where a snapshot of this store is mounted")


def _mount(parsed: argparse.Namespace) -> None:
    target = real_path(parsed.target)
    with arguments.reading(parsed) as store:
        mounting.check_target(store.root, target)
        mounting.mount(store.mounts(parsed.key), target)


def _umount(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        mounting.unmount(store.root, real_path(parsed.target))
