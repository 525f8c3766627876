"""
Every decoder with what the fuzzer found worth keeping, and with what hypothesis makes of that.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybtrfs import items
from tests.fuzz.targets import CORPUS, TARGETS, corpus


@st.composite
def mutations(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """
    One of *inputs*, with a piece of it replaced.
    """
    data = draw(st.sampled_from(inputs))
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=40)) + data[end:]


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    """
    What was found before is decoded or refused as it has to be.
    """
    inputs = list(corpus(name))
    assert inputs
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    """
    So is what lies near it, and anything else.
    """

    @settings(max_examples=30)
    @given(mutations(list(corpus(name))) | st.binary())
    def decode(data: bytes) -> None:
        TARGETS[name](data)

    decode()


def test_every_corpus_has_a_target() -> None:
    """
    No corpus is forgotten.
    """
    assert {path.stem for path in CORPUS.iterdir()} == TARGETS.keys()


def test_targets_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A decoder that believes the length of a name is caught by what is replayed.
    """
    monkeypatch.setattr(items, "_cut", lambda data, offset, length: data[offset : offset + length])
    with pytest.raises(AssertionError):
        test_corpus("dir_item")
