"""
Serve an empty store on directories at a socket until the end of standard input: ``python -m ... SOCKET``.
"""

import sys
import tempfile

from snapshotter import Snapshotter
from snapshotter.testing import DirectoryVolumes
from tests.snapshotter.serving import Serving


def main(address: str) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Snapshotter.create(f"{directory}/root", volumes=DirectoryVolumes, client="c") as store,
    ):
        server = Serving(address)
        server.open(store)
        print("serving", flush=True)
        sys.stdin.read()
        server.close()


if __name__ == "__main__":
    main(sys.argv[1])
