"""
Output of rows as a table and as JSON, with a description of the machine.
"""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Row

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))


def machine(mount: Path, directory: str, image_bytes: int) -> dict[str, Any]:
    """
    Return the properties of the machine that the figures depend on.
    """
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": _first_line("gcc", "--version"),
        "load": os.getloadavg(),
        "medium": f"loop image of {image_bytes >> 30} GiB in {directory} ({_filesystem_of(directory)})",
        "ssd": "yes" if "ssd" in _mount(os.fspath(mount))[3].split(",") else "no",
        "mount_options": _mount(os.fspath(mount))[3],
    }


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _mount(path: str) -> list[str]:
    """
    Return the words of the line in ``/proc/self/mounts`` whose mount contains *path*.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return max(
        (mount for mount in mounts if os.path.commonpath((mount[1], path)) == mount[1]),
        key=lambda mount: len(mount[1]),
    )


def _filesystem_of(directory: str) -> str:
    device, _, filesystem, *_ = _mount(os.path.realpath(directory))
    return filesystem if device == filesystem else f"{filesystem} on {device}"


def write(path: Path, mode: str, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """
    Write the run to *path* as a JSON object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "machine": about,
        "rows": [{**dataclasses.asdict(row), "met": row.met} for row in rows],
    }
    path.write_text(json.dumps(values, indent=1) + "\n")


def table(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """
    Return the run as a table for people.
    """
    lines = [f"{name}: {value}" for name, value in about.items()]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            heading = ("", "median (least to most)", "against", "", "ratio (range)", "target")
            lines += ["", group, _line(*heading)]
        lines.append(
            _line(
                row.name,
                f"{row.subject} {_values(row.figure, row.unit)}",
                row.baseline,
                _values(row.baseline_figure, row.unit) if row.baseline_figure else "",
                _ratio(row.ratio) if row.ratio else "",
                _judgement(row),
            )
        )
    judged = [row for row in rows if row.target]
    lines += ["", f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets are met"]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    widths = (48, 44, 22, 32, 22, 0)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _values(figure: Figure, unit: str) -> str:
    median, least, most = (_value(value, unit) for value in (figure.median, figure.least, figure.most))
    return median if figure.count == 1 else f"{median} ({least} to {most})"


def _value(value: float, unit: str) -> str:
    if unit != "ns":
        return f"{value:,.0f} {unit}"
    scale, name = next(((scale, name) for scale, name in _UNITS if value >= scale), _UNITS[-1])
    return f"{value / scale:.3g} {name}"


def _ratio(figure: Figure) -> str:
    if figure.count == 1:
        return _short(figure.median)
    return f"{_short(figure.median)} ({_short(figure.least)} to {_short(figure.most)})"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.095 else f"{ratio:.2g}"


def _judgement(row: Row) -> str:
    if row.target is None:
        return ""
    limit = _short(row.target.limit) if row.target.ratio else _value(row.target.limit, row.unit)
    return f"at most {limit}: {'met' if row.met else 'MISSED'}"
