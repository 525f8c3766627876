"""
The service: its answers to every call of containerd.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pybtrfs import filesystem
from snapshotter import Info, Kind, Snapshotter, Usage, errors
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api.health_pb2 import HealthCheckRequest, HealthCheckResponse
from snapshotter.api.messages import info_to
from snapshotter.client import Client
from snapshotter.daemon import service
from snapshotter.daemon.rpc import MAX_REQUEST_SIZE
from snapshotter.daemon.service import Limits
from snapshotter.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.store import btrfs as store_btrfs
from snapshotter.transport.channel import CallError, Channel
from snapshotter.transport.status import Status
from tests.snapshotter.daemon.stores import STATUSES, Fake, raising
from tests.snapshotter.daemon.wire import CHECK, METHODS, Wire, framed, wired
from tests.snapshotter.serving import Serving, serving


def test_calls_wait_for_the_store(plain: Snapshotter) -> None:
    """
    Before the store is open, a connection is greeted, health answers that the service is not serving, and calls wait.
    """
    with serving() as server, Wire(server.address) as wire:
        wire.until_greeted()
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 2
        calls = {name: wire.begin(name) for name in METHODS}
        for name, number in calls.items():
            wire.body(number, framed(METHODS[name](snapshotter="c")))
        wire.call(CHECK, HealthCheckRequest())
        assert not wire.ended.intersection(calls.values())
        server.open(plain)
        replies = {name: wire.end(number).status for name, number in calls.items()}
        assert replies == dict.fromkeys(METHODS, Status.NOT_FOUND.value) | {
            "Prepare": Status.INVALID_ARGUMENT.value,  # the key is empty
            "View": Status.INVALID_ARGUMENT.value,
            "Commit": Status.INVALID_ARGUMENT.value,
            "List": Status.OK.value,
            "Cleanup": Status.OK.value,
        }
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 1


def test_a_store_that_does_not_open() -> None:
    """
    Calls get the reason with a status that says nothing about snapshots; the service is not serving.
    """
    with serving() as server, Wire(server.address) as wire:
        server.fail(NotFoundError("no such directory"))
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            expected = Status.FAILED_PRECONDITION if name == "Remove" else Status.UNAVAILABLE
            assert (reply.status, reply.text) == (expected.value, "the store is not open: no such directory")
        assert HealthCheckResponse.FromString(wire.call(CHECK, HealthCheckRequest()).messages[0]).status == 2


def test_calls_do_not_wait_for_ever() -> None:
    """
    A call fails if the store does not open within the call's time limit.
    """
    with wired(None, limits=Limits(0, 0, 0, 0)) as wire:
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            assert reply.status == (Status.FAILED_PRECONDITION if name == "Remove" else Status.UNAVAILABLE).value


def test_health(plain: Snapshotter) -> None:
    """
    The service is serving under its name and the empty name, and unknown by others; after the disk failed it is not
    serving.
    """
    with wired(plain) as wire:
        for name in ("", "containerd.services.snapshots.v1.Snapshots"):
            reply = wire.call(CHECK, HealthCheckRequest(service=name))
            assert HealthCheckResponse.FromString(reply.messages[0]).status == HealthCheckResponse.SERVING
        assert wire.call(CHECK, HealthCheckRequest(service="other")).status == Status.NOT_FOUND.value
    failed = Fake(raising(UnavailableError("the disk failed")))
    failed.failure = "the disk failed"
    with wired(failed) as wire:
        reply = wire.call(CHECK, HealthCheckRequest())
        assert HealthCheckResponse.FromString(reply.messages[0]).status == HealthCheckResponse.NOT_SERVING


def test_missed(plain: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The service tells once, and up to a limit, the keys that Stat did not find.
    """
    monkeypatch.setattr(service, "MAX_MISSED", 2)
    plain.prepare("found")
    with serving(plain) as server, Client(server.address) as client:
        assert client.missed() == []
        client.stat("found")
        for key in ("b", "a", "a", "c"):
            with pytest.raises(NotFoundError):
                client.stat(key)
        assert client.missed() == ["a", "b"]
        assert client.missed() == []


