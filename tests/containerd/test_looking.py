"""
The read-only commands on a store that containerd filled, compared with independent counts.
"""

import contextlib
import io
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem
from snapshotter import cli
from snapshotter.analysis import containerd, references
from snapshotter.analysis.references import References

from . import images
from .images import Image
from .processes import PLUGIN, Containerd, Daemon, wait_until

pytestmark = pytest.mark.btrfs

DATA = 3 << 20  # bytes that each container writes

Said = Callable[..., Any]


def btrfs(*command: str | Path) -> str:
    return subprocess.run(["btrfs", *command], stdout=subprocess.PIPE, text=True, check=True).stdout


def data_used(path: Path) -> int:
    filesystem.sync(path)
    return int(re.findall(r"Data, single: total=\d+, used=(\d+)", btrfs("filesystem", "df", "--raw", path))[0])


@pytest.fixture
def said(daemon: Daemon) -> Said:
    """
    Return a function that runs a command concurrently with the daemon, and returns its JSON.
    """

    def run(*command: str) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(["--root", str(daemon.root), *command, "--json"]) == 0
        return json.loads(out.getvalue())

    return run


def walked(root: Path) -> dict[str, tuple[int, ...]]:
    """
    Return, by path, the attributes that identify a file; of a directory, those that a change inside keeps.
    """
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        whole = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_nlink, status.st_ctime_ns)
        found[str(path.relative_to(root))] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, *whole)
    return found


