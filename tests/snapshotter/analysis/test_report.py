import os
import re
import stat
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter import Snapshotter
from snapshotter.analysis import report
from snapshotter.analysis.inventory import Entry
from snapshotter.analysis.space import Amount, BlockGroups, FilesystemSpace
from snapshotter.model import Info, Kind, Problem, Usage
from snapshotter.text import printable
from tests.snapshotter.cli.commands import Run

SPACE = FilesystemSpace(10 << 30, 3 << 30, 7 << 30, 8 << 30, 2, (BlockGroups("data", "single", 2 << 30, 1 << 30),))
SECTIONS = ["findings", "space", "map", "sharing", "tree"]


def entry(name: str, kind: Kind = Kind.ACTIVE, parent: str = "", size: int = 4096) -> Entry:
    return Entry(Info(kind, name, parent), None, Usage(size, 1), 0, mounted=False, problem="")


def page(*entries: Entry, root: str = "/store", problems: tuple[Problem, ...] = (), left_over: int = 4096) -> str:
    amounts = dict.fromkeys(("committed", "active", "view", "pending", "orphaned"), Amount(1, left_over, 0))
    named = {entry.info.name: entry for entry in entries}
    return report.render(report.Report(root, datetime(2026, 1, 2, 3, 4, tzinfo=UTC), named, amounts, SPACE, problems))


