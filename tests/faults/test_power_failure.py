"""
Power failures: acknowledged operations survive, and others have happened whole or not at all.
"""

import functools
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from pybtrfs import image
from snapshotter import Snapshotter
from snapshotter.errors import Error
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.store.volumes import Volumes
from tests import nodes

from .controls import FlagInsteadOfCopy, RefusesCommits, WithoutBarrier
from .disk import Disk
from .power import MODES, Log, Replay, Result, sweep
from .workload import STORE, Workload, verify

pytestmark = pytest.mark.btrfs

SIZE = 512 << 20
THREADS = 8
STEPS = 60


def recorded(base: Path, volumes: type[Volumes], seed: int, *, many: int = 0, option: str = "ssd") -> Log:
    """
    Run the workload on *volumes*, beginning with an empty store on the image *base*, and return the log of the disk.

    Args:
        option: The mount option ``ssd`` or ``nossd``, with which barriers take turns.
    """
    if not base.exists():
        image.create(base, SIZE, sparse=True)
    with Disk(str(base)) as disk:
        # The kernel's own commits must fall between our steps too, and are 30 s apart by default.
        with disk.mounted(f"commit=1,{option}") as mount:
            root = os.path.join(mount, STORE)
            Snapshotter.create(root).close()
            with Snapshotter(root, volumes=volumes, mount_mode="bind") as snapshotter:
                disk.mark('{"start": 0}')
                Workload(snapshotter, disk.mark, many=many).run(THREADS, STEPS, seed)
            disk.mark('{"stop": 0}')
        log = disk.log()
    print(
        f"{THREADS} threads, {len(log.marks) // 2} operations, {len(log.entries)} entries, {len(log.flushes)} flushes"
    )
    return log


def crash(base: Path, volumes: type[Volumes], points: int, seed: int, *, many: int = 0, option: str = "ssd") -> Result:
    """
    Cut the power at *points* places of the workload on *volumes*.
    """
    log = recorded(base, volumes, seed, many=many, option=option)
    return sweep(log, str(base), verify, points=points, seed=seed, start=log.marks[0] + 1)


@pytest.mark.parametrize("option", ["ssd", "nossd"])
def test_nothing_acknowledged_is_lost(option: str, tmp_path: Path) -> None:
    """
    At each of 300 crash points the store opens with all acknowledged snapshots, and with no others.
    """
    result = crash(tmp_path / "base", RefusesCommits, points=300, seed=1, option=option)
    assert not result.violations


@pytest.mark.parametrize("node_size", nodes.SIZES)
def test_records_in_pieces(node_size: int, tmp_path: Path) -> None:
    """
    The same holds for records in pieces, with nodes of any size, and no unnamed piece is left.
    """
    nodes.make_image(tmp_path / "base", node_size, SIZE)
    result = crash(tmp_path / "base", BtrfsVolumes, points=60, seed=node_size, many=30)
    assert not result.violations


@pytest.mark.parametrize(
    ("volumes", "option"), [(WithoutBarrier, "ssd"), (WithoutBarrier, "nossd"), (FlagInsteadOfCopy, "ssd")]
)
def test_a_missing_step_is_found(volumes: type[Volumes], option: str, tmp_path: Path) -> None:
    """
    The same test reports violations if a durable step is skipped.
    """
    result = crash(tmp_path / "base", volumes, points=60, seed=1, option=option)
    assert len(result.violations) >= 10


def test_a_store_is_made_whole(tmp_path: Path) -> None:
    """
    Wherever the power fails while a store is made, the store exists or can be made again.
    """
    base = str(tmp_path / "base")
    image.create(base, SIZE, sparse=True)
    with Disk(base) as disk:
        with disk.mounted() as mount:
            disk.mark("begin")
            Snapshotter.create(os.path.join(mount, STORE)).close()
            disk.mark("made")
        log = disk.log()

    def verify(mount: str, marks: list[str]) -> list[str]:
        root = os.path.join(mount, STORE)
        try:
            Snapshotter(root).close()
        except Error as error:
            if "made" in marks:
                return [f"{error}"]
            Snapshotter.create(root).close()
        return []

    assert not sweep(log, base, verify, points=100, seed=1, start=log.marks[0] + 1).violations


def still(marks: list[str], mount: str, _: list[str]) -> list[str]:
    return verify(mount, marks)


def test_recovery_is_interrupted(tmp_path: Path) -> None:
    """
    A power failure during the recovery from another one loses no acknowledged operation.
    """
    log = recorded(tmp_path / "base", RefusesCommits, seed=2)
    rng = random.Random(2)
    with closing(Replay(log, str(tmp_path / "base"), str(tmp_path))) as replay:
        for number, point in enumerate(log.points(4, rng, log.marks[0] + 1)):
            crashed = replay.cut(point, MODES[number % len(MODES)], rng)
            judge = functools.partial(still, log.marked(point))
            with Disk(crashed) as disk:
                with disk.mounted() as mount, Snapshotter(os.path.join(mount, STORE), mount_mode="bind") as snapshotter:
                    snapshotter.cleanup()
                recovery = disk.log()
            result = sweep(recovery, crashed, judge, points=8, seed=number)
            assert not result.violations