def test_looking(
    emptied: Containerd,
    daemon: Daemon,
    image: Image,
    directory: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Every number of every read-only command equals the count of a walk, of containerd or of the btrfs command.

    The store has two images with a common layer, running containers that write, an unused snapshot, and a view.
    """
    small = images.small("example.org/small:1")
    for each in image, small:
        emptied.ctr("images", "import", each.write(directory / "image.tar"))
    script = f"head -c {DATA} /dev/urandom > /data; rm /bin/sh; sleep 1000"
    pids = {name: emptied.start_container(small.name, name, script) for name in ("first", "second")}
    emptied.ctr("snapshots", "prepare", "unused", image.chain_ids[-1])
    with emptied.mounted("unused") as path:
        (path / "data").write_bytes(os.urandom(DATA))
    emptied.ctr("snapshots", "view", "view", image.chain_ids[-1])
    roots = [Path(f"/proc/{pid}/root") for pid in pids.values()]
    wait_until(lambda: not any((root / "bin/sh").is_symlink() for root in roots), "the containers to write")
    daemon.check_store()
    filesystem.sync(daemon.root)

    # containerd's keys are NAMESPACE/NUMBER/KEY in the store.
    rows = {row["name"].split("/", 2)[2]: row for row in said("tree")}
    listed = [line.split() for line in emptied.ctr("snapshots", "ls").splitlines()[1:]]
    assert {key: row["kind"] for key, row in rows.items()} == {columns[0]: columns[-1] for columns in listed}
    usages = [line.split() for line in emptied.ctr("snapshots", "usage", "-b").splitlines()[1:]]
    assert {key: (row["size"], row["inodes"]) for key, row in rows.items()} == {
        key: (int(size), int(inodes)) for key, size, inodes in usages
    }
    found = re.findall(r"ID (\d+) .* path (snapshots/.*)", btrfs("subvolume", "list", daemon.root))
    assert {row["subvolume"]: row["subvolid"] for row in rows.values() if row["subvolume"]} == {
        path: int(subvolid) for subvolid, path in found
    }
    names = {row["name"]: key for key, row in rows.items()}
    parents = {key: names.get(row["parent"], "") for key, row in rows.items()}

    def total(key: str) -> int:
        return rows[key]["size"] + sum(total(child) for child, parent in parents.items() if parent == key)

    assert {key: row["total"] for key, row in rows.items()} == {key: total(key) for key in rows}
    assert {key for key, row in rows.items() if row["mounted"]} == {"first", "second"}

    df = said("df")
    for kind in "committed", "active", "view":
        sizes = [row["size"] for row in rows.values() if row["kind"].lower() == kind]
        assert (df[kind]["count"], df[kind]["size"]) == (len(sizes), sum(sizes))
    assert df["active"]["reclaimable"] == rows["unused"]["size"]
    assert df["committed"]["reclaimable"] == df["pending"]["count"] == df["orphaned"]["count"] == 0
    usage = btrfs("filesystem", "usage", "--raw", daemon.root)
    for name, value in ("size", "size"), ("allocated", "allocated"), ("unallocated", "unallocated"):
        assert re.search(rf"Device {name}:\s+{df['filesystem'][value]}\b", usage)

    for key in "first", "unused", small.chain_ids[-1], image.chain_ids[0]:
        row = rows[key]
        assert said("info", row["name"]) == {name: row[name] for name in row.keys() - {"depth", "total"}} | {
            "children": sorted(child["name"] for child in rows.values() if child["parent"] == row["name"])
        }
        root = daemon.root / row["subvolume"]
        counted = re.findall(r"\d+", btrfs("filesystem", "du", "--summarize", "--raw", root).splitlines()[-1])
        [top] = said("du", row["name"], "--depth=0")
        assert (top["exclusive"] + top["shared"], top["exclusive"]) == tuple(map(int, counted[:2]))
        below = walked(daemon.root / rows[parents[key]]["subvolume"]) if parents[key] else {}
        now = walked(root)
        changed = {path for path in below.keys() | now.keys() if below.get(path) != now.get(path)}
        assert {change["path"] for change in said("diff", row["name"])} - {"."} == changed

    for name, pid in pids.items():
        why = said("why", rows[name]["name"], "--containerd", str(emptied.address))
        assert pid in [process["pid"] for process in why["processes"] if "root" in process["uses"]]
        assert "/" in [mount["path"] for mount in why["mounts"]]
        assert why["containerd"] == {
            "namespace": emptied.namespace,
            "name": name,
            "known": True,
            "labels": why["containerd"]["labels"],
            "containers": [name],
            "images": [],
            "leases": [],
        }
    why = said("why", rows[small.chain_ids[-1]]["name"], "--containerd", str(emptied.address))
    assert why["children"] == sorted(rows[name]["name"] for name in pids)
    assert (why["containerd"]["images"], why["containerd"]["containers"]) == ([small.name], [])

    emptied.ctr("leases", "create", "--id", "lease")
    emptied.prepare_leased("lease", "leased", small.chain_ids[-1])
    [leased] = [row["name"] for row in said("ls") if row["name"].endswith("/leased")]
    asked = said("why", leased, "--containerd", str(emptied.address))["containerd"]
    assert (asked["leases"], asked["containers"], asked["images"]) == (["lease"], [], [])
    unused = said("why", rows["unused"]["name"], "--containerd", str(emptied.address))["containerd"]
    assert list(unused["labels"]) == ["containerd.io/gc.root"]
    unknown = references.find(str(emptied.address), PLUGIN, f"{emptied.namespace}/1/none")
    assert unknown == References(emptied.namespace, "none", False)
    why = said("why", rows["unused"]["name"], "--containerd", f"{emptied.address}.none")
    assert (why["containerd"], why["unasked"]) == (
        None,
        f"no answer from containerd at '{emptied.address}.none': No such file or directory",
    )
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.setattr(containerd, "SOCKETS", (f"{emptied.address}.none", str(emptied.address)))
    assert said("why", rows["unused"]["name"])["containerd"] == unused

    for command in "ls", "tree":
        users = {row["name"].split("/", 2)[2]: (row["containers"], row["images"]) for row in said(command)}
        assert {key: used for key, used in users.items() if used != ([], [])} == {
            "first": (["first"], []),
            "second": (["second"], []),
            small.chain_ids[-1]: ([], [small.name]),
            image.chain_ids[-1]: ([], [image.name]),
        }

    # A container and an image stand for their snapshots.
    assert said("info", "first")["name"] == rows["first"]["name"]
    assert said("info", small.name)["name"] == rows[small.chain_ids[-1]]["name"]

    predicted = said("frees", rows["unused"]["name"])["size"]
    assert predicted == DATA
    before = data_used(daemon.root)
    emptied.ctr("snapshots", "rm", "unused")
    emptied.collect_garbage()
    daemon.check_store()
    wait_until(lambda: before - data_used(daemon.root) == predicted, "the space to come back")