def test_every_kind_is_tried() -> None:
    """
    The table STATUSES has all kinds of errors.
    """
    assert set(STATUSES) == {kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}


@pytest.mark.parametrize("kind", STATUSES)
def test_error_kinds(kind: type[errors.Error]) -> None:
    """
    Each kind of error has containerd's code and the whole text. But Remove has NotFound or FailedPrecondition, because
    any other error would end containerd's collection.
    """
    text = "why: é % \n\x7f 'k' \udcff"
    with wired(Fake(raising(kind(text)))) as wire:
        for name, request in METHODS.items():
            reply = wire.call(name, request(snapshotter="c"))
            expected = STATUSES[kind]
            if name == "Remove" and kind is not NotFoundError:
                expected = Status.FAILED_PRECONDITION
            assert (name, reply.status, reply.text) == (name, expected.value, text.replace("\udcff", r"\udcff"))


def test_an_exception_is_one_failed_call(caplog: pytest.LogCaptureFixture) -> None:
    """
    An unexpected exception of a method is answered and logged, and the service keeps serving.
    """
    with wired(Fake(raising(ZeroDivisionError("oops")))) as wire:
        for name, request in METHODS.items():
            caplog.clear()
            reply = wire.call(name, request(snapshotter="c"))
            expected = Status.FAILED_PRECONDITION if name == "Remove" else Status.INTERNAL
            assert (reply.status, reply.text) == (expected.value, f"{name} failed: ZeroDivisionError('oops')")
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert "oops" in str(record.exc_info)


def test_a_huge_key_is_not_repeated_whole(plain: Snapshotter) -> None:
    """
    Errors quote only a part of huge keys, labels, paths and filters, because the text travels in a header.
    """
    huge = "x" * 1_000_000
    info = pb.Info(name=huge)
    requests = {
        "Prepare": pb.PrepareSnapshotRequest(snapshotter="c", key=huge),
        "View": pb.ViewSnapshotRequest(snapshotter="c", key="k", parent=huge),
        "Commit": pb.CommitSnapshotRequest(snapshotter="c", name="n", key=huge),
        "Update": pb.UpdateSnapshotRequest(snapshotter="c", info=info),
        "List": pb.ListSnapshotsRequest(filters=[f'"{huge}"=x']),
    } | {name: METHODS[name](snapshotter="c", key=huge) for name in ("Mounts", "Remove", "Stat", "Usage")}
    plain.prepare("k2", labels={})
    with wired(plain) as wire:
        for name, request in requests.items():
            reply = wire.call(name, request)
            assert reply.status in (Status.NOT_FOUND.value, Status.INVALID_ARGUMENT.value), name
            assert len(reply.headers["grpc-message"]) < 16_384, name
        bad = pb.PrepareSnapshotRequest(snapshotter="c", key="k3", labels={huge: "v"})
        assert len(wire.call("Prepare", bad).text) < 1_000
        paths = pb.UpdateSnapshotRequest(snapshotter="c", info=pb.Info(name="k2"), update_mask={"paths": [huge]})
        assert len(wire.call("Update", paths).text) < 1_000


def test_list_in_batches() -> None:
    """
    A list has five hundred snapshots a message, the rest in the last message, and no message if there are no snapshots.
    """
    infos = [Info(Kind.ACTIVE, f"k{number}") for number in range(1250)]
    with wired(Fake(lambda *_: iter(infos))) as wire:
        replies = [pb.ListSnapshotsResponse.FromString(data) for data in wire.call("List", b"").messages]
        assert [len(reply.info) for reply in replies] == [500, 500, 250]
        assert [info.name for reply in replies for info in reply.info] == [info.name for info in infos]
    with wired(Fake(lambda *_: iter(()))) as wire:
        assert wire.call("List", b"").messages == []


