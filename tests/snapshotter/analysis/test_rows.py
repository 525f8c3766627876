"""
The choice among several containerds. Their rows are compared with real containerds, in tests/containerd.
"""

from pathlib import Path

import pytest

from snapshotter.analysis import references, rows
from snapshotter.analysis.references import NotLoadedError
from snapshotter.errors import UnavailableError


@pytest.fixture(autouse=True)
def containerds(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The containerd "not" has not loaded the snapshotter, "silent" does not answer, any other one names its daemon.
    """

    def locate(address: str, snapshotter: str) -> str:
        if address in ("not", "silent"):
            raise (NotLoadedError if address == "not" else UnavailableError)(address)
        return f"/{snapshotter}/{address}"

    monkeypatch.setattr(references, "locate", locate)


def test_locate() -> None:
    """
    A containerd without the snapshotter is left out if another one has it, and a silent one may be the client.
    """
    assert rows.locate(["not", "a", "b"], "s") == {"a": "/s/a", "b": "/s/b"}
    for addresses, error in ((["not", "not"], NotLoadedError), (["a", "silent"], UnavailableError)):
        with pytest.raises(error, match=addresses[-1]):
            rows.locate(addresses, "s")


def test_users(tmp_path: Path) -> None:
    """
    The users of a daemon are found by its socket, whatever the path to it.
    """
    (tmp_path / "link").symlink_to("/s")
    assert rows.users(["not", "a", "b"], "s", f"{tmp_path}/link/a") == ["a"]
    with pytest.raises(UnavailableError, match=r"is at '/other', but the containerd at 'a' uses '/s/a', the .* '/s/b'"):
        rows.users(["a", "b"], "s", "/other")
