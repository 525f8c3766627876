"""
The files of a rootless daemon are in the directories of its user.
"""

import tomllib
from pathlib import Path

import pytest

from snapshotter import cli
from snapshotter.cli import codes
from snapshotter.setup import rootless


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The XDG directories decide, or else their defaults.
    """
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert rootless.places({}) == (
        "/home/u/.local/share/btrfs-snapshotter",
        "/run/user/1000/btrfs-snapshotter/snapshotter.sock",
        "/home/u/.config/containerd/config.toml",
        "/home/u/.config/systemd/user",
    )
    given = {"XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"}
    assert rootless.places(given) == (
        "/d/btrfs-snapshotter",
        "/r/btrfs-snapshotter/snapshotter.sock",
        "/c/containerd/config.toml",
        "/c/systemd/user",
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    return tmp_path


def test_containerd(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    The drop-in is beside the user's main file, which imports it, and has no capability of the host's root.
    """
    main = home / "CONFIG_HOME/containerd/config.toml"
    main.parent.mkdir(parents=True)
    main.write_text("version = 3\n")
    assert cli.main(["setup", "containerd", "--rootless", "--config-version", "3", "--write"]) == codes.DONE
    [drop_in] = tomllib.loads(main.read_text())["imports"]
    plugin = tomllib.loads(Path(drop_in).read_text())["proxy_plugins"]["btrfs-snapshotter"]
    assert plugin == {
        "type": "snapshot",
        "address": str(home / "RUNTIME_DIR/btrfs-snapshotter/snapshotter.sock"),
        "exports": {"root": str(home / "DATA_HOME/btrfs-snapshotter")},
    }
    assert "add to" not in capsys.readouterr().err


def test_own_places(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A root and an address that are given stay.
    """
    given = ["--root", "/own/root", "--address", "/own/socket"]
    assert cli.main(["setup", "systemd", "--rootless", *given]) == codes.DONE
    printed, said = capsys.readouterr()
    assert "--root /own/root --address /own/socket\n" in printed
    assert "systemctl --user enable --now btrfs-snapshotter-rootless.service" in said
    assert str(home / "CONFIG_HOME/systemd/user") in said


def test_configuration_of_the_system(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The root and the address in the system's configuration are not those of a rootless daemon; in a named file they are.
    """
    file = tmp_path / "system.toml"
    file.write_text('version = 1\nroot = "/system/root"\naddress = "/system/socket"\n')
    assert cli.main(["setup", "systemd", "--rootless", "--config", str(file)]) == codes.DONE
    assert "--root /system/root --address /system/socket\n" in capsys.readouterr().out
    monkeypatch.delenv("SNAPSHOTTER_CONFIG")
    for module in "snapshotter.daemon.config", "snapshotter.cli.commands.setup":
        monkeypatch.setattr(f"{module}.FILE", str(file))
    assert cli.main(["setup", "systemd", "--rootless"]) == codes.DONE
    assert f"--root {home / 'DATA_HOME/btrfs-snapshotter'} --address" in capsys.readouterr().out
