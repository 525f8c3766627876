"""
The messages: wire compatible with containerd's, with generated code that is up to date.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2 as pb

from snapshotter import api
from tests.containerd.builds import module_source
from tests.containerd.needed import needed
from tools.make_messages import CONTAINERD, SERVICES, TYPES

ROOT = Path(__file__).parents[3]
OURS = ROOT / "src"
MODULE = "github.com/containerd/containerd/api@v1.12.0"


def test_generated_files_are_up_to_date(tmp_path: Path) -> None:
    """
    `make proto` generates the committed files.
    """
    subprocess.run([sys.executable, ROOT / "tools/make_messages.py", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "snapshotter/api").iterdir()}
    assert len(made) == 2 * (len(TYPES) + len(SERVICES))
    for name, content in made.items():
        assert (Path(api.__file__).parent / name).read_bytes() == content, f"{name}: run `make proto`"


def described(directory: Path, *files: str, others: Path = OURS) -> dict[str, Any]:
    """
    Return the wire format of *files*: by full name, the fields of messages by number, and the methods of services.

    Args:
        others: The directory of files that *files* import, and that are not in *directory*.
    """
    output = subprocess.run(
        [
            sys.executable,
            *("-m", "grpc_tools.protoc", f"--proto_path={directory}", f"--proto_path={others}"),
            "--descriptor_set_out=/dev/stdout",
            *files,
        ],
        check=True,
        capture_output=True,
    ).stdout
    found: dict[str, Any] = {}

    def add(scope: str, message: pb.DescriptorProto) -> None:
        name = f"{scope}.{message.name}"
        found[name] = {
            field.number: (field.name, field.type, field.label, field.type_name.removeprefix("."))
            for field in message.field
        } | {"map": message.options.map_entry, "oneofs": [oneof.name for oneof in message.oneof_decl]}
        for nested in message.nested_type:
            add(name, nested)
        for enum in message.enum_type:
            add_enum(name, enum)

    def add_enum(scope: str, enum: pb.EnumDescriptorProto) -> None:
        found[f"{scope}.{enum.name}"] = {value.number: value.name for value in enum.value}

    for file in pb.FileDescriptorSet.FromString(output).file:
        assert file.syntax == "proto3"
        for message in file.message_type:
            add(file.package, message)
        for enum in file.enum_type:
            add_enum(file.package, enum)
        for service in file.service:
            found[f"{file.package}.{service.name}"] = {
                method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
                for method in service.method
            }
    return found


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """
    Return the wire format of containerd's own files, with the only other type that we use.
    """
    found = described(needed(module_source, MODULE), "types/mount.proto", "services/snapshots/v1/snapshots.proto")
    return {name: what for name, what in found.items() if ".types." not in name or name == "containerd.types.Mount"}


def test_wire_compatible(theirs: dict[str, Any]) -> None:
    """
    Messages, fields, numbers, types and methods are those of the newest containerd.
    """
    ours = described(OURS, "snapshotter/api/mount.proto", "snapshotter/api/snapshots.proto")
    assert ours == theirs


@pytest.mark.parametrize("service", CONTAINERD)
def test_part_of_a_service(service: str, tmp_path: Path) -> None:
    """
    Our part of containerd's other services is equal to the newest containerd's.
    """
    ours = described(OURS, f"snapshotter/api/{service}.proto", "snapshotter/api/descriptor.proto")
    directory = needed(module_source, MODULE)
    file = {"namespaces": "namespace"}.get(service, service)
    # The type of a field that we leave out; containerd's module does not have its file.
    (tmp_path / "google/rpc").mkdir(parents=True)
    (tmp_path / "google/rpc/status.proto").write_text('syntax = "proto3"; package google.rpc; message Status {}')
    theirs = described(directory, "types/descriptor.proto", f"services/{service}/v1/{file}.proto", others=tmp_path)
    assert len(ours) > 3
    for name, members in ours.items():
        assert members.items() <= theirs[name].items(), name


def test_a_difference_is_found(theirs: dict[str, Any], tmp_path: Path) -> None:
    """
    A changed number, type, label, name or method is detected.
    """
    mount = (OURS / "snapshotter/api/mount.proto").read_text()
    snapshots = (OURS / "snapshotter/api/snapshots.proto").read_text()
    (tmp_path / "snapshotter/api").mkdir(parents=True)
    for old, new in (
        ("string parent = 5;", "string parent = 6;"),
        ("int64 inodes = 2;", "uint64 inodes = 2;"),
        ("repeated Info info = 1;", "Info info = 1;"),
        ("COMMITTED = 3;", "COMMITTED = 4;"),
        ("returns (stream ListSnapshotsResponse)", "returns (ListSnapshotsResponse)"),
        ("  rpc Cleanup(CleanupRequest) returns (google.protobuf.Empty);\n", ""),
    ):
        assert snapshots.count(old) == 1
        (tmp_path / "snapshotter/api/mount.proto").write_text(mount)
        (tmp_path / "snapshotter/api/snapshots.proto").write_text(snapshots.replace(old, new))
        assert described(tmp_path, "snapshotter/api/mount.proto", "snapshotter/api/snapshots.proto") != theirs
