"""
The files of k3s and RKE2. A real containerd reads them in tests/containerd/test_setup.py.
"""

import os
import tomllib
from pathlib import Path

import pytest

from snapshotter.errors import FailedPreconditionError
from snapshotter.setup.containerd import Plugin, read_main
from snapshotter.setup.rancher import DISTRIBUTIONS, advice, file_for

PLUGIN = Plugin("btrfs-snapshotter", "/var/lib/btrfs-snapshotter", "/run/btrfs-snapshotter/snapshotter.sock")


@pytest.mark.parametrize(("version", "stem"), [(3, "config-v3.toml"), (2, "config.toml")])
def test_drop_in(version: int, stem: str, tmp_path: Path) -> None:
    """
    Where the rendered file imports a directory, the file is a drop-in, without settings of CRI.
    """
    (tmp_path / "config.toml").write_text(f'version = {version}\nimports = ["{tmp_path}/{stem}.d/*.toml"]\n')
    path, text = file_for(PLUGIN, read_main(str(tmp_path / "config.toml")))
    assert path == f"{tmp_path}/{stem}.d/btrfs-snapshotter.toml"
    values = tomllib.loads(text)
    assert values["version"] == version
    assert values["proxy_plugins"][PLUGIN.name]["address"] == PLUGIN.address
    assert not any("cri" in name for name in values.get("plugins", {}))


@pytest.mark.parametrize(("version", "stem"), [(3, "config-v3.toml"), (2, "config.toml")])
def test_template(version: int, stem: str, tmp_path: Path) -> None:
    """
    Elsewhere the file is a template: what is in it stays, and the section is added once.
    """
    (tmp_path / "config.toml").write_text(f"version = {version}\n")
    main = read_main(str(tmp_path / "config.toml"))
    path, text = file_for(PLUGIN, main)
    assert path == f"{tmp_path}/{stem}.tmpl"
    assert text.startswith('{{ template "base" . }}\n[proxy_plugins."btrfs-snapshotter"]\n')
    Path(path).write_text('{{ template "base" . }}\n[debug]\n  level = "debug"\n')
    _, text = file_for(PLUGIN, main)
    assert text.startswith('{{ template "base" . }}\n[debug]\n  level = "debug"\n[proxy_plugins')
    Path(path).write_text(text)
    assert file_for(PLUGIN, main) == (path, text)


def test_never_started(tmp_path: Path) -> None:
    """
    Before the first start of the node it is not known what it reads.
    """
    with pytest.raises(FailedPreconditionError, match="start the node once"):
        file_for(PLUGIN, read_main(str(tmp_path / "config.toml")))


@pytest.mark.parametrize("name", ["k3s", "rke2"])
def test_distributions(name: str) -> None:
    """
    Each distribution has its own paths, and the advice names its settings and its unit.
    """
    distribution = DISTRIBUTIONS[name]
    assert distribution.main == f"/var/lib/rancher/{name}/agent/etc/containerd/config.toml"
    assert os.path.basename(distribution.containerd) == "containerd"
    steps = "\n".join(advice(PLUGIN, distribution))
    for words in (
        f"/etc/rancher/{name}/config.yaml",
        "snapshotter: btrfs-snapshotter",
        f"restart {name}",
        f"--for {name}",
    ):
        assert words in steps
