"""
Compile the .proto files of snapshotter.api, containerd's and our own.

    python tools/make_messages.py DIRECTORY
"""

import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"
TYPES = ["mount", "descriptor"]
CONTAINERD = ["snapshots", "containers", "content", "images", "introspection", "leases", "namespaces"]
SERVICES = [*CONTAINERD, "extension"]


def main(target: Path) -> None:
    """
    Write the generated modules below *target*, at the path of their package.
    """
    scripts = Path(sys.executable).parent  # has the plugin of grpclib
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    types, services = ([f"snapshotter/api/{name}.proto" for name in names] for names in (TYPES, SERVICES))
    for arguments in (
        [f"--python_out={target}", f"--pyi_out={target}", *types, *services],
        [f"--grpclib_python_out={target}", *services],
    ):
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SRC}", *arguments]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
