"""
The configuration of containerd: valid TOML that keeps the former content, and plain words about the rest.

Real containerds read it in tests/containerd/test_setup.py.
"""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter import Snapshotter, cli
from snapshotter.cli import codes
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError
from snapshotter.setup import containerd
from snapshotter.setup.containerd import ConfigVersion, Main, Plugin, Version, advice, drop_in, missing
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.serving import serving

PLUGIN = Plugin("btrfs-snapshotter", "/var/lib/btrfs-snapshotter", "/run/btrfs-snapshotter/snapshotter.sock")
CRI = Plugin(PLUGIN.name, PLUGIN.root, PLUGIN.address, cri=True, maps_ids=True)
NO_MAIN = Main("/etc/containerd/config.toml", {}, exists=False)
DROP_IN = "/etc/containerd/conf.d/btrfs-snapshotter.toml"
TRANSFER = "io.containerd.transfer.v1.local"

VERSIONS: tuple[ConfigVersion, ...] = (2, 3, 4)


@pytest.mark.parametrize(
    ("said", "release", "config", "exports"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6, 20), 2, False),
        ("containerd containerd.io 1.6.32 8b3b7ca2e5ce38e8f31a34f35b2b68ceb8470d89", (1, 6, 32), 2, True),
        ("containerd github.com/containerd/containerd v1.7.15 926c958", (1, 7, 15), 2, False),
        ("containerd github.com/containerd/containerd v1.7.35 926c958", (1, 7, 35), 2, True),
        ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", (2, 1, 9), 3, True),
        ("containerd github.com/containerd/containerd/v2 v2.2.0-beta.1 ", (2, 2, 0), 3, True),
        ("containerd github.com/containerd/containerd/v2 2.3.0 ", (2, 3, 0), 4, True),
        ("containerd github.com/k3s-io/containerd v2.4.2-k3s1", (2, 4, 2), 4, True),
    ],
)
def test_versions(said: str, release: tuple[int, ...], config: int, exports: bool, tmp_path: Path) -> None:
    """
    containerd's own version tells the version of its configuration, and whether it reads exports.
    """
    program = tmp_path / "containerd"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    found = containerd.installed(str(program))
    assert (found, found.config, found.reads_exports) == (release, config, exports)


@pytest.mark.parametrize("script", ["echo what", "echo no >&2; exit 1"])
def test_no_version(script: str, tmp_path: Path) -> None:
    """
    A program that is not there, fails, or says something else, is named with what it said.
    """
    program = tmp_path / "containerd"
    with pytest.raises(FailedPreconditionError, match=r"there is no .*--config-version"):
        containerd.installed(str(program))
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(FailedPreconditionError, match="cannot run"):
        containerd.installed(str(program))
    program.chmod(0o755)
    with pytest.raises(FailedPreconditionError, match=r"what|no"):
        containerd.installed(str(program))


@pytest.mark.parametrize("version", VERSIONS)
def test_drop_in(version: ConfigVersion) -> None:
    """
    The drop-in names the plugin, and from version 3 on what unpacks for it, beside the default that this takes away.
    """
    values = tomllib.loads(drop_in(CRI, version, NO_MAIN))
    assert values.pop("version") == version
    capabilities = {"capabilities": ["remap-ids"]} if version > 2 else {}
    assert values.pop("proxy_plugins") == {
        PLUGIN.name: {"type": "snapshot", "address": PLUGIN.address, "exports": {"root": PLUGIN.root}, **capabilities}
    }
    if version == 2:
        assert values == {"plugins": {"io.containerd.grpc.v1.cri": {"containerd": {"snapshotter": PLUGIN.name}}}}
    else:
        unpack: list[dict[str, Any]] = [
            {"platform": "linux", "snapshotter": name} for name in ("overlayfs", PLUGIN.name)
        ]
        if version > 3:
            unpack[1]["optional"] = True
        cri = {"snapshotter": PLUGIN.name}
        assert values == {"plugins": {TRANSFER: {"unpack_config": unpack}, "io.containerd.cri.v1.images": cri}}
    assert "cri" not in drop_in(PLUGIN, version, NO_MAIN)
    assert "capabilities" not in drop_in(PLUGIN, version, NO_MAIN)