def test_large_labels_make_small_batches() -> None:
    """
    With large labels, a message stays below its limit plus one snapshot.
    """
    labels = {str(number): "v" * 4000 for number in range(100)}
    infos = [Info(Kind.ACTIVE, f"k{number}", labels=labels) for number in range(50)]
    with wired(Fake(lambda *_: iter(infos))) as wire:
        messages = wire.call("List", b"").messages
    assert sum(len(pb.ListSnapshotsResponse.FromString(data).info) for data in messages) == 50
    assert max(map(len, messages)) <= service.LIST_BATCH_SIZE + 10_000


@pytest.mark.btrfs
def test_large_labels(btrfs: Path) -> None:
    """
    A snapshot may have labels of 1 MiB, and a request with more is refused up to the size of the largest request.
    """
    labels = {f"label {number}": "x" * 4000 for number in range(255)}
    more = {f"label {number}": "x" * 4000 for number in range(1044)}
    with Snapshotter.create(btrfs / "root", client="c") as store, wired(store) as wire:
        prepared = wire.call("Prepare", pb.PrepareSnapshotRequest(snapshotter="c", key="k", labels=labels))
        assert prepared.status == Status.OK.value
        request = pb.PrepareSnapshotRequest(snapshotter="c", key="other", labels=more | {"last": "x" * 200})
        request.labels["last"] += "x" * (MAX_REQUEST_SIZE - request.ByteSize())
        assert request.ByteSize() == MAX_REQUEST_SIZE
        reply = wire.call("Prepare", request)
        assert reply.status == Status.INVALID_ARGUMENT.value
        assert reply.text.startswith("key and labels of snapshot 'other' need 41")
        assert reply.text.endswith("bytes, more than 1048576")
        committed = wire.call("Commit", pb.CommitSnapshotRequest(snapshotter="c", key="k", name="n", labels=labels))
        assert committed.status == Status.OK.value
        (message,) = wire.call("List", pb.ListSnapshotsRequest(snapshotter="c")).messages
        (info,) = pb.ListSnapshotsResponse.FromString(message).info
        assert dict(info.labels) == labels


def test_who_reads_slowly_holds_up_nobody() -> None:
    """
    A client that does not read its list delays no other client, and the list does not pile up in memory.
    """
    labels = {"l": "v" * 4000}
    made = 0

    def walk(*_: object) -> Iterator[Info]:
        nonlocal made
        for number in range(5_000):
            made = number
            yield Info(Kind.ACTIVE, f"k{number}", labels=labels)

    with serving(Fake(walk)) as server, Wire(server.address) as slow, Wire(server.address) as other:
        slow.reading = False
        number = slow.begin("List")
        slow.body(number, framed(b""))
        while slow.h2.remote_flow_control_window(number):
            slow.receive()
        for _ in range(3):
            assert other.call(CHECK, b"").status == 0
        assert made < 1_000
        slow.reading = True
        slow.h2.increment_flow_control_window(2**30)
        slow.h2.increment_flow_control_window(2**30, number)
        slow.send()
        assert sum(len(pb.ListSnapshotsResponse.FromString(data).info) for data in slow.end(number).messages) == 5_000


def test_a_long_list_holds_up_nobody() -> None:
    """
    While a list with filters is gathered, other calls are answered.
    """
    begun, go = threading.Event(), threading.Event()

    def walk(*_: object) -> Iterator[Info]:
        begun.set()
        go.wait()
        yield Info(Kind.ACTIVE, "k")

    with wired(Fake(walk)) as wire:
        number = wire.begin("List")
        wire.body(number, framed(pb.ListSnapshotsRequest(filters=["name==k"])))
        begun.wait()
        try:
            assert wire.call(CHECK, b"").status == 0
            assert number not in wire.ended
        finally:
            go.set()
        assert len(wire.end(number).messages) == 1


