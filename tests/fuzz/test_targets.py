"""
Every decoder on the corpus of the fuzzer, and on hypothesis's mutations of the corpus.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybtrfs import ioctl, items, subvolume
from tests.fuzz.targets import CORPUS, TARGETS, call, corpus


@st.composite
def mutations(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """
    Draw one of *inputs*, and replace a piece of it.
    """
    data = draw(st.sampled_from(inputs))
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=40)) + data[end:]


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    """
    Every input of the corpus passes its target.
    """
    inputs = list(corpus(name))
    assert inputs
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    """
    Mutations of the corpus and random bytes pass their target.
    """

    @settings(max_examples=30)
    @given(mutations(list(corpus(name))) | st.binary())
    def decode(data: bytes) -> None:
        TARGETS[name](data)

    decode()


@pytest.mark.btrfs
def test_arguments_on_btrfs(btrfs_mount: Callable[..., Path]) -> None:
    """
    On btrfs the functions of the raw floor accept or refuse any argument. Functions that wait are left out.
    """
    mount = btrfs_mount()
    subvolume.create(mount / "subvolume")
    (mount / "file").touch()
    fds = [os.open(mount / name, os.O_RDONLY) for name in (".", "subvolume", "file")]

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(st.binary(min_size=1, max_size=14))
    def call_something(data: bytes) -> None:
        call(data, fds, without=(ioctl.subvol_sync_wait, ioctl.start_sync, ioctl.wait_sync))

    try:
        call_something()
    finally:
        for fd in fds:
            os.close(fd)


def test_every_corpus_has_a_target() -> None:
    """
    Every corpus has a target, and every target a corpus.
    """
    assert {path.stem for path in CORPUS.iterdir()} == TARGETS.keys()


def test_targets_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Replaying the corpus catches a decoder that trusts the length of a name.
    """
    monkeypatch.setattr(items, "_cut", lambda data, offset, length: data[offset : offset + length])
    with pytest.raises(AssertionError):
        test_corpus("dir_item")
