"""
Stores that fail or hang, for tests.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from snapshotter import errors
from snapshotter.testing import DirectoryVolumes
from snapshotter.transport.status import Status

STATUSES = {
    errors.NotFoundError: Status.NOT_FOUND,
    errors.AlreadyExistsError: Status.ALREADY_EXISTS,
    errors.InvalidArgumentError: Status.INVALID_ARGUMENT,
    errors.FailedPreconditionError: Status.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: Status.RESOURCE_EXHAUSTED,
    errors.UnavailableError: Status.UNAVAILABLE,
    errors.StoreHeldError: Status.UNAVAILABLE,
    errors.DataLossError: Status.DATA_LOSS,
    errors.NotSupportedError: Status.UNIMPLEMENTED,
    errors.Error: Status.UNKNOWN,
}


class Fake:
    """
    A store whose methods all call *act*.
    """

    failure = ""

    def __init__(self, act: Callable[..., Any]) -> None:
        self.stat = self.walk = self.usage = self.known_usage = self.mounts = act
        self.prepare = self.view = self.fork = self.commit = self.update = self.remove = self.cleanup = act
        self.opened = self

    def encoded(self, encode: Callable[[Any], bytes], key: str) -> bytes:
        return encode(self.stat(key))

    def all_encoded(self, encode: Callable[[Any], bytes], *filter_list: str) -> Iterator[bytes]:
        return map(encode, self.walk(*filter_list))

    def bound_to(self, client: str) -> "Fake":
        return self


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


class Hanging(DirectoryVolumes):
    """
    Volumes whose snapshot ioctl hangs until `go` is set.
    """

    go = threading.Event()
    hanging = threading.Semaphore(0)  # released once by each call that hangs

    def snapshot(self, *arguments: Any) -> None:
        self.hanging.release()
        self.go.wait()
        super().snapshot(*arguments)