class Read(HTMLParser):
    """
    The tags, attributes and text that a browser reads from *html*.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


TEXTS = st.one_of(
    st.text(min_size=1), st.sampled_from(["<script>", "</style>", "' onload='", '" href="//a', "&lt;", "]]>"])
)


@settings(max_examples=30)
@given(TEXTS, TEXTS)
def test_texts_are_only_texts(key: str, other: str) -> None:
    """
    Keys, paths and problems are shown as text, and become neither tags nor attributes.
    """
    harmless = Read(page(entry("k", Kind.COMMITTED), entry("o", Kind.COMMITTED), problems=(Problem("k", "k", "k"),)))
    hostile = Read(
        page(
            entry(key, Kind.COMMITTED),
            *([entry(other, Kind.COMMITTED)] if other != key else [entry(key + "2", Kind.COMMITTED)]),
            root=key,
            problems=(Problem(key, other, key),),
        )
    )
    assert hostile.tags == harmless.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]
    assert printable(key) in hostile.text


def test_nothing_from_elsewhere() -> None:
    """
    The page links only to its own sections, has no script, and tells the browser to load nothing.
    """
    read = Read(page(entry("a", Kind.COMMITTED), entry("b", parent="a")))
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert {value[0] for name, value in read.attributes if name == "href" and value} == {"#"}
    assert not {name for name, _ in read.attributes if name == "src" or name.startswith("on")}
    assert "url(" not in read.text
    assert "@import" not in read.text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes


def test_attributes_are_quoted() -> None:
    """
    Every attribute of every tag is in double quotes.
    """
    problem = Problem("a", "it's <wrong>", 'say "cure"')
    html = page(entry("a", Kind.COMMITTED), entry("b", Kind.COMMITTED), entry("c", parent="a"), problems=(problem,))
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    tags = re.findall(r"<[^>]*>", body)
    assert [tag for tag in tags if not re.fullmatch(r'</?\w+(?: [\w-]+="[^"]*")*>', tag)] == ["<!DOCTYPE html>"]


def test_sharing() -> None:
    """
    The matrix shows the share of each image that is in layers of another image.
    """
    html = page(
        entry("base", Kind.COMMITTED, size=3000),
        entry("a", Kind.COMMITTED, "base", 1000),
        entry("b", Kind.COMMITTED, "base", 3000),
        entry("c", Kind.COMMITTED),
        entry("web", Kind.ACTIVE, "a"),
    )
    matrix = html.partition('class="matrix"')[2].partition("</table>")[0]
    assert re.findall(r'title="(\w shares [^"]* with \w)">([^<]*)', matrix) == [
        ("a shares 2.9 KiB with b", "75%"),
        ("a shares 0 B with c", ""),
        ("b shares 2.9 KiB with a", "50%"),
        ("b shares 0 B with c", ""),
        ("c shares 0 B with a", ""),
        ("c shares 0 B with b", ""),
    ]


def test_tree() -> None:
    """
    Each snapshot has its own size, and the total with its descendants, at its depth.
    """
    lost = Entry(Info(Kind.ACTIVE, "lost", "base"), None, None, 0, mounted=False, problem="its subvolume is gone")
    html = page(entry("base", Kind.COMMITTED, size=3000), entry("web", Kind.ACTIVE, "base", 1000), lost)
    tree = html.partition('<ol class="tree">')[2]
    rows = re.findall(r"--d:(\d+).*?</i>(\w+)(.*?)</span><span>(.*?)</span><span>(.*?)</span>", tree)
    assert rows == [
        ("0", "base", "", "2.9 KiB", "3.9 KiB"),
        ("1", "lost", '<em class="bad">its subvolume is gone</em>', "0 B", "0 B"),
        ("1", "web", "", "1000 B", "1000 B"),
    ]


def test_map() -> None:
    """
    The map links to the tree, and sums up the areas that are too small to be seen.
    """
    html = page(*(entry(f"s{number:03}", parent="", size=number + 1) for number in range(report.CELLS + 50)))
    cells = re.findall(r'<a class="(\w+)"[^>]*?(?: href="#(s\d+)")? title="([^:]+): ', html)
    assert len(cells) <= report.CELLS + report.GROUPS + 2
    targets = set(re.findall(r'<li id="(s\d+)"', html))
    assert {target for _, target, _ in cells if target} < targets
    assert any(re.fullmatch(r"\d+ smaller", name) for _, _, name in cells)


@pytest.mark.parametrize("count", [report.GROUPS - 2, report.GROUPS + 1, report.CELLS + 50])
def test_map_of_equals(count: int) -> None:
    """
    The limit on areas holds for snapshots of equal size too, and nothing is left over.
    """
    html = page(*(entry(f"s{number:03}") for number in range(count)), left_over=0)
    names = re.findall(r'<a class="\w+"[^>]* title="([^:]+): ', html)
    hidden = [f"{count - report.CELLS} smaller"] if count > report.CELLS else []
    assert names == [f"s{number:03}" for number in range(count)][: report.CELLS] + hidden


def test_ten_thousand() -> None:
    """
    The page of a store of ten thousand snapshots with keys as long as containerd's is below 5 MiB.
    """
    keys = [f"k8s.io/{number}/sha256:{number:064x}" for number in range(10_000)]
    entries = [
        entry(key, Kind.COMMITTED, keys[number // 3] if number else "", number) for number, key in enumerate(keys)
    ]
    assert len(page(*entries)) < 5 << 20


@pytest.mark.btrfs
def test_command(btrfs: Path, run: Run, tmp_path: Path) -> None:
    """
    The command prints the page, or writes it to a file that only its owner may read. After a failure the file is
    unchanged, and no other file is left.
    """
    root = str(btrfs / "store")
    Snapshotter.create(root).close()
    file = tmp_path / "store.html"
    file.write_text("old")
    assert run("report", "--root", root + "x", "-o", str(file)).code == 4
    assert file.read_text() == "old"
    assert run("report", "--root", root, "-o", str(file)) == (0, "", "")
    assert os.stat(file).st_mode & 0o777 == 0o600
    for page in file.read_text(), run("report", "--root", root).out:
        assert f"<h1>{root}</h1>" in page
        assert page.endswith("</html>\n")
    (tmp_path / "directory").mkdir()
    assert run("report", "--root", root, "-o", str(tmp_path / "directory")).code == 1
    assert run("report", "--root", root, "-o", str(tmp_path / "no/file")).code == 1
    assert sorted(os.listdir(tmp_path)) == ["directory", "store.html"]


@pytest.mark.btrfs
def test_to_a_fifo(btrfs: Path, run: Run, tmp_path: Path) -> None:
    """
    A target that is not a regular file, such as a FIFO or /dev/null, is written to and not replaced.
    """
    root = str(btrfs / "store")
    Snapshotter.create(root).close()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("report", "--root", root, "-o", str(fifo)) == (0, "", "")
        assert stat.S_ISFIFO(os.stat(fifo).st_mode)
        assert os.read(reader, 1 << 16).endswith(b"</html>\n")
    finally:
        os.close(reader)
