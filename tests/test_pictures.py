"""
The pictures in ``docs/pictures/`` are up to date, and the layout of the report is sound.
"""

import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.programs import needed
from tools import make_pictures

PICTURES = Path(__file__).parent.parent / "docs/pictures"

TOLERANCE = 6  # of 255, because fonts differ between machines

pytestmark = pytest.mark.btrfs


@pytest.fixture(scope="module")
def root(btrfs_image: Path) -> Iterator[str]:
    """
    Make the store of the pictures.
    """
    with make_pictures.store() as root:
        yield root


def shape(text: str) -> str:
    """
    Return *text* without numbers and the width of columns, which differ from run to run.
    """
    return re.sub(r"\s+", " ", re.sub(r"[0-9.]+(\s[KMG]?i?B\b)?", "N", text)).strip()


@pytest.mark.parametrize("command", make_pictures.COMMANDS)
def test_terminals(root: str, command: str) -> None:
    """
    Each picture of a terminal has the output of its command.
    """
    made = make_pictures.drawn(command, make_pictures.printed(root, command))
    texts = [
        shape(" ".join(html.unescape(text) for text in re.findall(r"<text [^>]*>(.*?)</text>", svg)))
        for svg in (made, (PICTURES / f"{command}.svg").read_text())
    ]
    assert texts[0] == texts[1], "run `make pictures`"
    assert "url(http" not in made


def difference(one: bytes, other: bytes) -> float:
    """
    Return the difference of two scaled-down pictures, from 0 to 255.
    """
    small = [Image.open(io.BytesIO(data)).convert("L").resize((60, 150), Image.Resampling.BOX) for data in (one, other)]
    return ImageStat.Stat(ImageChops.difference(*small)).mean[0]


@pytest.fixture(scope="module")
def shown(root: str) -> dict[str, make_pictures.Shown]:
    """
    Return the report on each device.
    """
    needed("chromium")
    return dict(make_pictures.pages(root))


@pytest.mark.parametrize("name", make_pictures.PAGES)
def test_report(shown: dict[str, make_pictures.Shown], name: str) -> None:
    """
    The report equals its picture on each device.

    Every section is visible, nothing is wider than the window, and the browser logs no error.
    """
    width, _ = make_pictures.PAGES[name]
    page = shown[name]
    assert page.complaints == []
    assert page.width == width
    assert list(page.sections) == ["findings", "space", "map", "sharing", "tree"]
    assert min(page.sections.values()) > 50
    assert difference(page.picture, (PICTURES / f"{name}.png").read_bytes()) < TOLERANCE, "run `make pictures`"


def test_difference(shown: dict[str, make_pictures.Shown]) -> None:
    """
    Pictures of different devices differ by more than the tolerance.
    """
    assert difference(shown["report-light"].picture, shown["report-dark"].picture) > TOLERANCE
    assert difference(shown["report-light"].picture, shown["report-phone"].picture) > TOLERANCE
