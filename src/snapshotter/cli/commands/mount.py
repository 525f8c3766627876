"""
``snapshotter mount``, ``umount`` and ``mounts``.
"""

import argparse

from snapshotter import mounting
from snapshotter.cli import arguments, keys, output
from snapshotter.store.layout import real_path


def add(commands: arguments.Commands) -> None:
    mount = commands.add("mount", _mount, arguments.KEY, example="snapshotter mount web /mnt")
    mount.add_argument("target", metavar="DIR", help="empty directory")
    umount = commands.add("umount", _umount, example="snapshotter umount /mnt")
    umount.add_argument("target", metavar="DIR", help="mount point of a snapshot of this store")
    mounts = commands.add("mounts", _mounts, arguments.KEY, arguments.JSON, example="snapshotter mounts web /mnt | sh")
    mounts.add_argument("target", metavar="TARGET", nargs="?", default="TARGET", help="mount point to print")


def _mounts(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        output.print_mounts(parsed, store.mounts(keys.resolve(parsed, store, parsed.key)))


def _mount(parsed: argparse.Namespace) -> None:
    target = real_path(parsed.target)
    with arguments.reading(parsed) as store:
        key = keys.resolve(parsed, store, parsed.key)
        mounting.check_target(store.root, target)
        mounting.mount(store.mounts(key), target)


def _umount(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        mounting.unmount(store.root, real_path(parsed.target))
