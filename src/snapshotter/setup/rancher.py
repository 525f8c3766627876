"""
containerd's configuration in k3s and RKE2, which render the main file themselves at each start.
"""

import os
from dataclasses import dataclass

from snapshotter.errors import FailedPreconditionError
from snapshotter.setup.containerd import ConfigVersion, Main, Plugin, drop_in, proxy_section

_BASE = '{{ template "base" . }}\n'


@dataclass(frozen=True, slots=True)
class Distribution:
    """
    A distribution of Kubernetes with a containerd of its own.

    Args:
        data: The directory of its data.
        settings: The file with the options of the node.
    """

    name: str
    data: str
    settings: str

    @property
    def containerd(self) -> str:
        """
        The path of its containerd.
        """
        return os.path.join(self.data, "data/current/bin/containerd")

    @property
    def main(self) -> str:
        """
        The path of the main file that it renders.
        """
        return os.path.join(self.data, "agent/etc/containerd/config.toml")


DISTRIBUTIONS = {
    name: Distribution(name, f"/var/lib/rancher/{name}", f"/etc/rancher/{name}/config.yaml") for name in ("k3s", "rke2")
}


def file_for(plugin: Plugin, main: Main) -> tuple[str, str]:
    """
    Return the path and the text of the file that declares *plugin*, for the distribution that rendered *main*.

    Releases of 2026 and later import a directory of drop-ins. Older releases render a template, if there is one, which
    begins with their own; the text has what is in the template already.

    Raises:
        FailedPreconditionError: *main* is not there.
    """
    if not main.exists:
        raise FailedPreconditionError(f"{main.path!r} does not exist: start the node once, which makes the file")
    version: ConfigVersion = 3 if main.version >= 3 else 2
    stem = os.path.join(os.path.dirname(main.path), "config-v3.toml" if version == 3 else "config.toml")
    path = f"{stem}.d/{plugin.name}.toml"
    if main.imports(path):
        return path, drop_in(plugin, version, main)
    path = f"{stem}.tmpl"
    section = proxy_section(plugin, version)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        text = _BASE
    return path, text if section in text else f"{text.rstrip()}\n{section}"


def advice(plugin: Plugin, distribution: Distribution) -> list[str]:
    """
    Return the steps that remain once the file of *distribution* is written.
    """
    return [
        f"add to {distribution.settings}:\n    snapshotter: {plugin.name}",
        f"drain the node, and restart it: systemctl restart {distribution.name}, or the unit of its agent",
        f"check the result: snapshotter setup containerd --for {distribution.name} --cri --check",
    ]
