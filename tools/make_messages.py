"""
Compile the .proto files of snapshotter.api: containerd's, gRPC's and our own.

    python tools/make_messages.py DIRECTORY
"""

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"
TYPES = ["mount", "descriptor"]
CONTAINERD = ["snapshots", "containers", "content", "images", "introspection", "leases", "namespaces"]
SERVICES = [*CONTAINERD, "extension", "health"]


def main(target: Path) -> None:
    """
    Write the generated modules below *target*, at the path of their package.
    """
    names = [f"snapshotter/api/{name}.proto" for name in (*TYPES, *SERVICES)]
    options = [f"--proto_path={SRC}", f"--python_out={target}", f"--pyi_out={target}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *names], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
