"""
Session: the checks before each call, the translation of the kernel's errors, and the release of resources at the end.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybtrfs import syscall
from snapshotter import Snapshotter
from snapshotter.contract.session import Session
from snapshotter.errors import (
    DataLossError,
    Error,
    FailedPreconditionError,
    ResourceExhaustedError,
    StoreHeldError,
    UnavailableError,
)
from snapshotter.store.btrfs import BtrfsVolumes
from snapshotter.testing import DirectoryVolumes

PATIENCE = 10

MEANINGS = {
    errno.ENOSPC: (ResourceExhaustedError, "No space left on device"),
    errno.EDQUOT: (ResourceExhaustedError, "Disk quota exceeded: raise the limit with `btrfs qgroup limit`"),
    errno.EMFILE: (ResourceExhaustedError, "Too many open files"),
    errno.ENFILE: (ResourceExhaustedError, "Too many open files in system"),
    errno.ENOMEM: (ResourceExhaustedError, "Cannot allocate memory"),
    errno.EAGAIN: (ResourceExhaustedError, "Resource temporarily unavailable"),
    errno.EIO: (UnavailableError, "Input/output error"),
    errno.EROFS: (UnavailableError, "Read-only file system"),
    errno.ENOENT: (DataLossError, "No such file or directory: somebody deleted its subvolume"),
    errno.ETXTBSY: (FailedPreconditionError, "Text file busy: a swap file in the subvolume is in use: swapoff first"),
    errno.EBUSY: (FailedPreconditionError, "Device or resource busy: the subvolume is mounted: unmount it first"),
    errno.EPERM: (FailedPreconditionError, "Operation not permitted: CAP_SYS_ADMIN is missing, or"),
    errno.ENOTTY: (FailedPreconditionError, "Inappropriate ioctl for device"),
}


@pytest.fixture
def closed() -> list[str]:
    """
    The names of the resources that the session has closed.
    """
    return []


@pytest.fixture
def session(closed: list[str]) -> Session:
    resources = ExitStack()
    resources.callback(closed.append, "resources")
    return Session("/root", resources, "", lambda: True)


@pytest.mark.parametrize("around", ["reading", "changing"])
@pytest.mark.parametrize(("number", "meaning"), MEANINGS.items())
def test_meanings(number: int, meaning: tuple[type[Error], str], around: str, session: Session) -> None:
    """
    Each OSError becomes an error of the contract, with its cure and its cause.
    """
    kind, text = meaning
    refusal = OSError(number, os.strerror(number))
    with pytest.raises(kind, match=f"cannot do it: {text}") as caught, getattr(session, around)("do it"):
        raise refusal
    assert type(caught.value) is kind
    assert caught.value.__cause__ is refusal


def test_other_errors(session: Session, closed: list[str]) -> None:
    """
    Other exceptions than OSError pass through.
    """
    with pytest.raises(ZeroDivisionError), session.changing("do it"):
        raise ZeroDivisionError
    with pytest.raises(DataLossError), session.reading("do it"):
        raise DataLossError
    session.check()
    assert closed == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_dead(number: int, session: Session, closed: list[str]) -> None:
    """
    A change that meets a dead filesystem ends the session after the calls in progress; memory can still be read.
    """
    with session.reading("look"):
        with pytest.raises(UnavailableError), session.changing("change"):
            raise OSError(number, os.strerror(number))
        with pytest.raises(UnavailableError, match=r"the filesystem of '/root' failed, .*mount it"):
            session.changing("change").__enter__()
        assert closed == []
    assert closed == ["resources"]
    with pytest.raises(UnavailableError), session.reading("look"):
        pass
    session.check()
    session.close()
    assert closed == ["resources"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_one_bad_object(number: int, closed: list[str]) -> None:
    """
    An error of one object on a filesystem that works ends nothing.
    """
    resources = ExitStack()
    resources.callback(closed.append, "resources")
    session = Session("/root", resources, "", lambda: False)
    with pytest.raises(UnavailableError), session.changing("change"):
        raise OSError(number, os.strerror(number))
    with session.changing("change"):
        pass
    assert (session.failure, closed) == ("", [])


def test_failed_reading(session: Session, closed: list[str]) -> None:
    """
    A read that fails does not end the session.
    """
    with pytest.raises(UnavailableError), session.reading("look"):
        raise OSError(errno.EIO, "")
    with session.changing("change"):
        pass
    assert closed == []


def test_read_only(closed: list[str]) -> None:
    """
    On a read-only store a change is refused with the reason.
    """
    session = Session("/root", ExitStack(), "it is a copy", lambda: True)
    with (
        pytest.raises(FailedPreconditionError, match="'/root' cannot be changed: it is a copy"),
        session.changing("do it"),
    ):
        pytest.fail("entered")
    with session.reading("look"):
        pass


def test_close_waits(session: Session, closed: list[str]) -> None:
    """
    Closing waits for the calls in progress and refuses new calls; closing twice is no error.
    """
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with session.changing("work"):
            inside.set()
            assert go_on.wait(PATIENCE)
            assert closed == []

    working, closing = threading.Thread(target=work), threading.Thread(target=session.close)
    working.start()
    assert inside.wait(PATIENCE)
    closing.start()
    with session._gate:
        assert session._gate.wait_for(lambda: session._closed, PATIENCE)
    for refused in (session.check, session.reading("x").__enter__, session.changing("x").__enter__):
        with pytest.raises(FailedPreconditionError, match="store '/root' is closed"):
            refused()
    assert closed == []
    go_on.set()
    closing.join(PATIENCE)
    working.join(PATIENCE)
    assert closed == ["resources"]
    session.close()
    assert closed == ["resources"]


def test_forked(session: Session, closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    In a forked child every call is refused, and closing does nothing.
    """
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    for refused in (session.check, session.reading("x").__enter__, session.changing("x").__enter__):
        with pytest.raises(FailedPreconditionError, match="opened before a fork: open it in the process that uses it"):
            refused()
    session.close()
    assert closed == []
    monkeypatch.undo()
    session.close()
    assert closed == ["resources"]