@pytest.mark.parametrize(
    ("release", "maps"),
    [("6.18.44", True), ("5.15.0-rc1", True), ("5.14.21-150500.55", False), ("4.19", False), ("odd", False)],
)
def test_kernels(release: str, maps: bool) -> None:
    """
    btrfs maps ids since Linux 5.15.
    """
    assert containerd.kernel_maps_ids(release) == maps


def test_documented() -> None:
    """
    The files that the docs show are those that are written.
    """
    docs = (Path(__file__).parents[3] / "docs/containerd.md").read_text()
    text = drop_in(CRI, 4, NO_MAIN)
    assert f"```toml\n{text}```" in docs
    _, plugin, *_ = text.split("\n\n")
    kubernetes = (Path(__file__).parents[3] / "docs/kubernetes.md").read_text()
    assert f'{{{{ template "base" . }}}}\n{plugin}\n```' in kubernetes


@given(
    root=st.text(st.characters(exclude_categories=["Cs"])),
    address=st.text(st.characters(exclude_categories=["Cs"])),
    entry=st.dictionaries(st.text(), st.text() | st.booleans() | st.integers() | st.lists(st.text())),
)
def test_always_toml(root: str, address: str, entry: dict[str, Any]) -> None:
    """
    Whatever paths hold, and whatever was configured before, the drop-in is TOML that says it.
    """
    plugin = Plugin("x", root, address, cri=True)
    main = Main("/c", {"plugins": {TRANSFER: {"unpack_config": [entry]}}})
    for version in VERSIONS:
        told = tomllib.loads(drop_in(plugin, version, main))["proxy_plugins"]["x"]
        assert (told["address"], told["exports"]["root"]) == (address, root)


def test_keeps_unpacking() -> None:
    """
    Entries of the main file, which the drop-in's would replace, are in it, and ours is there once.
    """
    entries = [{"platform": "linux/amd64", "snapshotter": "native", "optional": True}]
    main = Main("/c", {"plugins": {TRANSFER: {"unpack_config": [*entries, {"snapshotter": PLUGIN.name}]}}})
    told = tomllib.loads(drop_in(PLUGIN, 4, main))["plugins"][TRANSFER]["unpack_config"]
    assert told == [*entries, {"platform": "linux", "snapshotter": PLUGIN.name, "optional": True}]


@pytest.mark.parametrize("name", ["btrfs", "native", "overlayfs", "stargz"])
def test_built_in_names(name: str) -> None:
    """
    A name of containerd's own is refused, with the reason.
    """
    with pytest.raises(InvalidArgumentError, match="does not start with two of one name"):
        Plugin(name, "/r", "/a")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "a/b", "é", "x" * 77, "a\n"])
def test_unfit_names(name: str) -> None:
    """
    A name that containerd would refuse is refused here.
    """
    with pytest.raises(InvalidArgumentError, match="not a valid name for containerd"):
        Plugin(name, "/r", "/a")


def test_unfit_paths() -> None:
    """
    A path that is no text cannot be configured.
    """
    with pytest.raises(InvalidArgumentError, match="not UTF-8"):
        Plugin("x", "/\udcff", "/a")


def said(plugin: Plugin, version: ConfigVersion, main: Main, release: Version | None = None) -> str:
    return "\n".join(advice(plugin, version, release, main, DROP_IN))


def test_advice_on_imports() -> None:
    """
    Unless the main file imports the drop-in, the way to do so is said.
    """
    line = 'imports = ["/etc/containerd/conf.d/*.toml"]'
    assert f"create /etc/containerd/config.toml:\n    version = 3\n    {line}" in said(PLUGIN, 3, NO_MAIN)
    assert f"add to /c/config.toml, above its first section:\n    {line}" in said(
        PLUGIN, 3, Main("/c/config.toml", {"version": 3, "imports": ["conf.d/*.toml", "/etc/other.toml", 7]})
    )
    for pattern in (line.split('"')[1], DROP_IN, "conf.d/btrfs-snapshotter.toml", "/etc/containerd/*/*.toml"):
        main = Main("/etc/containerd/config.toml", {"version": 3, "imports": [pattern]})
        assert "imports" not in said(PLUGIN, 3, main)


def test_advice_on_versions() -> None:
    """
    A main file of containerd 1.x below a drop-in of 2.0 to 2.2 is to be migrated; later releases lose nothing.
    """
    assert "config migrate" in said(PLUGIN, 3, Main("/c", {"version": 2}))
    assert "config migrate" in said(PLUGIN, 3, Main("/c", {}))
    assert "config migrate" not in said(PLUGIN, 4, Main("/c", {"version": 2}))
    assert "config migrate" not in said(PLUGIN, 4, Main("/c", {"version": 3})) + said(PLUGIN, 3, NO_MAIN)


