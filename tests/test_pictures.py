"""
The pictures in ``docs/pictures/`` are what the command shows, and the report is fit to be seen.
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

TOLERANCE = 6  # of 255: fonts are not the same everywhere

pytestmark = pytest.mark.btrfs


@pytest.fixture(scope="module")
def root(btrfs_image: Path) -> Iterator[str]:
    """
    The store that is in the pictures.
    """
    with make_pictures.store() as root:
        yield root


def shape(text: str) -> str:
    """
    *text* without what differs from run to run: numbers, and the places that these take.
    """
    return re.sub(r"\s+", " ", re.sub(r"[0-9.]+(\s[KMG]?i?B\b)?", "N", text)).strip()


@pytest.mark.parametrize("command", make_pictures.COMMANDS)
def test_terminals(root: str, command: str) -> None:
    """
    Each picture of a terminal has what the command prints there.
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
    How different two pictures look from afar, from 0 to 255.
    """
    small = [Image.open(io.BytesIO(data)).convert("L").resize((60, 150), Image.Resampling.BOX) for data in (one, other)]
    return ImageStat.Stat(ImageChops.difference(*small)).mean[0]


@pytest.fixture(scope="module")
def shown(root: str) -> dict[str, make_pictures.Shown]:
    """
    The report on each device.
    """
    needed("chromium")
    return dict(make_pictures.pages(root))


@pytest.mark.parametrize("name", make_pictures.PAGES)
def test_report(shown: dict[str, make_pictures.Shown], name: str) -> None:
    """
    On each device the report looks as in its picture; all of it is visible, nothing has to be scrolled sideways, and
    the browser complains of nothing.
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
    Pictures of different devices are found different.
    """
    assert difference(shown["report-light"].picture, shown["report-dark"].picture) > TOLERANCE
    assert difference(shown["report-light"].picture, shown["report-phone"].picture) > TOLERANCE
