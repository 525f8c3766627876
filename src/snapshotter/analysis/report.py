"""
Report on a store as one self-contained page of HTML, without scripts, fonts or pictures.
"""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from typing import NamedTuple

from pybtrfs._version import __version__
from snapshotter.analysis import family
from snapshotter.analysis.inventory import Entry
from snapshotter.analysis.space import Amount, FilesystemSpace
from snapshotter.analysis.treemap import Rectangle, squarify
from snapshotter.model import Kind, Problem
from snapshotter.text import format_size, printable

GROUPS, CELLS = 40, 300  # at most, in the map; the smallest are summed up
IMAGES = 16  # at most, in the matrix; the smallest are left out
_WALKED = "<p>Without CAP_SYS_ADMIN all files were walked over, and each size is that of whole changed files.</p>"
_SHAPE = Rectangle(0, 0, 16, 9)
_KINDS = {
    "committed": "layers, on which other snapshots are made",
    "active": "writable snapshots",
    "view": "read-only views of a layer, which take no space",
    "pending": "subvolumes that wait for destruction",
    "orphaned": "subvolumes that belong to no snapshot",
}


@dataclass(frozen=True, slots=True)
class Report:
    """
    The content of a page.

    Args:
        time: When the content was read, in UTC.
        entries: The snapshots by key.
        amounts: By kind of snapshot in lower case, and for "pending" and "orphaned".
        walked: Whether all files were walked over, because the caller could not search trees.
        used_by: The names of the containers and images in containerd that use each snapshot, by key.
    """

    root: str
    time: datetime
    entries: Mapping[str, Entry]
    amounts: Mapping[str, Amount]
    filesystem: FilesystemSpace
    problems: Sequence[Problem]
    walked: bool = False
    used_by: Mapping[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """
    Return the page.
    """
    rows = list(family.walk(entry.info for entry in report.entries.values()))
    totals = family.totals(rows, {key: _size(entry) for key, entry in report.entries.items()})
    entries = [(depth, report.entries[info.name]) for depth, _, info in rows]
    sections = {
        "Findings": _findings(report),
        "Space": _space(report),
        "Map": _map(report, entries),
        "Sharing": _sharing([entry for _, entry in entries]),
        "Tree": _tree(entries, totals, report.used_by),
    }
    style = resources.files("snapshotter.analysis").joinpath("report.css").read_text()
    parts = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{"".join(lines)}</section>' for name, lines in sections.items()
    )
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{_text(report.root)}</title><style>{style}</style></head><body>"
        f"<header><h1>{_text(report.root)}</h1>"
        f"<p>{report.time:%Y-%m-%d %H:%M} UTC, by snapshotter {__version__}</p><nav>{links}</nav></header>"
        f"<main>{_WALKED * report.walked}{''.join(_summary(report))}{parts}</main></body></html>\n"
    )


def _text(value: str) -> str:
    return html.escape(printable(value))


def _short(key: str) -> str:
    """
    Return *key* shortened in the middle, because digests differ at both ends.
    """
    return _text(key if len(key) <= 28 else f"{key[:14]}…{key[-13:]}")


def _size(entry: Entry) -> int:
    return entry.usage.size if entry.usage else 0


# -- the summary, the findings and the space


def _summary(report: Report) -> Iterator[str]:
    amounts, filesystem = report.amounts.values(), report.filesystem
    found = len(report.problems)
    tiles = [
        (f"{len(report.entries):,}", "snapshots", ""),
        (format_size(sum(amount.size for amount in amounts)), "on disk", ""),
        (format_size(sum(amount.reclaimable for amount in amounts)), "reclaimable", ""),
        (format_size(filesystem.available), f"of {format_size(filesystem.size)} free", ""),
        (str(found), "finding" if found == 1 else "findings", "bad" if found else "good"),
    ]
    yield '<ul class="tiles">'
    for value, label, state in tiles:
        yield f'<li class="{state}"><strong>{value}</strong> {label}</li>'
    yield "</ul>"