def test_advice_on_cri() -> None:
    """
    Where a drop-in would replace settings of CRI the line is to be added by hand, and is not in the drop-in.
    """
    main = Main("/c", {"version": 2, "plugins": {"io.containerd.grpc.v1.cri": {"sandbox_image": "mine"}}})
    assert "cri" not in drop_in(CRI, 2, main)
    section = '[plugins."io.containerd.grpc.v1.cri"."containerd"]\n      snapshotter = "btrfs-snapshotter"'
    assert f"Add this line by hand:\n    {section}" in said(CRI, 2, main)
    assert "by hand" not in said(CRI, 3, main) + said(CRI, 2, NO_MAIN) + said(PLUGIN, 2, main)
    assert "with --cri" in said(PLUGIN, 4, NO_MAIN)


def test_advice_on_exports() -> None:
    """
    For a containerd that reads no exports, the root is said where CRI looks for it.
    """
    guessed = "/data/io.containerd.snapshotter.v1.btrfs-snapshotter"
    main = Main("/c", {"root": "/data"})
    assert guessed in said(PLUGIN, 2, main)
    assert guessed in said(PLUGIN, 2, main, Version(1, 6, 20))
    assert guessed not in said(PLUGIN, 2, main, Version(1, 7, 35)) + said(PLUGIN, 3, main)


def test_advice_on_other_clients() -> None:
    """
    Programs that are on the machine are told of, and no others.
    """
    words = {
        "nerdctl": "ctr and nerdctl: --snapshotter btrfs-snapshotter",
        "k3s": "snapshotter setup containerd --for k3s",
        "rke2": "snapshotter setup containerd --for rke2",
        "dockerd": "snapshotter setup docker",
        "buildkitd": "--oci-worker-proxy-snapshotter",
    }
    assert set(words) == set(containerd.CLIENTS)
    for version in VERSIONS:
        for program in words:
            text = "\n".join(advice(PLUGIN, version, None, NO_MAIN, DROP_IN, {program}))
            assert [other for other in words if words[other] in text] == [program]


@pytest.mark.parametrize("version", [3, 4])
def test_runtime_class(version: ConfigVersion) -> None:
    """
    The snapshotter of a RuntimeClass is set for its pods and for its images, and the default stays.
    """
    plugin = replace(PLUGIN, runtime_class="on-btrfs")
    plugins = tomllib.loads(drop_in(plugin, version, NO_MAIN))["plugins"]
    runtime = {"runtime_type": "io.containerd.runc.v2", "snapshotter": PLUGIN.name}
    assert plugins["io.containerd.cri.v1.runtime"] == {"containerd": {"runtimes": {"on-btrfs": runtime}}}
    assert plugins["io.containerd.cri.v1.images"] == {"runtime_platforms": {"on-btrfs": {"snapshotter": PLUGIN.name}}}
    assert "Kubernetes keeps" not in said(plugin, version, NO_MAIN)
    text = GOOD.split('[plugins."io.containerd.cri')[0]
    lines = missing(replace(plugin, maps_ids=True), text)
    assert [line.partition(":")[0] for line in lines] == [
        'plugins."io.containerd.cri.v1.runtime"."containerd"."runtimes"."on-btrfs".snapshotter',
        'plugins."io.containerd.cri.v1.images"."runtime_platforms"."on-btrfs".snapshotter',
    ]


def test_runtime_class_of_containerd_1() -> None:
    """
    containerd 1.x cannot be told by a drop-in.
    """
    with pytest.raises(FailedPreconditionError, match="needs containerd 2"):
        drop_in(replace(PLUGIN, runtime_class="x"), 2, NO_MAIN)


GOOD = f"""
version = 3
root = "/var/lib/containerd"
[proxy_plugins.btrfs-snapshotter]
type = "snapshot"
address = "{PLUGIN.address}"
capabilities = ["remap-ids"]
exports = {{ root = "{PLUGIN.root}" }}
[[plugins."{TRANSFER}".unpack_config]]
snapshotter = "overlayfs"
[[plugins."{TRANSFER}".unpack_config]]
snapshotter = "btrfs-snapshotter"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "btrfs-snapshotter"
"""


