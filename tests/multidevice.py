"""
Filesystems on several devices, made by btrfs-progs on loop devices.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pybtrfs import image, syscall
from pybtrfs.image import LoopDevice

SIZE = 256 << 20  # bytes of each device


def make(directory: Path, count: int, profile: str) -> list[Path]:
    """
    Make images with one filesystem, *profile* for data and metadata.
    """
    paths = [directory / f"device-{number + 1}" for number in range(count)]
    for path in paths:
        path.touch()
        with path.open("r+b") as file:
            file.truncate(SIZE)
    progs("mkfs.btrfs", "-q", "-f", "-m", profile, "-d", profile, *paths)
    return paths


def progs(*command: object) -> None:
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@contextlib.contextmanager
def mounted(target: Path, *devices: str, options: str = "", flags: int = 0) -> Iterator[Path]:
    """
    Mount the filesystem on all of *devices* at *target*, which is made if it is missing.
    """
    target.mkdir(exist_ok=True)
    data = ",".join([*(f"device={each}" for each in devices), "ssd", *filter(None, [options])])
    syscall.mount(devices[0], target, "btrfs", flags, data)
    try:
        yield target
    finally:
        syscall.umount2(target)


@contextlib.contextmanager
def attached(*paths: Path) -> Iterator[list[LoopDevice]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(image.attach(path)) for path in paths]


@contextlib.contextmanager
def degraded(directory: Path, lost: int) -> Iterator[Path]:
    """
    Mount a RAID1 of two devices without the device *lost*, 1 or 2.
    """
    paths = make(directory, 2, "raid1")
    (kept,) = (path for number, path in enumerate(paths, 1) if number != lost)
    with attached(kept) as (device,), mounted(directory / "mount", device.path, options="degraded") as root:
        yield root


@contextlib.contextmanager
def sprouted(directory: Path) -> Iterator[Path]:
    """
    Mount a filesystem that was sprouted from a seed, its device 1, to another device, its device 2.
    """
    [seed] = make(directory, 1, "single")
    sprout = directory / "sprout"
    with sprout.open("wb") as file:
        file.truncate(SIZE)
    progs("btrfstune", "-S", "1", seed)
    with (
        attached(seed, sprout) as (first, second),
        mounted(directory / "mount", first.path, flags=syscall.MS_RDONLY) as root,
    ):
        progs("btrfs", "device", "add", "-f", "--nodiscard", second.path, root)
        syscall.mount("", root, "", syscall.MS_REMOUNT)
        yield root


def moved(directory: Path) -> Path:
    """
    Make an image with a filesystem whose only device has the devid 2.
    """
    [first] = make(directory, 1, "single")
    second = directory / "moved"
    with second.open("wb") as file:
        file.truncate(SIZE)
    with attached(first, second) as loops, mounted(directory / "mount", loops[0].path) as root:
        progs("btrfs", "device", "add", "-f", "--nodiscard", loops[1].path, root)
        progs("btrfs", "device", "remove", "1", root)
    return second
