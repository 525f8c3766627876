"""
Docker Engine as a client of containerd, with the daemon as its storage driver.
"""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from pybtrfs import syscall
from tools import debian

from .builds import UnavailableError
from .processes import PATIENCE, PLUGIN, SNAPSHOTTER, Cgroup, Containerd, Daemon, Process

_DOCKERD, _DOCKER = "usr/sbin/dockerd", "usr/bin/docker"
_PLUGINS = "usr/libexec/docker/cli-plugins"

# Without networks, because the tests need none. Containers keep running while dockerd restarts.
_SETTINGS = {"bridge": "none", "iptables": False, "ip6tables": False, "userland-proxy": False, "live-restore": True}


def programs(suite: str) -> Path:
    """
    Return a directory with Docker Engine of Debian's *suite*, its command and its plugin for builds.

    Raises:
        UnavailableError: The packages are not available on this machine.
    """
    packages = ("docker.io", "docker-cli", "docker-buildx")
    try:
        return debian.programs(suite, packages, (_DOCKERD, _DOCKER, f"{_PLUGINS}/docker-buildx"))
    except debian.UnavailableError as error:
        raise UnavailableError(str(error)) from error


class DockerError(Exception):
    """
    The error of a docker command.
    """


class Engine(Process):
    """
    dockerd from *tree*, configured by ``snapshotter setup docker`` for *containerd* with *daemon*.

    Args:
        data: The directory of its persistent files, by default in *directory*.
    """

    def __init__(
        self, tree: Path, containerd: Containerd, daemon: Daemon, directory: Path, *, data: Path | None = None
    ) -> None:
        address = directory / "docker.sock"
        self.cgroup = Cgroup()
        self.config = directory / "daemon.json"
        self.config.write_text(json.dumps({**_SETTINGS, "cgroup-parent": self.cgroup.name}))
        self._setup = [SNAPSHOTTER, "setup", "docker", "--name", PLUGIN, "--root", daemon.root]
        self._setup += ["--address", daemon.address, "--containerd", containerd.binaries / "containerd"]
        self._setup += ["--containerd-config", containerd.config, "--daemon-json", self.config]
        self._setup += ["--docker-socket", address]
        self._docker = tree / _DOCKER
        settings = directory / "docker-cli"
        (settings / "cli-plugins").mkdir(parents=True)
        (settings / "cli-plugins/docker-buildx").symlink_to(tree / _PLUGINS / "docker-buildx")
        self._environment_of_docker = os.environ | {"DOCKER_HOST": f"unix://{address}", "DOCKER_CONFIG": str(settings)}
        self._data = data or directory / "docker"
        places = {
            "config-file": self.config,
            "containerd": containerd.address,
            "data-root": self._data,
            "exec-root": directory / "docker-exec",
            "pidfile": directory / "docker.pid",
        }
        command = [tree / _DOCKERD, f"--host=unix://{address}", *(f"--{name}={at}" for name, at in places.items())]
        path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin", str(tree / "usr/bin")])
        super().__init__(command, address, os.environ | {"PATH": path})

    def setup(self, action: str) -> subprocess.CompletedProcess[str]:
        """
        Run ``snapshotter setup docker`` with ``--write`` or ``--check``.
        """
        return subprocess.run([*self._setup, action], capture_output=True, text=True, timeout=PATIENCE)

    def docker(self, *arguments: str | Path, buildkit: bool = True) -> str:
        """
        Run ``docker``, and return its output without the last line break.

        Raises:
            DockerError: The command failed.
        """
        done = subprocess.run(
            [self._docker, *arguments],
            env=self._environment_of_docker | {"DOCKER_BUILDKIT": str(int(buildkit))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise DockerError(f"docker {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout.rstrip("\n")

    def succeeds(self, *arguments: str | Path) -> bool:
        """
        Return whether ``docker`` succeeds.
        """
        try:
            self.docker(*arguments)
        except DockerError:
            return False
        return True

    def run(self, image: str, script: str, *flags: str) -> str:
        """
        Run *script* by a shell in a new container, and return its output.
        """
        return self.docker("run", "--network", "none", *flags, image, "sh", "-ec", script)

    def prune(self) -> None:
        """
        Remove all containers, images and caches.
        """
        if containers := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", *containers)
        self.docker("builder", "prune", "--all", "--force")
        self.docker("system", "prune", "--all", "--force")

    def clear(self) -> None:
        """
        Kill the processes of containers, and unmount what a killed dockerd leaves mounted.
        """
        self.cgroup.clear()
        with contextlib.suppress(OSError):  # mounted only since a start with running containers
            syscall.umount2(self._data, syscall.MNT_DETACH)