@pytest.mark.parametrize(
    ("before", "after", "lack"),
    [
        ("[proxy_plugins.btrfs-snapshotter]", "[proxy_plugins.other]", "missing; check that the drop-in is imported"),
        ('type = "snapshot"', 'type = "content"', "type: is 'content', has to be 'snapshot'"),
        (PLUGIN.address, "/run/other.sock", "address: is '/run/other.sock'"),
        (PLUGIN.root, "/other", "exports.root: kubelet measures disk usage at '/other'"),
        (f'exports = {{ root = "{PLUGIN.root}" }}', "", "at '/var/lib/containerd/io.containerd.snapshotter.v1.btrfs-"),
        ('"remap-ids"]', '"remap-ids", "rebase"]', "does not support 'rebase'"),
        ('"remap-ids"]', "]", "lacks 'remap-ids', so a container with a user namespace copies its image"),
        ('snapshotter = "overlayfs"', 'snapshotter = "native"', "no entry for 'overlayfs'"),
        ('snapshotter = "btrfs-snapshotter"\n[plugins', "[plugins", "no entry for 'btrfs-snapshotter'"),
        (
            'images"]\nsnapshotter = "btrfs-snapshotter"',
            'images"]\nsnapshotter = "btrfs"',
            "is 'btrfs', has to be 'btrfs-snapshotter'",
        ),
        ("version = 3", 'version = 3\ndisabled_plugins = ["cri"]', "disables CRI"),
    ],
)
def test_check(before: str, after: str, lack: str) -> None:
    """
    Each thing that is missing is named, and what is there is not.
    """
    assert missing(CRI, GOOD) == []
    assert before in GOOD
    [line] = missing(CRI, GOOD.replace(before, after))
    assert lack in line


def test_check_without_maps() -> None:
    """
    A capability that the kernel lacks is named.
    """
    [line] = missing(replace(CRI, maps_ids=False), GOOD)
    assert "does not support 'remap-ids' here" in line


def test_check_without_cri() -> None:
    """
    A configuration without CRI lacks nothing of CRI's.
    """
    assert missing(replace(CRI, cri=False), GOOD.split('[plugins."io.containerd.cri')[0]) == []


@pytest.mark.parametrize("dump", ["", "nonsense", "version = 'x'", "version = 1", "version = [2]"])
def test_check_of_nonsense(dump: str) -> None:
    """
    Text that is no dump is refused by this name, rather than for everything that it lacks.
    """
    with pytest.raises(InvalidArgumentError, match="not an output of `containerd config dump`"):
        missing(PLUGIN, dump)