# A whole store


def descriptors(root: Path) -> list[str]:
    """
    Return the files below *root* that this process has open.
    """
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(str(root)):
            found.append(target)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Snapshotter]:
    with Snapshotter.create(tmp_path / "store", volumes=DirectoryVolumes) as store:
        store.prepare("k")
        yield store


def test_after_a_fork(store: Snapshotter) -> None:
    """
    A forked child is refused every call, and the lock of the store stays with its parent process.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            calls: list[Callable[[], object]] = [
                lambda: store.stat("k"),
                lambda: list(store.walk()),
                lambda: store.usage("k"),
                lambda: store.mounts("k"),
                lambda: store.prepare("x"),
                lambda: store.remove("k"),
            ]
            for call in calls:
                with pytest.raises(FailedPreconditionError, match="opened before a fork: open it in the process that"):
                    call()
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(StoreHeldError):
        Snapshotter(store.root, volumes=DirectoryVolumes)
    assert store.stat("k")


def test_closed(store: Snapshotter) -> None:
    """
    A closed store refuses every call, and has no open descriptors.
    """
    store.close()
    store.close()
    assert descriptors(Path(store.root)) == []
    calls: list[Callable[[], object]] = [
        lambda: store.stat("k"),
        lambda: store.walk(),
        lambda: store.usage("k"),
        lambda: store.mounts("k"),
        lambda: store.prepare("x"),
        lambda: store.view("x"),
        lambda: store.commit("x", "k"),
        lambda: store.fork("k", "x"),
        lambda: store.remove("k"),
        lambda: store.cleanup(),
    ]
    for call in calls:
        with pytest.raises(FailedPreconditionError, match="is closed"):
            call()


@pytest.mark.btrfs
def test_remounted_read_only(btrfs_mount: Callable[..., Path]) -> None:
    """
    When the filesystem becomes read-only, changes are refused and every descriptor is closed.

    The index can still be read, and after a remount the store opens unchanged.
    """
    root = btrfs_mount()
    with Snapshotter.create(root) as store:
        store.prepare("k")
        store.commit("base", "k")
        store.prepare("k", "base")
        assert descriptors(root) != []
        store.cleanup()
        with pytest.raises(OSError, match="busy"):
            syscall.mount("", root, "", syscall.MS_REMOUNT | syscall.MS_RDONLY)
        # The lock, which is open for writing, prevents a remount. An abort of the filesystem is not prevented.
        lock = next(fd for fd in os.listdir("/proc/self/fd") if os.readlink(f"/proc/self/fd/{fd}") == f"{root}/lock")
        with open(root / "lock") as readable:
            os.dup2(readable.fileno(), int(lock), inheritable=False)
        syscall.mount("", root, "", syscall.MS_REMOUNT | syscall.MS_RDONLY)
        with pytest.raises(UnavailableError, match="cannot create snapshot 'x': Read-only file system"):
            store.prepare("x", "base")
        assert descriptors(root) == []
        assert {info.name for info in store.walk()} == {"base", "k"}
        assert store.stat("k").parent == "base"
        for change in (
            lambda: store.prepare("y"),
            lambda: store.commit("c", "k"),
            lambda: store.remove("k"),
            lambda: store.cleanup(),
        ):
            with pytest.raises(UnavailableError, match="failed, Read-only file system"):
                change()
        syscall.mount("", root, "", syscall.MS_REMOUNT)
    with Snapshotter(root) as store:
        assert {info.name for info in store.walk()} == {"base", "k"}
        store.remove("k")


class Failing(BtrfsVolumes):
    """
    Volumes on a disk that can be made to fail.
    """

    dead = False

    def barrier(self, fd: int) -> None:
        if Failing.dead:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().barrier(fd)


@pytest.mark.btrfs
@pytest.mark.parametrize("call", ["prepare", "view", "update", "remove"])
def test_failed_barrier(call: str, btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a barrier fails, the call and all later changes fail.
    """
    with Snapshotter.create(btrfs / "root", volumes=Failing) as store:
        store.prepare("k")
        before = {info.name: info for info in store.walk()}
        monkeypatch.setattr(Failing, "dead", True)
        calls: dict[str, Callable[[], object]] = {
            "prepare": lambda: store.prepare("x"),
            "view": lambda: store.view("x"),
            "update": lambda: store.update(store.stat("k"), "labels.a"),
            "remove": lambda: store.remove("k"),
        }
        with pytest.raises(UnavailableError, match="Input/output"):
            calls[call]()
        monkeypatch.setattr(Failing, "dead", False)
        assert {info.name: info for info in store.walk()} == before
        with pytest.raises(UnavailableError):
            store.prepare("y")
        assert descriptors(btrfs) == []
    with Snapshotter(btrfs / "root") as store:
        assert {info.name for info in store.walk()} <= {"k", "x"}
        store.prepare("y")