def _findings(report: Report) -> Iterator[str]:
    if not report.problems:
        yield '<p class="good">Nothing is wrong.</p>'
    for problem in report.problems:
        yield (
            f'<article class="finding"><h3>{_text(problem.subject)}</h3><p>{_text(problem.what)}</p>'
            f"<p>Cure: <code>{_text(problem.cure)}</code></p></article>"
        )


def _space(report: Report) -> Iterator[str]:
    yield "<table><thead><tr><th>Kind<th>Count<th>Size<th>Reclaimable</thead><tbody>"
    for kind, amount in report.amounts.items():
        yield (
            f'<tr><th><i class="{kind}"></i>{kind}<small>{_KINDS[kind]}</small>'
            f"<td>{amount.count:,}<td>{format_size(amount.size)}<td>{format_size(amount.reclaimable)}"
        )
    yield "</tbody></table><h3>The filesystem</h3><dl>"
    filesystem = report.filesystem
    yield from _bar("devices", "allocated", filesystem.allocated, filesystem.size)
    for group in filesystem.block_groups:
        yield from _bar(f"{group.type}, {group.profile}", "used", group.used, group.size)
    yield "</dl>"
    if filesystem.deleted:
        yield f"<p>Deleted subvolumes that are still being cleaned: {filesystem.deleted:,}</p>"


def _bar(name: str, label: str, part: int, whole: int) -> Iterator[str]:
    share = part / whole if whole else 0
    yield (
        f'<dt>{_text(name)}<dd><b style="--v:{share:.1%}"></b>'
        f"{format_size(part)} of {format_size(whole)} {label}, {share:.0%}"
    )


# -- the map


class _Cell(NamedTuple):
    """
    An area of the map.

    Args:
        place: The snapshot's place in the tree; -1 if the area is not one snapshot.
    """

    size: int
    kind: str
    name: str
    place: int = -1


def _map(report: Report, entries: Sequence[tuple[int, Entry]]) -> Iterator[str]:
    yield "<p>Each area is the space that one snapshot added on disk, and links to the snapshot in the tree. Snapshots "
    yield 'with the same first layer stand together.</p><p class="legend">'
    yield from (f'<span><i class="{kind}"></i>{kind}</span>' for kind in _KINDS if kind != "view")
    yield "</p>"
    groups = _groups(report, entries)
    if not groups:
        yield "<p>Nothing has been written yet.</p>"
        return
    largest = set(sorted((cell for _, cells in groups for cell in cells), key=lambda cell: -cell.size)[:CELLS])
    yield '<div class="map">'
    areas = squarify([_weight(cells) for _, cells in groups], _SHAPE)
    for (name, cells), area in zip(groups, areas, strict=True):
        yield f'<div class="group"{_style(area, _SHAPE)}><h3>{_short(name)}</h3><div>'
        shown = [cell for cell in cells if cell in largest]
        if rest := cells[len(shown) :]:
            shown.append(_Cell(_weight(rest), "rest", f"{len(rest):,} smaller"))
        inner = Rectangle(0, 0, area.width, area.height)
        for cell, place in zip(shown, squarify([cell.size for cell in shown], inner), strict=True):
            size = format_size(cell.size)
            link = f' href="#s{cell.place}"' if cell.place >= 0 else ""
            yield (
                f'<a class="{cell.kind}"{_style(place, inner)}{link} title="{_text(cell.name)}: {size}">'
                f"<span>{_short(cell.name)}<br>{size}</span></a>"
            )
        yield "</div></div>"
    yield "</div>"


def _groups(report: Report, entries: Sequence[tuple[int, Entry]]) -> list[tuple[str, list[_Cell]]]:
    """
    Return the areas by the name of their first layer, the largest first.
    """
    groups: list[tuple[str, list[_Cell]]] = []
    for place, (depth, entry) in enumerate(entries):
        if depth == 0:
            groups.append((entry.info.name, []))
        if size := _size(entry):
            groups[-1][1].append(_Cell(size, entry.info.kind.lower(), entry.info.name, place))
    left_over = {kind: report.amounts[kind].size for kind in ("pending", "orphaned")}
    groups.extend((kind, [_Cell(size, kind, kind)]) for kind, size in left_over.items() if size)
    groups.sort(key=lambda group: -_weight(group[1]))
    groups[GROUPS:] = [("others", [cell for _, cells in groups[GROUPS:] for cell in cells])]
    for _, cells in groups:
        cells.sort(key=lambda cell: -cell.size)
    return [group for group in groups if group[1]]