def test_too_many_filters(plain: Snapshotter) -> None:
    """
    Filters may hold the largest key and label; longer filters are refused before they are parsed.
    """
    with wired(plain) as wire:
        for filters, status in (
            ([f'name=="{"x" * 32_768}",labels.a=="{"y" * 4_096}"'], Status.OK),
            (["name==x"] * 9_363, Status.INVALID_ARGUMENT),
        ):
            assert wire.call("List", pb.ListSnapshotsRequest(filters=filters)).status == status.value


def test_one_client(plain: Snapshotter) -> None:
    """
    Changes without a client name, or under a second name while there are snapshots, are refused with the cure. Reads
    are answered, and the snapshots stay. Once there are no snapshots, the second client may change the store.
    """
    with serving(plain) as server, Client(server.address, snapshotter="first") as first:
        first.prepare("k")
        first.commit("base", "k", {"a": "1"})
        first.prepare("active", "base")
        with Client(server.address, snapshotter="second") as second, Client(server.address, snapshotter="") as nobody:
            before = {info.name: info for info in second.walk()}
            for client, kind, text in (
                (second, FailedPreconditionError, "make a second store beside it"),
                (nobody, InvalidArgumentError, "client is empty"),
            ):
                changes: dict[str, Callable[[], Any]] = {
                    "prepare": lambda client=client: client.prepare("new", "base"),
                    "view": lambda client=client: client.view("new"),
                    "commit": lambda client=client: client.commit("new", "active"),
                    "update": lambda client=client: client.update(Info(Kind.COMMITTED, "base", labels={"a": "2"})),
                    "cleanup": client.cleanup,
                }
                for change in changes.values():
                    with pytest.raises(kind, match=text):
                        change()
                for info in client.walk():
                    with pytest.raises(FailedPreconditionError, match=text):
                        client.remove(info.name)
                assert client.mounts("active")
                assert client.usage("active")
            assert {info.name: info for info in first.walk()} == before
            for name in ("active", "base"):
                first.remove(name)
            second.prepare("k")
            with pytest.raises(FailedPreconditionError, match="client 'second'"):
                first.prepare("k2")


