"""
The command pybtrfs, compared with the command btrfs.
"""

import io
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import device, filesystem, image, subvolume, syscall
from pybtrfs.cli import main
from pybtrfs.cli import subvolume as cli_subvolume
from tests.pybtrfs.subvolume.common import NOBODY, UNPRIVILEGED, make, mounted

pytestmark = pytest.mark.btrfs


@pytest.fixture
def top(btrfs_mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A filesystem with subvolumes of every kind, as the working directory.
    """
    top = btrfs_mount()
    make(top, "a", "a/b", "a/b/c", "d/e")
    subvolume.snapshot(top / "a", top / "d/snap")
    subvolume.snapshot(top / "a/b", top / "readonly", read_only=True)
    subvolume.create(os.fsencode(top) + b"/d/\xff \n")
    (top / "d/e/file").write_bytes(bytes(100_000))
    filesystem.sync(top)
    monkeypatch.chdir(top)
    return top


def ours(*argv: str) -> tuple[int, bytes]:
    ran = subprocess.run([sys.executable, "-m", "pybtrfs", *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return ran.returncode, ran.stdout


def theirs(*argv: str) -> tuple[int, bytes]:
    ran = subprocess.run(["btrfs", *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return ran.returncode, ran.stdout


def said(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """
    Return the exit code of pybtrfs, its output and its errors.
    """
    code = main.main(argv)
    out, err = capfd.readouterr()
    return code, out, err


def as_root(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


OPTIONS = ["", "-p", "-c", "-g", "-u", "-q", "-R", "-s", "-r", "-o", "-t", "-d", "-pcguqR", "-pcguqRst"]
OPTIONS += ["--sort=-rootid", "--sort=path", "--sort=-gen,rootid", "--sort=ogen,-path"]


@pytest.mark.parametrize("option", OPTIONS)
def test_list(top: Path, option: str) -> None:
    """
    Lists equal those of btrfs to the byte, for the top level and for nested subvolumes.
    """
    for path in (".", "a", "a/b", "d"):
        argv = ["subvolume", "list", *([option] if option else []), path]
        assert ours(*argv) == theirs(*argv)


def test_list_computes_what_it_shows(
    top: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """
    A list computes no time and no uuid unless it shows them, and writes once: this decides how much processor it takes.
    """
    computed: list[str] = []
    for name in ("otime", "uuid", "parent_uuid", "received_uuid"):
        value = getattr(subvolume.SubvolumeInfo, name).fget
        noted = property(lambda info, name=name, value=value: computed.append(name) or value(info))
        monkeypatch.setattr(subvolume.SubvolumeInfo, name, noted)
    written: list[list[str]] = []
    monkeypatch.setattr(cli_subvolume, "write_lines", written.append)
    assert said(capfd, "subvolume", "list", ".") == (0, "", "")
    assert computed == []
    assert [len(lines) for lines in written] == [len(list(subvolume.iterate(top)))]
    assert said(capfd, "subvolume", "list", "-u", ".") == (0, "", "")
    assert set(computed) == {"uuid"}


def test_list_below(top: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """
    A list below a directory has paths from it, for ordinary users as well; without the option they get the same.
    """

    def paths(*argv: str) -> tuple[int, list[str]]:
        code, out, err = said(capfd, "subvolume", "list", *argv)
        return code, [line.partition(" path ")[2] for line in out.splitlines()] or err.splitlines()

    subvolume.delete(os.fsencode(top) + b"/d/\xff \n")
    monkeypatch.chdir(top / "a")
    for caller in (as_root, *UNPRIVILEGED.values()):
        assert caller(paths, "--below", "../d") == (0, ["e", "snap"])
        assert caller(paths, "--below", ".") == (0, ["b", "b/c"])
    for caller in UNPRIVILEGED.values():
        assert caller(paths, "../d") == (0, ["e", "snap"])


def test_paths(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    The path of the subvolume that contains a file is absolute. The path below a directory begins with the directory.
    """
    assert said(capfd, "subvolume", "get-root", "d/e/file") == (0, f"{top}/d/e\n", "")
    subvolid = str(subvolume.get_id(top / "a/b/c"))
    assert said(capfd, "subvolume", "get-path", subvolid, "a") == (0, "a/b/c\n", "")
    assert said(capfd, "subvolume", "get-path", subvolid, f"{top}/a/b/c") == (0, f"{top}/a/b/c\n", "")
    wrong = f"ERROR: subvolume {subvolid} is not below the directory: d\n"
    assert said(capfd, "subvolume", "get-path", subvolid, "d") == (1, "", wrong)


def test_list_deleted(top: Path) -> None:
    """
    Lists of deleted subvolumes equal those of btrfs.
    """
    with subvolume.Subvolume(top / "d/snap"):
        subvolume.delete(top / "d/snap")
        filesystem.sync(top)
        for option in ("-d", "-dt"):
            code, listed = ours("subvolume", "list", option, ".")
            assert (code, listed) == theirs("subvolume", "list", option, ".")
            assert b"DELETED" in listed


def test_list_unprivileged(top: Path, unprivileged: Callable[..., Any]) -> None:
    """
    An unprivileged user, whom btrfs refuses, gets the subvolumes below the path.
    """

    def listed() -> bytes:
        sys.stdout = io.TextIOWrapper(io.BytesIO())  # in the child process
        assert main.main(["subvolume", "list", "a"]) == 0
        return sys.stdout.buffer.getvalue()

    a, b, c = (subvolume.get_info(top / name) for name in ("a", "a/b", "a/b/c"))
    assert unprivileged(listed).decode().splitlines() == [
        f"ID {b.id} gen {b.generation} top level {a.id} path b",
        f"ID {c.id} gen {c.generation} top level {b.id} path b/c",
    ]


@pytest.mark.parametrize("path", [".", "a", "a/b", "readonly", "d/snap"])
def test_show(top: Path, path: str) -> None:
    """
    The output equals that of btrfs, except for the send time of a subvolume that was not sent.
    """
    code, shown = theirs("subvolume", "show", path)
    shown = re.sub(rb"(Send time: \t\t).*", rb"\1-", shown)
    # Newer versions of btrfs show qgroups, which are off.
    shown = re.sub(rb"\tQuota group:.*\n", b"", shown)
    assert ours("subvolume", "show", path) == (code, shown)


def test_default(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    The default subvolume is set by path and by id, and shown as btrfs does.
    """
    for argv, subvolid in (
        (["a/b"], subvolume.get_id(top / "a/b")),
        (["5", "."], 5),
        ([str(subvolume.get_id(top / "a")), "d"], subvolume.get_id(top / "a")),
        (["."], 5),
    ):
        assert said(capfd, "subvolume", "set-default", *argv) == (0, "", "")
        assert subvolume.get_default(top) == subvolid
        assert ours("subvolume", "get-default", ".") == theirs("subvolume", "get-default", ".")
    assert said(capfd, "subvolume", "set-default", "1", "2", "3")[0] == 1


@pytest.mark.parametrize(
    ("argv", "paths"),
    [
        (["create", "new"], ["new"]),
        (["create", "d/new/"], ["d/new"]),
        (["snapshot", "a", "new"], ["new"]),
        (["snapshot", "-r", "a/b", "d/new"], ["d/new"]),
        (["snapshot", "a/b", "d"], ["d/b"]),
        (["create", "a"], []),
        (["create", "missing/new"], []),
        (["snapshot", "d", "new"], []),
    ],
)
def test_create_and_snapshot(top: Path, argv: list[str], paths: list[str]) -> None:
    """
    Created subvolumes, output and exit code equal those of btrfs.
    """
    one = ours("subvolume", *argv)
    for path in paths:
        assert subvolume.get_read_only(path) == ("-r" in argv)
        subvolume.delete(path)
    assert theirs("subvolume", *argv) == one
    assert [path for path in paths if subvolume.is_subvolume(path)] == paths


@pytest.mark.parametrize(
    "argv", [["d/e"], ["-c", "d/e", "readonly"], ["-C", "d/e", "d/snap"], ["a"], ["d", "missing", "d/e"]]
)
def test_delete(top: Path, argv: list[str]) -> None:
    """
    Deleted subvolumes, output and exit code equal those of btrfs.
    """
    paths = [path for path in argv if not path.startswith("-")]
    there = [path for path in paths if os.path.isdir(path)]
    one = ours("subvolume", "delete", *argv)
    left = [path for path in paths if os.path.exists(path)]
    for path in there:
        if path not in left:
            make(top, path)
    two = theirs("subvolume", "delete", *argv)
    # Newer versions of btrfs print the id too.
    assert one == (two[0], re.sub(rb"subvolume [0-9]+ ", b"subvolume ", two[1]))
    assert [path for path in paths if os.path.exists(path)] == left


def test_delete_by_id_and_wait(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Subvolumes are deleted by id, with nested subvolumes, and waited for.
    """
    subvolid = subvolume.get_id(top / "a")
    code, out, err = said(capfd, "subvolume", "delete", "-i", str(subvolid), ".")
    assert (code, out) == (1, "Delete subvolume (no-commit): './a'\n")
    assert err == "ERROR: Directory not empty: . (BTRFS_IOC_SNAP_DESTROY_V2)\n"
    assert said(capfd, "subvolume", "delete", "-i", str(subvolid), ".", "d")[0] == 1
    assert said(capfd, "subvolume", "delete", "-R", "-c", "-i", str(subvolid), ".")[0] == 0
    assert not (top / "a").exists()
    assert said(capfd, "subvolume", "sync", ".", str(subvolid)) == (
        0,
        f"Waiting for 1 subvolume\nSubvolume id {subvolid} is gone (1/1)\n",
        "",
    )
    assert said(capfd, "subvolume", "sync", ".")[0] == 0
    assert said(capfd, "subvolume", "sync", ".") == (0, "", "")


@pytest.mark.parametrize("options", ["", "user_subvol_rm_allowed"])
@pytest.mark.parametrize("caller", UNPRIVILEGED.values(), ids=UNPRIVILEGED)
def test_delete_unprivileged(options: str, caller: Callable[..., Any]) -> None:
    """
    An owner without privileges, whom btrfs refuses, deletes read-only and nested subvolumes. Only deletion by id needs
    CAP_SYS_ADMIN.
    """

    def deleted(*argv: str) -> tuple[int, str]:
        sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()  # in the child process
        code = main.main(["subvolume", "delete", *argv])
        return code, sys.stderr.getvalue()

    with mounted(options) as top:
        make(top, "a", "b", "c", "c/nested")
        for name in ("a", "b", "c", "c/nested"):
            (top / name / "file").touch()
            os.chown(top / name, NOBODY, NOBODY)
            subvolume.set_read_only(top / name)
        assert caller(deleted, f"{top}/a") == (0, "")
        assert caller(deleted, "-c", f"{top}/b") == (0, "")
        code, error = caller(deleted, "-i", str(subvolume.get_id(top / "c")), str(top))
        assert (code, "needs CAP_SYS_ADMIN" in error) == (1, True)
        assert caller(deleted, f"{top}/c") == (1, f"ERROR: Directory not empty: {top}/c\n")
        assert caller(deleted, "-R", f"{top}/c") == (0, "")
        assert os.listdir(top) == []


def test_qgroups(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    A new subvolume joins the given qgroups; a missing qgroup is an error.
    """
    subprocess.run(["btrfs", "quota", "enable", "."], check=True)
    subprocess.run(["btrfs", "quota", "rescan", "-w", "."], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["btrfs", "qgroup", "create", "1/5", "."], check=True)
    assert said(capfd, "subvolume", "create", "-i", "1/5", "new")[0] == 0
    subvolid = subvolume.get_id(top / "new")
    shown = subprocess.check_output(["btrfs", "qgroup", "show", "-p", "."])
    assert re.search(rf"0/{subvolid} .* 1/5 ".encode(), shown)
    for argv in (["create", "-i", "1/6", "other"], ["snapshot", "-i", "1/6", "a", "other"]):
        assert said(capfd, "subvolume", *argv)[0] == 1


def test_recursive(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    With -R, nested subvolumes are snapshotted and deleted too.
    """
    assert said(capfd, "subvolume", "snapshot", "-R", "-r", "a", "new")[0] == 0
    assert subvolume.get_read_only(top / "new/b/c")
    assert said(capfd, "subvolume", "delete", "-R", "a", "new")[0] == 0
    assert not (top / "new").exists()


@pytest.fixture(params=["single", "dup", "raid1"])
def profile(request: pytest.FixtureRequest, top: Path, tmp_path: Path) -> Iterator[Path]:
    """
    A filesystem with the profile.
    """
    if request.param == "single":
        yield top
        return
    paths = [tmp_path / f"{number}" for number in range(2 if request.param == "raid1" else 1)]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(512 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-m", request.param, "-d", request.param, *paths], check=True)
    (tmp_path / "mount").mkdir()
    with ExitStack() as stack:
        devices = [stack.enter_context(image.attach(path)).path for path in paths]
        options = ",".join(f"device={device}" for device in devices)
        syscall.mount(devices[0], tmp_path / "mount", "btrfs", data=options)
        stack.callback(syscall.umount2, tmp_path / "mount")
        (tmp_path / "mount/file").write_bytes(bytes(100_000))
        filesystem.sync(tmp_path / "mount")
        yield tmp_path / "mount"


@pytest.mark.parametrize("option", ["", "-b"])
def test_usage(profile: Path, option: str) -> None:
    """
    The output equals that of btrfs, except for the block groups of each device if there are several.
    """
    argv = [*([option] if option else []), str(profile)]
    code, shown = theirs("filesystem", "usage", *argv)
    if len(list(device.iterate(profile))) > 1:
        groups, unallocated, rest = shown.partition(b"\nUnallocated:\n")
        shown = re.sub(rb"   /dev/.*\n", b"", groups) + unallocated + rest
    assert ours("usage", *argv) == (code, shown)


SENDS = ["readonly", "-p readonly again", "-p readonly -c readonly again", "--no-data readonly", "--proto 0 again"]
SENDS += ["--proto 2 --compressed-data again", "-f stream -p readonly again", "missing", "a", "-p missing readonly"]


@pytest.mark.parametrize("options", SENDS)
def test_send(top: Path, tmp_path: Path, options: str) -> None:
    """
    Streams equal those of btrfs to the byte, and so do the exit code and the mode of the file.
    """
    (top / "a/b/new").write_bytes(os.urandom(100_000))
    subvolume.snapshot(top / "a/b", top / "again", read_only=True)
    found = []
    for run, directory in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        directory.mkdir()
        argv = [str(directory / word) if word == "stream" else word for word in options.split()]
        result = run("send", *argv)
        found.append((result, [(path.stat().st_mode, path.read_bytes()) for path in directory.iterdir()]))
    assert found[0] == found[1]


def test_send_to_a_terminal(top: Path) -> None:
    """
    A stream is not written to a terminal.
    """
    terminal, other = os.openpty()
    with open(terminal, "rb"), open(other, "wb") as output:
        argv = [sys.executable, "-m", "pybtrfs", "send", "readonly"]
        ran = subprocess.run(argv, stdout=output, stderr=subprocess.PIPE)
    assert ran.returncode == 1
    assert ran.stderr == b"ERROR: the output is a terminal: redirect it, or name a file with -f\n"


def test_send_needs_a_parent(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Clone sources without a parent are refused, because btrfs would choose the parent among them.
    """
    code, out, err = said(capfd, "send", "-c", "readonly", "readonly")
    assert (code, out) == (1, "")
    assert "-c needs -p" in err


def test_json(top: Path) -> None:
    """
    Commands that read print JSON with the names of the columns as keys.
    """
    listed = json.loads(ours("subvolume", "list", "-u", "--json", ".")[1])
    info = subvolume.get_info(top / "a")
    assert listed[0] == {"ID": info.id, "gen": info.generation, "top level": 5, "uuid": str(info.uuid), "path": "a"}
    shown = json.loads(ours("subvolume", "show", "--json", "a")[1])
    assert (shown["path"], shown["UUID"], shown["Snapshots"]) == ("a", str(info.uuid), ["d/snap"])
    assert json.loads(ours("subvolume", "get-default", "--json", ".")[1])["ID"] == 5
    usage = json.loads(ours("usage", "--json", ".")[1])
    assert usage["device-size"] == 256 << 20
    assert [group["type"] for group in usage["block-groups"]] == ["data", "system", "metadata"]


def test_json_of_names_that_are_not_utf_8(top: Path) -> None:
    """
    JSON has valid text only, and names that are not UTF-8 in base64, too.
    """
    name = b"\xfe\xff"
    subvolume.snapshot(top / "a", os.fsencode(top) + b"/" + name)
    filesystem.sync(top)
    listed = {entry["ID"]: entry for entry in json.loads(ours("subvolume", "list", "--json", ".")[1])}
    for path, text in ((b"d/\xff \n", "d/\ufffd \n"), (name, "\ufffd\ufffd")):
        entry = listed[subvolume.get_id(path)]
        assert (entry["path"], b64decode(entry["path_b64"])) == (text, path)
    assert next(entry["path"] for entry in listed.values() if "path_b64" not in entry) == "a"
    shown = json.loads(ours("subvolume", "show", "--json", "a")[1])
    assert shown["Snapshots"] == ["d/snap", "\ufffd\ufffd"]
    assert [b64decode(path) for path in shown["Snapshots_b64"]] == [b"d/snap", name]
    shown = json.loads(ours("subvolume", "show", "--json", os.fsdecode(name))[1])
    assert (shown["Name"], b64decode(shown["Name_b64"]), b64decode(shown["path_b64"])) == ("\ufffd\ufffd", name, name)


def test_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    An image is created, mounted and unmounted.
    """
    (tmp_path / "mount").mkdir()
    file, target = str(tmp_path / "image"), str(tmp_path / "mount")
    assert said(capfd, "image", "create", "--sparse", file, "256M") == (0, "", "")
    assert said(capfd, "image", "mount", file, target) == (0, "", "")
    assert subvolume.is_subvolume(target)
    assert said(capfd, "image", "unmount", target) == (0, "", "")
    assert said(capfd, "image", "mount", "-o", "ro", file, target) == (0, "", "")
    assert os.statvfs(target).f_flag & syscall.MS_RDONLY
    assert said(capfd, "image", "unmount", target) == (0, "", "")
    assert not subvolume.is_subvolume(target)
    code, _, err = said(capfd, "image", "create", str(tmp_path / "small"), "1M")
    assert code == 1
    assert err.startswith("ERROR: ")


@pytest.mark.parametrize(
    "argv",
    [
        ["subvolume"],
        ["subvolume", "list"],
        ["subvolume", "list", "--sort=size", "."],
        ["subvolume", "create", "-i", "x", "y"],
        ["image", "create", "x", "1Q"],
    ],
)
def test_wrong_usage(argv: list[str]) -> None:
    """
    Wrong usage exits with 2.
    """
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2


def test_errors(top: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """
    A failure exits with 1 and prints the file, or both files, and the ioctl.
    """
    assert said(capfd, "subvolume", "list", "missing") == (1, "", "ERROR: No such file or directory: missing\n")
    code, _, err = said(capfd, "subvolume", "list", str(tmp_path))
    assert (code, err) == (1, f"ERROR: not a btrfs filesystem: {tmp_path} (BTRFS_IOC_INO_LOOKUP)\n")
    code, _, err = said(capfd, "subvolume", "snapshot", "a", "d/e/file")
    assert (code, err) == (1, "ERROR: File exists: a -> d/e/file (BTRFS_IOC_SNAP_CREATE_V2)\n")


def test_a_reader_may_exit(top: Path) -> None:
    """
    If the reader of the output exits, the command fails without a message.
    """
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "pybtrfs", "subvolume", "list", "."], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")
