"""
Mounts in the mount namespace of another process.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def other_namespace(script: str, *arguments: Any) -> Iterator[None]:
    """
    Run *script* in a process with its own mount namespace, which ends with the ``with``.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f"{script}; echo ready; read end", "sh"]
    process = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.communicate(b"\n")
    assert process.returncode == 0


def source(path: Path) -> str:
    """
    Return the device of the filesystem at *path*.
    """
    found = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()]
    mount = max((line for line in found if str(path).startswith(line[4])), key=lambda line: len(line[4]))
    return mount[mount.index("-") + 2]
