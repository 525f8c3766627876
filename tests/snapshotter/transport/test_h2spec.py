"""
h2spec against the daemon's transport.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.containerd.builds import UnavailableError, h2spec
from tests.snapshotter.transport.served import served

PATH = "/containerd.services.snapshots.v1.Snapshots/Stat"
CASES = 146  # in all, of which h2spec itself skips four

NO_DATA = "a gRPC service answers this request with trailers, so no DATA frame follows"
AT_ONCE = "the answer comes at once, so the stream may have ended before the next frame"
MAY_CLOSED = "RFC 9113, section 5.1: an endpoint MAY treat a frame on a closed stream as an error"
WITHDRAWN = "RFC 9113 withdrew priorities, and libnghttp2 ignores PRIORITY frames"

# The cases that do not apply, and may fail, with the reason; by package and description.
EXEMPT = {
    ("generic/2", "Sends a WINDOW_UPDATE frame on half-closed (remote) stream"): NO_DATA,
    ("generic/2", "Sends a PRIORITY frame on half-closed (remote) stream"): NO_DATA,
    ("http2/5.1", "half closed (remote): Sends a DATA frame"): AT_ONCE,
    ("http2/5.1", "half closed (remote): Sends a HEADERS frame"): AT_ONCE,
    ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame"): MAY_CLOSED,
    ("http2/5.1", "closed: Sends a HEADERS frame after sending RST_STREAM frame"): MAY_CLOSED,
    ("http2/5.1", "closed: Sends a DATA frame"): MAY_CLOSED,
    ("http2/5.1", "closed: Sends a HEADERS frame"): MAY_CLOSED,
    ("http2/5.1.1", "Sends stream identifier that is numerically smaller than previous"): (
        f"the use of the larger identifier has closed the smaller one; {MAY_CLOSED}"
    ),
    ("http2/5.1.2", "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded"): (
        "each request is answered at once, so the limit is not exceeded; test_http2.py exceeds it"
    ),
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"): WITHDRAWN,
    ("http2/6.1", 'Sends a DATA frame on the stream that is not in "open" or "half-closed (local)" state'): AT_ONCE,
    ("http2/6.3", "Sends a PRIORITY frame with 0x0 stream identifier"): WITHDRAWN,
    (
        "http2/6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
    ): "newer versions of libnghttp2 end the connection, as RFC 9113, section 5.4.2, allows for any error of a stream",
}


def run(program: Path, **environ: str) -> dict[tuple[str, str], str]:
    """
    Return the results of all cases: "" for success.
    """
    with served() as server, tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [program, "--strict", "--timeout", "1", "--path", PATH, "--junit-report", report]
        socket = {"H2SPEC_SOCKET": server.address}
        subprocess.run(command, env=os.environ | environ | socket, capture_output=True)
        # A case that fails as it has to may quote bytes of a frame, which XML does not allow.
        text = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", report.read_text(errors="replace"))
        cases = list(ElementTree.fromstring(text).iter("testcase"))
        lines = [line.partition(" ")[2] for line in server.lines() if "prepared" not in line]
    assert {" ".join(line.split()[:2]) for line in lines} <= {"info opened", "info closed", "info hung-up"}
    assert len(lines) <= CASES
    found = {}
    for case in cases:
        error = case.find("error")
        found[case.attrib["package"], case.attrib["classname"]] = "" if error is None else error.text or "failed"
    return found


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return h2spec()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("grpc", ["", "1"], ids=["plain", "grpc"])
def test_h2spec(grpc: str, program: Path) -> None:
    """
    Every case passes that applies to a gRPC service, with plain requests and with those of gRPC.
    """
    results = run(program, H2SPEC_GRPC=grpc)
    assert len(results) == CASES
    assert EXEMPT.keys() <= results.keys()
    assert {case: error for case, error in results.items() if error and case not in EXEMPT} == {}


def test_h2spec_can_fail(program: Path) -> None:
    """
    The cases that do not apply fail in part, so a failure is seen.
    """
    results = run(program)
    assert [case for case in EXEMPT if results[case]]
