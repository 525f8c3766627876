"""
Processes, as /proc shows them.
"""

import errno
import os
import sys

import pytest

from pybtrfs import processes
from tests.pybtrfs.subvolume.common import contained


def test_pids() -> None:
    """
    The ids are in ascending order, the caller's among them.
    """
    pids = processes.pids()
    assert str(os.getpid()) in pids
    assert pids == sorted(pids, key=int)


@pytest.mark.btrfs
def test_in_user_namespace() -> None:
    """
    The initial user namespace has all ids of the host, and a user's namespace has not.
    """
    assert not processes.in_user_namespace()
    assert contained(processes.in_user_namespace)


def test_kernel_without_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A kernel without user namespaces is in none.
    """

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert not processes.in_user_namespace()


def test_listed() -> None:
    """
    The directory of a process is listed; that of an ended process is empty.
    """
    assert str(os.getpid()) in processes.listed("/proc/self/task")
    assert processes.listed("/proc/0/task") == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_listing_without_resources(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A directory that cannot be listed for lack of resources is not taken for an empty one.
    """

    def listdir(path: str) -> list[str]:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(OSError, match=os.strerror(number)):
        processes.listed("/proc/self/task")


def test_command() -> None:
    """
    The command line has spaces between its arguments, and ends after the given number of bytes.
    """
    command = processes.command(os.getpid(), 4096)
    assert " ".join(sys.orig_argv[1:]) in command
    assert processes.command(str(os.getpid()), 5) == command[:5]


def test_command_of_no_process() -> None:
    """
    An ended process has no command.
    """
    assert processes.command(0, 4096) == ""
