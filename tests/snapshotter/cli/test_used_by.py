"""
The column USED BY. A real containerd is asked in tests/containerd.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.analysis import containerd, references
from snapshotter.errors import UnavailableError
from tests.snapshotter.cli.commands import Run

pytestmark = pytest.mark.btrfs


def _column(out: str) -> dict[str, str]:
    """
    Return the last column of a table by the first.
    """
    heading, *lines = out.splitlines()
    start = heading.index("USED BY")
    return {line.split()[0]: line[start:] for line in lines}


def test_tables(containerds: str, run: Run) -> None:
    """
    Snapshots have the containers and images that use them; a tag stands for its digests.
    """
    ls = _column(run("ls").out)
    assert ls == {
        "default/1/sha256:aaa1": "docker.io/library/alpine:latest",
        "default/3/web": "web",
        "default/5/web-init": "",
        "k8s.io/2/sha256:aaa2": "example.org/tool:1",
        "k8s.io/4/f00d": "pod/app",
    }
    assert _column(run("ls", "--columns=key,used-by", "--sort=used-by").out) == ls
    assert "USED BY" not in run("ls", "--columns=key").out
    assert "web" in run("tree").out.partition("USED BY")[2]
    assert run("info", "default/3/web").out.splitlines()[-1] == "used by    container web"
    kinds = _column(run("df").out.partition("\n\n")[0])
    assert kinds == {
        "committed": "2 images",
        "active": "2 containers",
        "view": "",
        "pending": "",
        "orphaned": "",
    }


@pytest.mark.parametrize("command", ["ls", "tree"])
def test_json(containerds: str, run: Run, command: str) -> None:
    """
    JSON has the ids of the containers and the whole names of the images.
    """
    rows = {row["name"]: row for row in json.loads(run(command, "--json").out)}
    assert (rows["k8s.io/4/f00d"]["containers"], rows["k8s.io/4/f00d"]["images"]) == (["f00d"], [])
    assert rows["k8s.io/2/sha256:aaa2"]["images"] == ["example.org/tool:1", "sha256:0123"]
    assert json.loads(run("info", "default/3/web", "--json").out)["containers"] == ["web"]
    kinds = json.loads(run("df", "--json").out)
    assert sorted(kinds["active"]["containers"]) == ["f00d", "web"]
    assert kinds["active"]["images"] == kinds["view"]["containers"] == []


def test_report(containerds: str, run: Run) -> None:
    """
    The tree of the report names the containers and images, too.
    """
    page = run("report").out
    assert page.count("<small>used by ") == 4
    assert "<small>used by pod/app</small>" in page


@pytest.mark.parametrize("argv", [("ls",), ("tree",), ("df",), ("info", "default/3/web")], ids=" ".join)
def test_no_containerd(containerds: str, run: Run, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]) -> None:
    """
    Without a socket of containerd there is no column, and no message. A containerd that does not answer is named.
    """

    def silent(address: str, client: str) -> None:
        raise UnavailableError("no answer")

    monkeypatch.setattr(references, "users", silent)
    ran = run(*argv)
    assert (ran.code, "used by" in ran.out.lower()) == (0, False)
    assert ran.err == "snapshotter: containerd was not asked for containers and images: no answer\n"
    monkeypatch.setattr(containerd, "SOCKETS", (f"{containerds}/none",))
    assert run(*argv) == (0, ran.out, "")


@pytest.mark.parametrize("client", ["local", "plugin"])
def test_imports(btrfs: Path, client: str) -> None:
    """
    The command ls imports protobuf only if the store and a socket are containerd's.
    """
    Snapshotter.create(btrfs / "store", client=client).close()
    code = (
        "import sys; from snapshotter import cli; from snapshotter.analysis import containerd;"
        f"containerd.SOCKETS = ({'/' if client == 'local' else '/nowhere'!r},);"
        "cli.main(sys.argv[1:]); sys.exit('google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, "--root", btrfs / "store", "ls"], check=True)