@pytest.mark.btrfs
def test_unchanged_usage(btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The usage of an active snapshot is measured in a thread, and answered from memory until the filesystem commits.
    """
    threads: list[str] = []
    measure = Snapshotter.usage

    def measuring(store: Snapshotter, key: str) -> Usage:
        threads.append(threading.current_thread().name.partition("_")[0])
        return measure(store, key)

    monkeypatch.setattr(Snapshotter, "usage", measuring)
    monkeypatch.setattr(store_btrfs, "COMMITS_SECONDS", 3600.0)
    with Snapshotter.create(btrfs / "root") as store, serving(store) as server, Client(server.address) as client:
        store.prepare("k")
        assert client.usage("k") == client.usage("k") == Usage(0, 1)
        assert threads == ["snapshotter-read"]
        monkeypatch.setattr(store_btrfs, "COMMITS_SECONDS", 0.0)
        Path(store.subvolume("k"), "file").write_bytes(b"content")
        filesystem.sync(btrfs)
        assert client.usage("k") == Usage(7, 2)
        assert threads == ["snapshotter-read"] * 2


def test_many_clients(plain: Snapshotter) -> None:
    """
    Dozens of threads and connections prepare, read and remove concurrently, and each gets its own answers.
    """

    def work(number: int) -> None:
        with Client(server.address, snapshotter="c") as client:
            for turn in range(5):
                key = f"{number} {turn}"
                client.prepare(key, "base", {"n": key})
                assert client.stat(key).labels == {"n": key}
                assert client.usage(key) == Usage(0, 0) or client.usage(key).inodes >= 0
                client.remove(key)

    plain.prepare("k")
    plain.commit("base", "k")
    with serving(plain) as server, ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
        assert [info.name for info in plain.walk()] == ["base"]


def test_traced(plain: Snapshotter, caplog: pytest.LogCaptureFixture) -> None:
    """
    The events of a call and of its refusal have the ids of its ``traceparent``; those of the next call have none.
    """
    caplog.set_level(logging.DEBUG, "snapshotter")
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    header = {"traceparent": f"00-{trace}-{span}-01"}

    def ids() -> list[tuple[str, str | None, str | None]]:
        found = [(record.event, record.fields) for record in caplog.records]  # type: ignore[attr-defined]
        caplog.clear()
        return [(event, fields.get("trace"), fields.get("span")) for event, fields in found]

    snapshots = "/containerd.services.snapshots.v1.Snapshots/"
    with serving() as server, Channel(server.address) as channel:
        server.open(plain)
        prepare = pb.PrepareSnapshotRequest(key="k", snapshotter="c")
        missing = pb.StatSnapshotRequest(key="missing", snapshotter="c")
        caplog.clear()
        channel.call(f"{snapshots}Prepare", prepare, pb.PrepareSnapshotResponse, metadata=header)
        assert ids() == [("prepared", trace, span)]
        for path, request in (("Prepare", prepare), ("Stat", missing)):
            with pytest.raises(CallError):
                channel.call(f"{snapshots}{path}", request, pb.PrepareSnapshotResponse, metadata=header)
            assert ids() == [("refused", trace, span)]
        prepare.key = "later"
        for metadata in (None, {"traceparent": "malformed"}, {"traceparent": "0" * 1_000}):
            channel.call(f"{snapshots}Prepare", prepare, pb.PrepareSnapshotResponse, metadata=metadata)
            assert ids() == [("prepared", None, None)]
            prepare.key += "x"


def test_entries_follow_changes(plain: Snapshotter) -> None:
    """
    Stat and List, with filters and without, show each change at once: of labels, of the kind and of the key.
    """

    def seen(server: Serving) -> dict[str, Info]:
        with Client(server.address, snapshotter="c") as client:
            listed = {info.name: info for info in client.walk()}
            assert {info.name: info for info in client.walk('name~="."')} == listed
            assert {name: client.stat(name) for name in listed} == listed
        assert listed == {info.name: info for info in plain.walk()}
        return listed

    with serving(plain) as server:
        assert seen(server) == {}
        plain.prepare("k", labels={"a": "1"})
        assert seen(server)["k"].labels == {"a": "1"}
        plain.update(Info(Kind.ACTIVE, "k", labels={"a": "2"}))
        assert seen(server)["k"].labels == {"a": "2"}
        plain.commit("base", "k", {"b": "3"})
        assert (seen(server)["base"].kind, seen(server)["base"].labels) == (Kind.COMMITTED, {"b": "3"})
        plain.view("v", "base")
        plain.prepare("k", "base")
        assert {info.parent for name, info in seen(server).items() if name != "base"} == {"base"}
        plain.remove("k")
        assert seen(server).keys() == {"base", "v"}


def test_entries_are_encoded_once(plain: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The entry of a snapshot is encoded again only after a change of it.
    """
    encoded = []

    def counting(info: Info) -> Any:
        encoded.append(info.name)
        return info_to(info)

    monkeypatch.setattr(service, "info_to", counting)
    plain.prepare("a")
    plain.prepare("b")
    with serving(plain) as server, Client(server.address) as client:
        for _ in range(3):
            assert len(list(client.walk())) == 2
            assert client.stat("a").name == "a"
        before = len(encoded)
        assert len(list(client.walk())) == 2
        assert client.stat("b").name == "b"
        assert len(encoded) == before
        plain.update(Info(Kind.ACTIVE, "a", labels={"x": "y"}))
        assert client.stat("a").labels == {"x": "y"}
        assert len(list(client.walk())) == 2
        assert encoded[before:] == ["a"]
