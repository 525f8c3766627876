"""
``pybtrfs usage``: the space of a filesystem, as ``btrfs filesystem usage`` prints it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pybtrfs import device, space
from pybtrfs.cli.arguments import add_command, add_json
from pybtrfs.cli.output import write, write_json
from pybtrfs.size import UNITS

if TYPE_CHECKING:
    import argparse

    from pybtrfs.cli.arguments import Commands

_COPIES = {"dup": 2, "raid1": 2, "raid10": 2, "raid1c3": 3, "raid1c4": 4}
_PARITY = {"raid5": 1, "raid6": 2}


def add_commands(commands: Commands) -> None:
    """
    Declare the command.
    """
    usage = add_command(commands, "usage", _usage, "show the space that a filesystem uses and has left", "PATH")
    usage.add_argument("-b", "--raw", action="store_true", help="print sizes in bytes")
    add_json(usage)


class _Usage:
    """
    The space of a filesystem, in bytes. *size*, *allocated*, *unallocated* and *used* count every copy on the devices.
    """

    def __init__(self, path: str) -> None:
        spaces = space.get(path)
        devices = list(device.iterate(path))
        self.devices = devices
        self.groups = [group for group in spaces if group.type != "global reserve"]
        self.reserve = next(group for group in spaces if group.type == "global reserve")
        count = len(devices)
        self.ratios = [_ratio(group.profile, count) for group in self.groups]
        self.size = sum(each.total_bytes for each in devices)
        self.allocated = sum(each.bytes_used for each in devices)
        self.missing = sum(each.total_bytes for each in devices if not os.path.exists(each.path))
        self.slack = sum(_device_size(each.path) - each.total_bytes for each in devices)
        self.used = sum(int(group.used_bytes * ratio) for group, ratio in zip(self.groups, self.ratios, strict=True))
        data_total, data_used, self.data_ratio = self._sums("data")
        _, _, self.metadata_ratio = self._sums("metadata")
        self.unallocated = self.size - self.allocated
        self.free = self.free_min = int((data_total - data_used) / self.data_ratio)
        if self.unallocated >= 16 << 20:  # less has no room for a block group
            self.free += int(self.unallocated / self.data_ratio)
            self.free_min += int(self.unallocated / max(self.ratios))
        stat = os.statvfs(path)
        self.available = stat.f_bavail * stat.f_frsize
        self.multiple = sorted(
            {one.type for one in self.groups for two in self.groups if one.type == two.type and one != two}
        )

    def _sums(self, type_: str) -> tuple[float, float, float]:
        """
        Return the raw total and used bytes of the block groups of a type, and the ratio of raw to usable bytes.
        """
        total = raw = used = 0.0
        for group, ratio in zip(self.groups, self.ratios, strict=True):
            if type_ in group.type.split("+"):
                total += group.total_bytes
                raw += group.total_bytes * ratio
                used += group.used_bytes * ratio
        return raw, used, raw / total if total else 1.0


def _ratio(profile: str, devices: int) -> float:
    parity = _PARITY.get(profile)
    return devices / (devices - parity) if parity else _COPIES.get(profile, 1)


def _device_size(path: str) -> int:
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def _usage(arguments: argparse.Namespace) -> None:
    usage = _Usage(arguments.path)
    if arguments.json:
        write_json(
            {
                "device-size": usage.size,
                "device-allocated": usage.allocated,
                "device-unallocated": usage.unallocated,
                "device-missing": usage.missing,
                "device-slack": usage.slack,
                "used": usage.used,
                "free-estimated": usage.free,
                "free-estimated-min": usage.free_min,
                "free-statfs": usage.available,
                "data-ratio": usage.data_ratio,
                "metadata-ratio": usage.metadata_ratio,
                "global-reserve": usage.reserve.total_bytes,
                "global-reserve-used": usage.reserve.used_bytes,
                "multiple-profiles": usage.multiple,
                "block-groups": [
                    {"type": group.type, "profile": group.profile, "size": group.total_bytes, "used": group.used_bytes}
                    for group in usage.groups
                ],
                "devices": [{"path": each.path, "devid": each.devid} for each in usage.devices],
            }
        )
        return

    def amount(value: int) -> str:
        return str(value) if arguments.raw else _pretty(value)

    width = 18 if arguments.raw else 10
    multiple = f"yes\t({', '.join(usage.multiple)})" if usage.multiple else "no"
    write("Overall:")
    for word, gap, text in (
        ("Device size", "\t\t", amount(usage.size).rjust(width)),
        ("Device allocated", "\t\t", amount(usage.allocated).rjust(width)),
        ("Device unallocated", "\t\t", amount(usage.unallocated).rjust(width)),
        ("Device missing", "\t\t", amount(usage.missing).rjust(width)),
        ("Device slack", "\t\t", amount(usage.slack).rjust(width)),
        ("Used", "\t\t\t", amount(usage.used).rjust(width)),
        ("Free (estimated)", "\t\t", f"{amount(usage.free).rjust(width)}\t(min: {amount(usage.free_min)})"),
        ("Free (statfs, df)", "\t\t", amount(usage.available).rjust(width)),
        ("Data ratio", "\t\t\t", f"{usage.data_ratio:.2f}".rjust(width)),
        ("Metadata ratio", "\t\t", f"{usage.metadata_ratio:.2f}".rjust(width)),
        (
            "Global reserve",
            "\t\t",
            f"{amount(usage.reserve.total_bytes).rjust(width)}\t(used: {amount(usage.reserve.used_bytes)})",
        ),
        ("Multiple profiles", "\t\t", multiple.rjust(width)),
    ):
        write(f"    {word}:{gap}{text}")
    for type_ in ("data", "data+metadata", "metadata", "system"):
        for group, ratio in zip(usage.groups, usage.ratios, strict=True):
            if group.type == type_:
                percent = f"{100 * group.used_bytes / group.total_bytes:.2f}%" if group.total_bytes else "0.00%"
                write(
                    f"\n{_titled(group.type)},{_profile(group.profile)}: Size:{amount(group.total_bytes)}, "
                    f"Used:{amount(group.used_bytes)} ({percent})"
                )
                if len(usage.devices) == 1:
                    _print_device(usage.devices[0].path, amount(int(group.total_bytes * ratio)))
    write("\nUnallocated:")
    for each in usage.devices:
        _print_device(each.path, amount(each.total_bytes - each.bytes_used))


def _print_device(path: str, text: str) -> None:
    write(f"   {path}\t{text:>10}")


def _titled(type_: str) -> str:
    return "+".join(word.capitalize() for word in type_.split("+"))


def _profile(name: str) -> str:
    return name if name == "single" else name.upper()


def _pretty(value: int) -> str:
    amount, unit = float(value), 0
    while amount >= 1024 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.2f}{UNITS[unit]}"