def test_main_file(tmp_path: Path) -> None:
    """
    A main file that is not there is no error; one that cannot be read is.
    """
    assert not containerd.read_main(str(tmp_path / "config.toml")).exists
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        containerd.read_main(str(tmp_path))
    (tmp_path / "config.toml").write_text("version = ")
    with pytest.raises(InvalidArgumentError, match=r"config\.toml"):
        containerd.read_main(str(tmp_path / "config.toml"))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The drop-in is printed, or written where none was; the advice is not in it.
    """
    monkeypatch.setenv("SNAPSHOTTER_ROOT", "/data/store")
    main = ["--containerd-config", str(tmp_path / "config.toml")]
    command = ["setup", "containerd", "--config-version", "3", "--address", "/run/x.sock", "--name", "x", *main]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert tomllib.loads(printed.out)["proxy_plugins"]["x"]["exports"]["root"] == "/data/store"
    assert "restart containerd" in printed.err
    assert cli.main([*command, "--write", str(tmp_path / "conf.d/x.toml")]) == 0
    assert (tmp_path / "conf.d/x.toml").read_text() == printed.out
    assert capsys.readouterr().out == ""
    assert cli.main([*command, "--name", "btrfs"]) == codes.USAGE


def test_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A check ends with 0 or 1, and prints a line for each thing that is missing.
    """
    dump = tmp_path / "dump"
    dump.write_text(GOOD)
    assert cli.main(["setup", "containerd", "--check", str(dump)]) == 0
    assert capsys.readouterr().out == "nothing is missing\n"
    dump.write_text("version = 3")
    assert cli.main(["setup", "containerd", "--check", str(dump), "--cri"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_check_of_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A check of this machine fails if no daemon with an open store answers at the address.
    """
    program = tmp_path / "containerd"

    def check(address: str) -> tuple[int, str]:
        text = GOOD.replace(PLUGIN.address, address)
        program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}EOF\n")
        program.chmod(0o755)
        command = ["setup", "containerd", "--containerd", str(program), "--containerd-config", f"{tmp_path}/none"]
        code = cli.main([*command, "--check", "--root", PLUGIN.root, "--address", address])
        return code, capsys.readouterr().out

    where = f"proxy_plugins.{PLUGIN.name}.address:"
    missing = f"{tmp_path}/missing"
    why = "[Errno 2] No such file or directory; start the daemon"
    assert check(missing) == (1, f"{where} no answer from '{missing}': {why}\n")
    with serving() as server:
        code, out = check(server.address)
        assert code == 1
        assert out.startswith(
            f"{where} the daemon at '{server.address}' is opening its store, or its filesystem failed;"
        )
        with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store:
            server.open(store)
            assert check(server.address) == (0, "nothing is missing\n")


def test_systemd_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The units are printed with their paths, or written, for the program that runs.
    """
    command = ["setup", "systemd", "--root", "/data", "--address", "/run/x.sock"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert cli.main([*command, "--write", str(tmp_path)]) == 0
    capsys.readouterr()
    written = {path.name: path.read_text() for path in sorted(tmp_path.iterdir())}
    assert printed.out == "".join(f"# /etc/systemd/system/{name}\n{text}\n" for name, text in written.items())
    assert "systemctl daemon-reload" in printed.err
    assert " serve --no-create --root /data --address /run/x.sock" in written["btrfs-snapshotter.service"]


def main_of(path: Path, text: str) -> Main:
    path.write_text(text)
    return containerd.read_main(str(path))


@pytest.mark.parametrize(
    ("newest", "text", "version"),
    [(2, 'disabled_plugins = ["cri"]', 1), (2, "version = 2", 2), (3, "", 3), (4, "version = 2", 4)],
)
def test_drop_in_version(newest: ConfigVersion, text: str, version: int, tmp_path: Path) -> None:
    """
    The drop-in has the newest version that the containerd reads, but version 1 beside a main file of version 1.
    """
    main = main_of(tmp_path / "config.toml", text)
    assert containerd.drop_in_version(newest, main) == version
    assert containerd.drop_in_version(newest, NO_MAIN) == newest


def test_drop_in_of_version_1(tmp_path: Path) -> None:
    """
    Beside a main file of version 1 the drop-in has no settings of CRI, and the advice says how to get them.
    """
    main = main_of(tmp_path / "config.toml", 'disabled_plugins = ["cri"]')
    assert "plugins" not in tomllib.loads(drop_in(CRI, 1, main))
    assert 'Add "version = 2" to it' in said(CRI, 1, main)
    assert "Kubernetes keeps" not in said(PLUGIN, 1, main)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# mine\nversion = 2\n[plugins]\n[plugins.x]\na = 1\n",
        'version = 2\nimports = ["/other/*.toml"] # more\n[a]\nimports = ["b"]\n',
        "imports=[]",
        "version = 2\n  imports = [\n  '/a',\n  '/b',\n]\nroot = '/r'\n",
    ],
)
def test_importing(text: str, tmp_path: Path) -> None:
    """
    The import is added to those of the main file, all else stays, and a second time changes nothing.
    """
    path = tmp_path / "config.toml"
    main = main_of(path, text)
    extended = containerd.importing(main, DROP_IN, 4)
    assert tomllib.loads(extended) == {**main.values, "imports": [DROP_IN, *main.values.get("imports", [])]}
    assert [line for line in text.splitlines() if "import" not in line and line not in extended] == []
    assert containerd.importing(main_of(path, extended), DROP_IN, 4) == extended


def test_importing_new() -> None:
    """
    Without a main file, the import is the whole file.
    """
    assert tomllib.loads(containerd.importing(NO_MAIN, DROP_IN, 4)) == {"version": 4, "imports": [DROP_IN]}


@pytest.mark.parametrize("text", ['"imports" = []', "imports = 'x'", "x = '''\nimports = [\n'''\nimports = []"])
def test_importing_by_hand(text: str, tmp_path: Path) -> None:
    """
    Imports in a form that cannot be extended safely are left to the operator.
    """
    main = main_of(tmp_path / "config.toml", text)
    with pytest.raises(FailedPreconditionError, match="by hand"):
        containerd.importing(main, DROP_IN, 4)
