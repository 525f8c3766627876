"""
Errors when containerd cannot be asked. Its answers are tested with a real containerd.
"""

import socket
from pathlib import Path

import pytest

from snapshotter.analysis import references
from snapshotter.errors import InvalidArgumentError, UnavailableError


@pytest.mark.parametrize("key", ["", "web", "a/b", "default/x/web", "/1/web", "default/1/"])
def test_other_keys(key: str) -> None:
    """
    A key that does not have containerd's form is refused.
    """
    with pytest.raises(InvalidArgumentError):
        references.find("/nowhere", "plugin", key)


def test_nobody_there(tmp_path: Path) -> None:
    """
    A missing socket, and a peer that does not answer, are reported in time.
    """
    address = str(tmp_path / "s")
    with pytest.raises(UnavailableError, match="No such file"):
        references.find(address, "plugin", "default/1/a/b")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address)
        silent.listen()
        with pytest.raises(UnavailableError, match="timed out"):
            references.find(address, "plugin", "default/1/a/b", timeout=0.1)
