"""
The parts of the tests on other Pythons and kernels that need neither.
"""

import lzma
import subprocess
from pathlib import Path

import pytest

from tools import kernels
from tools.results import Row, conclude

REPORT = """<testsuites><testsuite time="1.4">
<testcase/><testcase/><testcase><failure/></testcase><testcase><failure/><error/></testcase><testcase><error/></testcase>
<testcase><skipped message="no quotas"/></testcase><testcase><skipped message="no quotas"/></testcase>
</testsuite></testsuites>"""


def test_counts() -> None:
    """
    A test with several failures counts once, and skipped tests are counted by reason.
    """
    row = Row("a", "1.0")
    row.count(REPORT)
    assert str(row) == "| a | 1.0 |  | 2 | 3 | 2 | 1 | 2: no quotas |"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (Row("all passed", "1.0", passed=1), 0),
        (Row("one failed", "1.0", passed=1, failed=1), 1),
        (Row("none ran", "1.0"), 1),
        (Row("could not be had", failed=1), 1),
        (Row("nobody has it"), 0),
    ],
    ids=lambda value: value.name if isinstance(value, Row) else "",
)
def test_exit_code(row: Row, code: int) -> None:
    """
    The status is 1 if a test failed, if none ran, or if an available Python or kernel was not tested.
    """
    with pytest.raises(SystemExit) as caught:
        conclude("subject", "detail", [Row("another", "1.0", passed=1), row])
    assert caught.value.code == code


def test_modules_load_in_order(tmp_path: Path) -> None:
    """
    A module follows its dependencies and appears once, compressed or not.
    """
    (tmp_path / "btrfs.ko").write_bytes(b"\0license=GPL\0depends=xor,raid6-pq,builtin\0btrfs")
    (tmp_path / "xor.ko").write_bytes(b"\0depends=\0xor")
    (tmp_path / "raid6_pq.ko.xz").write_bytes(lzma.compress(b"\0depends=xor\0raid6"))
    (tmp_path / "other.ko").touch()
    assert [module.rpartition(b"\0")[2] for module in kernels.modules(tmp_path)] == [b"xor", b"raid6", b"btrfs"]


def test_initramfs(tmp_path: Path) -> None:
    """
    cpio unpacks the archive with the modes of its files.
    """
    archive = kernels.initramfs([("bin", 0o40755, b""), ("bin/a", 0o100755, b"odd"), ("b", 0o100644, b"")])
    subprocess.run(["busybox", "cpio", "-id"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/a").read_bytes() == b"odd"
    assert [oct((tmp_path / name).stat().st_mode) for name in ("bin", "bin/a", "b")] == [
        "0o40755",
        "0o100755",
        "0o100644",
    ]
