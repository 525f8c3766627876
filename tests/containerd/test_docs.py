"""
The commands of docs/containerd.md, run on a new machine.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import images
from .processes import CRI, DISABLED, SNAPSHOTTER, TRACING
from .registry import Registry

ROOT = Path(__file__).parent.parent.parent
DOCS = (ROOT / "docs/containerd.md").read_text()

# A stand-in for systemd: it starts a program as its unit says, and waits for it.
SYSTEMCTL = """\
#!/bin/sh -eu
start() { # a command, and the test that it runs
    $1 >> /var/lib/log 2>&1 &
    until $2 > /dev/null 2>&1; do kill -0 $!; sleep 0.1; done
}
case "$*" in
    daemon-reload) ;;
    "enable --now btrfs-snapshotter.socket btrfs-snapshotter.service")
        start "$(sed -n 's/^ExecStart=//p' /etc/systemd/system/btrfs-snapshotter.service)" "snapshotter ping" ;;
    "restart containerd") start containerd "ctr version" ;;
    *) exit 1 ;;
esac
"""

# Own namespaces hide the files of this machine at the paths that the docs use. Everything ends with the shell.
MACHINE = """\
set -eu
cp -a /etc "$1/etc"
rm -rf "$1/etc/containerd"
mkdir -p "$1/var" "$1/run" "$1/etc/containerd" "$1/etc/systemd/system"
for place in etc run; do mount --bind "$1/$place" /$place; done
mount --bind "$1/var" /var/lib
exec sh -eu "$2"
"""

ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def commands(section: str) -> list[tuple[str, str]]:
    """
    Return the commands in the console examples of a section, each with its output there.
    """
    text = DOCS.split(f"## {section}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    sessions = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    steps = re.split(r"^\$ ", sessions, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (step.partition("\n") for step in steps)]


@pytest.mark.btrfs
def test_set_up(release: Path, directory: Path, registry: Registry) -> None:
    """
    Every command of the set-up works and prints the output in the docs, and the last runs a container.
    """
    reference = registry.add(images.every_kind("example.org/busybox:latest"))
    asked = subprocess.run([release / "containerd", "config", "default"], capture_output=True, text=True, check=True)
    [version] = re.findall(r"^version = \d$", asked.stdout, re.MULTILINE)
    disabled = "disabled_plugins = [" + ", ".join(f'"{name}"' for name in DISABLED + TRACING + CRI) + "]"
    steps, expected = [f"printf '%s\\n' '{version}' '{disabled}' > /etc/containerd/config.toml"], []
    for command, shown in commands("Set it up"):
        if "/opt/btrfs-snapshotter" in command or command.startswith("apt-get "):
            continue  # the package is installed; tests/packaging tests the installation
        command = command.replace("--image 20G", "--image 1G").replace("docker.io/library/busybox:latest", reference)
        command = command.replace("images pull ", "images pull --plain-http ")
        if "--check" in command and release == Path("/usr/bin"):
            continue  # this containerd reads no exports, as the docs say
        steps += [f"echo '$ {len(expected)}'", command]
        expected.append((command, shown))
    (directory / "steps").write_text("\n".join(steps))
    (directory / "bin").mkdir()
    (directory / "bin/systemctl").write_text(SYSTEMCTL)
    (directory / "bin/systemctl").chmod(0o755)
    path = os.pathsep.join([f"{directory}/bin", str(SNAPSHOTTER.parent), str(release), os.environ["PATH"], "/usr/sbin"])
    done = subprocess.run(
        [*ALONE, "sh", "-c", MACHINE, "sh", str(directory), str(directory / "steps")],
        cwd=directory,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    log = directory / "var/log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    printed = re.split(r"^\$ \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for (command, shown), told in zip(expected, printed, strict=True):
        assert shown in ("", told), command


def test_every_command_is_one() -> None:
    """
    Other commands and files in the docs exist in this release.
    """
    for section in ("Set it up", "BuildKit"):
        for command, _ in commands(section):
            if command.startswith("snapshotter "):
                words = command.removesuffix(" &").split()[1:]
                asked = subprocess.run([sys.executable, "-m", "snapshotter", *words, "--help"], capture_output=True)
                assert asked.returncode == 0, command