def _weight(cells: Iterable[_Cell]) -> int:
    return sum(cell.size for cell in cells)


def _style(area: Rectangle, whole: Rectangle) -> str:
    left, top, width, height = (
        f"{100 * part / side:.4g}%"
        for part, side in zip(area, (whole.width, whole.height, whole.width, whole.height), strict=True)
    )
    return f' style="left:{left};top:{top};width:{width};height:{height}"'


# -- the matrix of images


def _sharing(entries: Sequence[Entry]) -> Iterator[str]:
    layers = {entry.info.name: entry for entry in entries if entry.info.kind is Kind.COMMITTED}
    sizes: dict[str, int] = {}  # with all ancestors, which come first in *entries*
    for name, layer in layers.items():
        sizes[name] = _size(layer) + sizes.get(layer.info.parent, 0)
    images = sizes.keys() - {layer.info.parent for layer in layers.values()}
    largest = set(sorted(images, key=lambda name: (-sizes[name], name))[:IMAGES])
    shown = [name for name in layers if name in largest]
    chains = {name: _chain(name, layers) for name in shown}
    if len(shown) < 2:
        yield "<p>There are fewer than two images, so there is nothing to compare.</p>"
        return
    compared = f"the {len(shown)} largest of {len(images):,} images" if len(shown) < len(images) else "all images"
    yield (
        f"<p>The share of each row's image that is in layers of the column's image too, for {compared}. An image is a "
        "committed snapshot without committed children.</p>"
    )
    yield '<div class="wide"><table class="matrix"><thead><tr><th>Image<th>Size'
    yield "".join(f"<th>{number}" for number in range(1, len(shown) + 1))
    yield "</thead><tbody>"
    for number, name in enumerate(shown, 1):
        yield f'<tr><th title="{_text(name)}"><small>{number}</small> {_short(name)}<td>{format_size(sizes[name])}'
        for other in shown:
            shared = sum(size for layer, size in chains[name].items() if layer in chains[other])
            share = shared / sizes[name] if sizes[name] else 0
            if other == name:
                yield '<td class="self">'
            else:
                title = f"{_text(name)} shares {format_size(shared)} with {_text(other)}"
                yield f'<td style="--v:{share:.0%}" title="{title}">{f"{share:.0%}" if share >= 0.005 else ""}'
    yield "</tbody></table></div>"


def _chain(name: str, layers: Mapping[str, Entry]) -> dict[str, int]:
    """
    Return the layers of the image *name* with their sizes.
    """
    chain = {}
    while name in layers:
        chain[name] = _size(layers[name])
        name = layers[name].info.parent
    return chain


# -- the tree


def _tree(entries: Sequence[tuple[int, Entry]], totals: Mapping[str, int], used_by: Mapping[str, str]) -> Iterator[str]:
    if not entries:
        yield "<p>The store is empty.</p>"
        return
    yield "<p>Each snapshot is below its parent. Size is the space that it added on disk, and Total adds the sizes of "
    yield "all snapshots below it.</p>"
    yield '<ol class="tree"><li class="head"><span>Key</span><span>Size</span><span>Total</span></li>'
    most = max(_size(entry) for _, entry in entries) or 1
    for number, (depth, entry) in enumerate(entries):
        marks = "<em>mounted</em>" if entry.mounted else ""
        marks += f'<em class="bad">{_text(entry.problem)}</em>' if entry.problem else ""
        users = used_by.get(entry.info.name, "")
        marks += f"<small>used by {_text(users)}</small>" if users else ""
        size = _size(entry)
        yield (
            f'<li id="s{number}" style="--d:{depth};--v:{size / most:.0%}"><span><i class="{entry.info.kind.lower()}">'
            f"</i>{_text(entry.info.name)}{marks}</span><span>{format_size(size)}</span>"
            f"<span>{format_size(totals[entry.info.name])}</span></li>"
        )
    yield "</ol>"
