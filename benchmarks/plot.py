"""
A plot of the judged ratios of one run on each medium, as SVG for light and for dark pages.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

_WIDTH = 960
_LEFT, _RIGHT = 400, 800  # of the axis
_ROW = 22
_HEAD = 84
_GAP = 5  # between the media in a row
_TITLE = "btrfs-snapshotter beside containerd's btrfs snapshotter"


class Theme(NamedTuple):
    """
    Colours of a page, and of the media on it.
    """

    text: str
    faint: str
    media: tuple[str, ...]


THEMES = {
    "light": Theme("#1f2328", "#d1d9e0", ("#0969da", "#bc4c00")),
    "dark": Theme("#e6edf3", "#3d444d", ("#58a6ff", "#f0883e")),
}


def write(directory: Path, results: Sequence[Path]) -> list[Path]:
    """
    Write the plots of *results*, the JSON of a run on each medium, into *directory*, and return their paths.
    """
    runs = [json.loads(path.read_text()) for path in results]
    paths = []
    for name, theme in THEMES.items():
        path = directory / f"performance-{name}.svg"
        path.write_text(svg(runs, theme))
        paths.append(path)
    return paths


def svg(runs: Sequence[dict[str, Any]], theme: Theme) -> str:
    """
    Return a plot of the rows whose ratio has a target: a line for each row, a point for each of at most two runs.
    """
    rows = _judged(runs)
    lines, at, group = [], _HEAD, ""
    for key, ratios in rows.items():
        if key[0] != group:
            group = key[0]
            at += _ROW + 6
            lines.append(_text(12, at, group, theme.text, "font-weight='600'"))
        at += _ROW
        lines += _row(key, ratios, at, theme)
    height = at + 2 * _ROW
    media = " and ".join(f"{_medium(run)}, mounted {_ssd(run)} ssd" for run in runs)
    described = (
        f"Ratios to the snapshotter that each line names, on {media}. Below 1 is faster. "
        f"{'; '.join(_described(key, ratios) for key, ratios in rows.items())}."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f'aria-labelledby="title description" font-family="system-ui, sans-serif" font-size="13">',
            f'<title id="title">{escape(_TITLE)}</title>',
            f'<desc id="description">{escape(described)}</desc>',
            _text(12, 24, _TITLE, theme.text, "font-size='17' font-weight='600'"),
            *_legend(runs, theme),
            *_axis(height, theme),
            *lines,
            "</svg>\n",
        ]
    )


_Key = tuple[str, str, str, str]  # group, name, subject, baseline


def _judged(runs: Sequence[dict[str, Any]]) -> dict[_Key, list[tuple[int, dict[str, Any]]]]:
    """
    Return the judged rows, each with the numbers of the runs that have it.
    """
    found: dict[_Key, list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(runs):
        for row in run["rows"]:
            if row["target"] and row["target"]["ratio"]:
                key = (row["group"], row["name"], row["subject"], row["baseline"])
                found.setdefault(key, []).append((number, row))
    return dict(sorted(found.items(), key=lambda item: _first(item[0], found)))


def _first(key: _Key, found: dict[_Key, Any]) -> int:
    # Groups in their order, because a row that only a later run has would otherwise begin its group again.
    return next(number for number, other in enumerate(found) if other[0] == key[0])


def _row(key: _Key, ratios: list[tuple[int, dict[str, Any]]], at: int, theme: Theme) -> Iterator[str]:
    _, name, _, baseline = key
    target = _x(ratios[0][1]["target"]["limit"])
    yield _text(24, at, f"{name}, to {baseline}", theme.text)
    yield f'<path d="M{target} {at - 13}v17" stroke="{theme.text}" stroke-width="2"/>'
    for number, row in ratios:
        ratio, colour = row["ratio"], theme.media[number % len(theme.media)]
        y = at - 4 + (number * 2 - 1) * _GAP // 2
        yield f'<path d="M{_x(ratio["least"])} {y}H{_x(ratio["most"])}" stroke="{colour}" stroke-width="2"/>'
        fill = colour if row["met"] else "none"
        yield f'<circle cx="{_x(ratio["median"])}" cy="{y}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
        yield _text(_RIGHT + 24 + 60 * number, at, _number(ratio["median"]), colour)


def _described(key: _Key, ratios: list[tuple[int, dict[str, Any]]]) -> str:
    figures = " and ".join(f"{_number(row['ratio']['median'])} ({_judgement(row)})" for _, row in ratios)
    return f"{key[0]}: {key[1]}, to {key[3]}: {figures}, target {_number(ratios[0][1]['target']['limit'])}"


def _judgement(row: dict[str, Any]) -> str:
    return "met" if row["met"] else "missed"


def _legend(runs: Sequence[dict[str, Any]], theme: Theme) -> Iterator[str]:
    for number, run in enumerate(runs):
        x, colour = 12 + 330 * number, theme.media[number % len(theme.media)]
        yield f'<circle cx="{x + 5}" cy="44" r="4" fill="{colour}"/>'
        yield _text(x + 16, 48, f"{_medium(run)}, mounted {_ssd(run)} ssd", colour)
    made = f"{runs[0]['mode']} effort, {runs[0]['time'][:10]}"
    hint = f"left is faster; stroke: target; filled: met; hollow: missed; line: range of the runs; {made}"
    yield _text(12, 68, hint, theme.text, "opacity='.7'")


def _axis(height: int, theme: Theme) -> Iterator[str]:
    for power in range(_LEAST, _MOST + 1):
        x = _x(10.0**power)
        label = f"1/{10**-power:,}" if power < 0 else f"{10**power}"
        yield f'<path d="M{x} {_HEAD + 8}V{height - 16}" stroke="{theme.faint}"/>'
        yield _text(x, _HEAD, label, theme.text, "text-anchor='middle' opacity='.7'")


_LEAST, _MOST = -4, 1  # powers of ten at the ends of the axis


def _x(ratio: float) -> int:
    power = math.log10(max(ratio, 10**_LEAST))
    return round(_LEFT + (_RIGHT - _LEFT) * (min(power, _MOST) - _LEAST) / (_MOST - _LEAST))


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.095 else f"{ratio:.2g}"


def _medium(run: dict[str, Any]) -> str:
    return str(run["machine"]["medium"]).rpartition("(")[2].rstrip(")")


def _ssd(run: dict[str, Any]) -> str:
    return "with" if run["machine"]["ssd"] == "yes" else "without"


def _text(x: int, y: int, text: str, colour: str, attributes: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" {attributes}>{escape(text)}</text>'
