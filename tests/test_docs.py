"""
The examples of the documentation work.
"""

import os
import re
import shlex
from pathlib import Path

import pytest

from snapshotter import Snapshotter, cli
from snapshotter.daemon import config
from tests.snapshotter.serving import serving

DOCS = Path(__file__).parent.parent / "docs"


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


PAGES = [page for page in sorted(os.fspath(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")) if examples(page)]


@pytest.mark.btrfs
@pytest.mark.parametrize("page", [page for page in PAGES if page != "service.md"])
def test_examples(page: str, btrfs: Path) -> None:
    """
    The examples of a page run one after the other.
    """
    names = {"root": btrfs, "os": os}
    for example in examples(page):
        exec(example, names)


@pytest.mark.btrfs
def test_examples_of_a_client(btrfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The client of docs/service.md prepares on a layer that the service has, and shows it.
    """
    with Snapshotter.create(btrfs / "store", client="btrfs-snapshotter") as store:
        store.prepare("building")
        store.commit("base", "building")
        with serving(store) as service:
            for example in examples("service.md"):
                exec(example.replace("/run/btrfs-snapshotter/socket", service.address), {})
    assert "name='web'" in capsys.readouterr().out


def test_every_page_is_in_a_table_of_contents() -> None:
    """
    The first page leads to every other page, and to a page for each area of pybtrfs.
    """
    found, new = set(), {"index"}
    while new:
        found |= new
        texts = {page: (DOCS / f"{page}.md").read_text() for page in new}
        new = {
            os.path.normpath(os.path.join(os.path.dirname(page), entry))
            for page, text in texts.items()
            for block in re.findall(r"^```{toctree}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            for entry in re.findall(r"^\w.*", block, re.MULTILINE)
        } - found
    assert found == {os.fspath(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    text = "".join((DOCS / f"{page}.md").read_text() for page in found)
    modules = [path for path in (DOCS.parent / "src/pybtrfs").iterdir() if path.suffix in ("", ".py")]
    areas = {path.stem for path in modules if not path.name.startswith("_")} - {"cli", "pytest_plugin"}
    assert areas == set(re.findall(r"\.\. auto\w+:: pybtrfs\.(\w+)", text))


def test_the_command_takes_every_command_line() -> None:
    """
    The parser of the command takes each command line of the pages and README, those too that only a real node can run.
    """
    parser = cli.parser()
    lines = 0
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for block in re.findall(r"^```(?:console|sh)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in re.findall(r"^(?:\$ )?(snapshotter .*)$", block.replace("\\\n", ""), re.MULTILINE):
                words = shlex.split(re.split(r" (?:[|&#]|2?>)", line)[0])
                if words[1:] != ["--version"]:
                    parser.parse_args(words[1:])
                lines += 1
    assert lines > 100


def anchors(text: str) -> set[str]:
    """
    Return the anchors that Sphinx and GitHub make of the headings of *text*.
    """
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings() -> None:
    """
    Each relative link of the pages, and of the pages beside README, leads to a file, and to a heading that is in it.
    """
    for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), (page, link)
            assert not anchor or anchor in anchors(file.read_text()), (page, link)


def test_every_setting_is_explained() -> None:
    """
    docs/daemon.md has each setting of the daemon with its default in the table, and explains each, in the same order.
    """
    page = (DOCS / "daemon.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `([^`]+)` \|$", page, re.MULTILINE))
    assert rows == {name: config.toml(getattr(config.DEFAULTS, name)) for name in config.SETTINGS}
    section = page.split("### Every key\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^(\w+)\n: ", section, re.MULTILINE) == list(config.SETTINGS)


def test_the_architecture_names_files_that_exist() -> None:
    """
    Each file of the page stands in src, below snapshotter or pybtrfs, and each function named after its file in it.
    """
    page = (DOCS / "architecture.md").read_text()
    source = DOCS.parent / "src"
    found: dict[str, str] = {}
    for name in re.findall(r"`([\w/]+\.(?:py|c))`", page):
        paths = [
            path for path in (source / name, source / "snapshotter" / name, source / "pybtrfs" / name) if path.exists()
        ]
        found[name] = "".join(path.read_text() for path in paths)
    assert [name for name, text in found.items() if not text] == ["tests/test_imports.py"]
    named = re.findall(r"`([\w/]+\.(?:py|c))`(?:\*\*)? `([\w.]+)`", page)
    assert len(named) > 10
    for name, function in named:
        for part in function.split("."):
            assert re.search(rf"\b{part}\b", found[name]), (name, part)
