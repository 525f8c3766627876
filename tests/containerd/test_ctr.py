"""
containerd with the daemon as its snapshotter, driven by ctr.
"""

from pathlib import Path

import pytest

from . import images
from .images import Image
from .processes import Containerd, Daemon
from .registry import Registry

pytestmark = pytest.mark.btrfs


@pytest.fixture(scope="session")
def expected(image: Image) -> dict[str, images.Node]:
    """
    What the image's layers make.
    """
    return images.applied(image.layers)


def content(containerd: Containerd, image: Image) -> dict[str, images.Node]:
    """
    What a container of *image* would find.
    """
    # Not a view: ctr lets garbage collection take it.
    containerd.ctr("snapshots", "prepare", "content", image.chain_ids[-1])
    with containerd.mounted("content") as path:
        tree = images.found(path)
    containerd.ctr("snapshots", "rm", "content")
    return tree


def test_import(
    emptied: Containerd, daemon: Daemon, image: Image, expected: dict[str, images.Node], directory: Path
) -> None:
    """
    An imported image holds, file by file, what its layers make.
    """
    emptied.ctr("images", "import", image.write(directory / "image.tar"))
    assert images.differences(expected, content(emptied, image)) == []
    assert sorted(emptied.listed("snapshots")) == sorted(image.chain_ids)
    daemon.check_store()


def test_pull(emptied: Containerd, registry: Registry, image: Image, expected: dict[str, images.Node]) -> None:
    """
    So does one that is pulled from a registry, by ctr itself and by the transfer service where there is one.
    """
    reference = registry.add(image)
    pull = ["images", "pull", "--plain-http"]
    for command in [pull, [*pull, "--local"]] if "--local" in emptied.ctr("images", "pull", "--help") else [pull]:
        emptied.ctr(*command, reference)
        assert images.differences(expected, content(emptied, image)) == []
        emptied.remove_everything()
        assert not emptied.listed("snapshots")
