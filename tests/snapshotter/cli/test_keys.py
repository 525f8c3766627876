"""
Keys that are given in part, or by the name of a container or an image.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapshotter import cli
from snapshotter.analysis import containerd
from tests.snapshotter.cli.commands import Run, names

pytestmark = pytest.mark.btrfs


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("default/3/web", "default/3/web"),
        ("default/3", "default/3/web"),
        ("web", "default/3/web"),
        ("web-", "default/5/web-init"),
        ("k8s.io/4/f00d", "k8s.io/4/f00d"),
        ("sha256:aaa2", "k8s.io/2/sha256:aaa2"),
        ("default/1…aa1", "default/1/sha256:aaa1"),
        ("pod/app", "k8s.io/4/f00d"),
        ("app", "k8s.io/4/f00d"),
        ("alpine", "default/1/sha256:aaa1"),
        ("docker.io/library/alpine:latest", "default/1/sha256:aaa1"),
        ("example.org/tool:1", "k8s.io/2/sha256:aaa2"),
    ],
)
def test_meant(containerds: str, run: Run, text: str, key: str) -> None:
    """
    A key is found by itself, by its unique beginning, by its name in containerd, or by its container or image.
    """
    code, out, err = run("info", text, "--json")
    assert (code, json.loads(out)["name"]) == (0, key)
    assert err == ("" if text == key else f"snapshotter: '{text}' means '{key}'\n")


def test_several(containerds: str, run: Run) -> None:
    """
    A beginning of several keys is refused with the list of them.
    """
    ran = run("info", "sha256:")
    assert (ran.code, ran.out) == (2, "")
    expected = "'sha256:' means several snapshots: 'default/1/sha256:aaa1', 'k8s.io/2/sha256:aaa2'"
    assert ran.err == f"snapshotter: {expected}\n"


def test_missing(containerds: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The error of a missing key names the nearest, and says why containerd was not asked.
    """
    missing = "snapshotter: snapshot 'default/3/wbe' does not exist: did you mean 'default/3/web'?"
    assert run("info", "default/3/wbe") == (4, "", f"{missing}\n")
    monkeypatch.setattr(containerd, "SOCKETS", (f"{containerds}/none",))
    assert run("info", "default/3/wbe").err.startswith(
        f"{missing} (containerd was not asked for a container or an image"
    )


def test_empty(root: str, run: Run) -> None:
    """
    A store without snapshots has no nearest key.
    """
    assert run("info", "web") == (4, "", "snapshotter: snapshot 'web' does not exist: the store is empty\n")


@pytest.mark.parametrize(
    "argv",
    [
        ("info", "we"),
        ("usage", "we", "ba"),
        ("frees", "we"),
        ("du", "we"),
        ("diff", "ba", "we"),
        ("diff", "we"),
        ("why", "we"),
        ("mounts", "we"),
        ("export", "ba", "/dev/null"),
        ("label", "we"),
        ("label", "we", "a=b"),
        ("fork", "we", "copy"),
        ("prepare", "new", "ba"),
        ("view", "new", "ba"),
        ("commit", "new", "we"),
        ("rm", "we", "--dry-run"),
        ("rm", "we", "--yes"),
    ],
    ids=" ".join,
)
def test_every_command(filled: str, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """
    Every command takes the beginning of a key, and prints the key.
    """
    assert cli.main(argv) == 0
    meant = [
        f"snapshotter: '{text}' means '{text}{rest}'" for text, rest in (("we", "b"), ("ba", "se")) if text in argv
    ]
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(meant)


def test_import_and_mount(filled: str, run: Run, tmp_path: Path) -> None:
    """
    The parent of an imported snapshot, and a mounted snapshot, may be given in part.
    """
    archive = str(tmp_path / "archive")
    assert run("export", "web", archive).code == 0
    assert run("import", "copy", archive, "ba") == (0, "", "snapshotter: 'ba' means 'base'\n")
    target = tmp_path / "target"
    target.mkdir()
    assert run("mount", "we", str(target)).code == 0
    assert run("umount", str(target)).code == 0


def test_removal_asks(
    filled: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The command rm with a part of a key prints the key, and removes nothing unless the operator agrees.
    """
    assert cli.main(["rm", "we"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "snapshotter: 'we' means 'web'"
    asked: list[str] = []

    def disagree(question: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr("snapshotter.cli.commands.rm.agreed", disagree)
    assert run("rm", "we").code == 1
    assert asked == ["remove 'web'?"]
    assert "web" in names(run)
    assert run("rm", "we", "--yes").code == 0
    assert "web" not in names(run)


def test_removed_is_no_beginning(filled: str, run: Run) -> None:
    """
    A script that removes a key twice does not remove another key that begins with it.
    """
    assert run("fork", "web", "web-2").code == 0
    assert run("rm", "web").code == 0
    assert cli.main(["rm", "web"]) == 2
    assert "web-2" in names(run)


def test_changes(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A change takes the beginning of a key, with and without a daemon.
    """
    for argv in ["prepare", "web"], ["label", "w", "a=b"], ["fork", "w", "copy"], ["commit", "layer", "we"]:
        assert cli.main(argv) == 0
    assert cli.main(["prepare", "next", "lay"]) == 0
    assert cli.main(["rm", "co", "ne", "--yes"]) == 0
    assert cli.main(["rm", "x"]) == 4
    assert capsys.readouterr().err.splitlines() == [
        "snapshotter: 'w' means 'web'",
        "snapshotter: 'w' means 'web'",
        "snapshotter: 'we' means 'web'",
        "snapshotter: 'lay' means 'layer'",
        "snapshotter: 'co' means 'copy'",
        "snapshotter: 'ne' means 'next'",
        "snapshotter: snapshot 'x' does not exist: did you mean 'layer'?",
    ]
