"""
Counters of refused writes: which differences mean that data may be lost.
"""

import pytest

from snapshotter.store.counters import Counters


def counters(devices: dict[int, int] | None, survives: int = 0, missing: tuple[int, ...] = ()) -> Counters:
    return Counters(sum(devices.values()) if devices else 0, devices, survives, frozenset(missing))


@pytest.mark.parametrize(
    ("before", "now", "differing"),
    [
        ({1: 0}, {1: 0}, set()),
        ({1: 3, 2: 0}, {1: 3, 2: 0}, set()),
        ({1: 0}, {1: 1}, {1}),
        ({1: 3}, {1: 0}, {1}),  # reset
        ({1: 3, 2: 0}, {1: 0, 2: 3}, {1, 2}),  # of the same sum
        ({1: 0, 2: 3}, {1: 0}, {2}),  # removed
        ({1: 0, 2: 0}, {1: 0}, {2}),
        ({1: 0}, {1: 0, 2: 0}, set()),  # added
        ({1: 0}, {1: 0, 2: 1}, {2}),
    ],
)
def test_difference(before: dict[int, int], now: dict[int, int], differing: set[int]) -> None:
    """
    Any other counter is a difference, and a removed device has an unknown one. An added device begins with zero.
    """
    assert counters(before).differing(counters(now)) == differing
    assert counters(before).may_have_lost(counters(now)) is bool(differing)


@pytest.mark.parametrize(("total", "lost"), [(2, True), (3, False), (4, True)])
@pytest.mark.parametrize("survives", [0, 1])
def test_record_of_an_older_release(total: int, survives: int, lost: bool) -> None:
    """
    Where only a sum is recorded, any other sum means that data may be lost, whatever the profile is.
    """
    assert Counters(3).may_have_lost(Counters(total, {1: total, 2: 0}, survives)) is lost


def test_without_devices() -> None:
    """
    Volumes without devices lose nothing.
    """
    assert not Counters().may_have_lost(Counters())


@pytest.mark.parametrize("survives", [0, 1, 2, 3])
@pytest.mark.parametrize("differing", [1, 2, 3, 4])
def test_survived(survives: int, differing: int) -> None:
    """
    As many devices may differ as every block group survives, both when the snapshot was prepared and now.
    """
    before = dict.fromkeys((1, 2, 3, 4), 0)
    now = before | dict.fromkeys(range(1, differing + 1), 7)
    assert counters(before, survives).may_have_lost(counters(now, survives)) is (differing > survives)
    assert counters(before, 0).may_have_lost(counters(now, survives))
    assert counters(before, survives).may_have_lost(counters(now, 0))


def test_missing() -> None:
    """
    A missing device has no copy: with another device that differs, nothing survives; alone it is no difference.
    """
    before = counters({1: 0, 2: 0}, 1)
    assert not before.may_have_lost(counters({1: 0, 2: 0}, 1, (2,)))
    assert not before.may_have_lost(counters({1: 0, 2: 5}, 1, (2,)))
    assert before.may_have_lost(counters({1: 5, 2: 0}, 1, (2,)))


def test_begun_while_missing() -> None:
    """
    A snapshot that begins while a device is missing has one copy less of its data.
    """
    before = counters({1: 0, 2: 0}, 1, (2,)).to_record()
    assert before == counters({1: 0, 2: 0})
    assert before.may_have_lost(counters({1: 5, 2: 0}, 1))
    assert counters({1: 0, 2: 0, 3: 0}, 2, (2,)).to_record().survives == 1
    assert counters({1: 0}, 0, (2,)).to_record().survives == 0
