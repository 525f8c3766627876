"""
Id maps: the labels that the kernel would take become options of the mounts, and all others are ignored.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybtrfs import syscall
from snapshotter import Mount, Snapshotter
from snapshotter.contract import idmap
from snapshotter.contract.idmap import GID_MAPPING, IMAGE_LAYER, UID_MAPPING
from snapshotter.errors import UnavailableError
from snapshotter.model import IdMap
from snapshotter.testing import DirectoryVolumes
from tests.namespaces import source

MAP = "0:100000:65536"
LABELS = {UID_MAPPING: MAP, GID_MAPPING: "0:200000:65536"}
OPTIONS = (f"uidmap={MAP}", "gidmap=0:200000:65536")


def test_read() -> None:
    """
    Two maps of the container's root become an id map, in the form that containerd reads.
    """
    assert idmap.read({**LABELS, "other": "label"}) == IdMap(MAP, "0:200000:65536", 100000)
    parts = {UID_MAPPING: "1:5:1,0:1000:1", GID_MAPPING: "5:00001:1,0:7:2"}
    assert idmap.read(parts) == IdMap("1:5:1,0:1000:1", "5:1:1,0:7:2", 1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0:1",
        "0:1:2:3",
        "0:1:2,",
        ",0:1:2",
        "0:1:-2",
        "0: 1:2",
        "0:1:2\n",
        "\u0660:1:2",  # a digit, but not of ASCII
        "0:1:0",
        "0:4294967295:2",
        "1:1000:10",  # without root
        "0:10:5,4:100:5",
        "0:10:5,100:12:5",
        ",".join(f"{id}:{id}:1" for id in range(341)),
    ],
)
def test_malformed(text: str) -> None:
    """
    A map that the kernel would refuse, or that leaves out the container's root, is no map.
    """
    assert idmap.read(LABELS | {UID_MAPPING: text}) is None
    assert idmap.read(LABELS | {GID_MAPPING: text}) is None


def test_needs_both() -> None:
    """
    A single label is no map.
    """
    for label in LABELS:
        assert idmap.read({label: LABELS[label]}) is None


def test_layer_of_an_image() -> None:
    """
    The labels of an image's layer are ignored, because the image can have chosen them.
    """
    assert idmap.read({**LABELS, IMAGE_LAYER: "sha256:1"}) is None


@given(st.text(st.sampled_from("0123456789:,")))
def test_any_text(text: str) -> None:
    """
    Any text is a map or none, and the result can be read again.
    """
    id_map = idmap.read({UID_MAPPING: text, GID_MAPPING: text})
    if id_map:
        assert idmap.read({UID_MAPPING: id_map.uids, GID_MAPPING: id_map.gids}) == id_map


def test_directories(tmp_path: Path) -> None:
    """
    Plain directories are bind mounts with the options of the map.
    """
    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store:
        (mount,) = store.prepare("active", labels=LABELS)
        assert mount.options == ("rbind", "rw", *OPTIONS)
        store.commit("layer", "active")
        (mount,) = store.prepare("child", "layer", LABELS)
        assert mount.options == ("rbind", "rw", *OPTIONS)


@pytest.mark.btrfs
@pytest.mark.parametrize("mode", ["btrfs", "bind"])
def test_mounts(btrfs: Path, mode: str) -> None:
    """
    With both labels an active is a bind mount and a view a read-only mount of btrfs, each with the options of the map.
    """
    options = {"mount_mode": mode}
    with Snapshotter.create(btrfs / "store", **options) as store:  # type: ignore[arg-type]  # one literal or the other
        store.prepare("active")
        store.commit("layer", "active")
        mounts = store.prepare("mapped", "layer", LABELS)
        assert mounts == (Mount("bind", store.subvolume("mapped"), options=("rbind", "rw", *OPTIONS)),)
        assert store.mounts("mapped") == mounts
        (forked,) = store.fork("mapped", "forked")
        assert forked == Mount("bind", store.subvolume("forked"), options=("rbind", "rw", *OPTIONS))
        (view,) = store.view("view", "layer", LABELS)
        assert (view.type, view.source) == ("btrfs", source(btrfs))
        assert view.options[1:] == ("ro", *OPTIONS)
        (alone,) = store.prepare("alone", labels=LABELS)
        assert alone.options == ("rbind", "rw", *OPTIONS)


@pytest.mark.btrfs
def test_update(btrfs: Path) -> None:
    """
    The mounts follow the labels of the snapshot.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("active")
        info = store.stat("active")._replace(labels=LABELS)
        store.update(info)
        assert store.mounts("active")[0].options[2:] == OPTIONS


@pytest.mark.btrfs
def test_parent_of_the_host(btrfs: Path) -> None:
    """
    A parent that already belongs to the ids of the host is not mapped again, whatever the container does to its root.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("unpacked")
        store.commit("layer", "unpacked")
        store.prepare("copy", "layer")
        os.chown(store.subvolume("copy"), 100000, 200000)
        store.commit("of the host", "copy")
        (mount,) = store.prepare("container", "of the host", LABELS)
        assert mount.type == "btrfs"
        assert len(mount.options) == 1
        (view,) = store.view("view", "of the host", LABELS)
        assert view.options[1:] == ("ro",)
        store.prepare("mapped", "layer", LABELS)
        os.chown(store.subvolume("mapped"), 100000, 200000)
        assert store.mounts("mapped")[0].options[2:] == OPTIONS


@pytest.mark.btrfs
def test_restricted_mount(btrfs: Path) -> None:
    """
    On a mount whose restrictions a bind mount would inherit, a mapped active is a mount of btrfs.
    """
    point = btrfs / "restricted"
    point.mkdir()
    syscall.mount(source(btrfs), point, "btrfs", syscall.MS_NODEV)
    try:
        with Snapshotter.create(point / "store") as store:
            (mount,) = store.prepare("active", labels=LABELS)
            assert mount.type == "btrfs"
            assert mount.options[1:] == OPTIONS
    finally:
        syscall.umount2(point)


@pytest.mark.btrfs
def test_rolled_back(btrfs: Path) -> None:
    """
    A mapped active of a store whose path leads elsewhere is Unavailable, because it is mounted by its path.
    """
    with Snapshotter.create(btrfs / "store") as store:
        store.prepare("mapped", labels=LABELS)
        store.prepare("plain")
        (btrfs / "store").rename(btrfs / "elsewhere")
        with pytest.raises(UnavailableError, match="no longer leads to the open store"):
            store.mounts("mapped")
        assert store.mounts("plain")
