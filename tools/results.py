"""
The table of test results of several Pythons or kernels.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PYTEST = ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "--may-skip", "tests/pybtrfs"]
PYTEST += ["--ignore=tests/pybtrfs/test_docs.py"]  # compares with other bindings
TIMEOUT = 3600  # seconds for the tests of a row


@dataclass
class Row:
    """
    The results of the tests on one Python or kernel.
    """

    name: str
    version: str = ""
    detail: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    note: str = ""

    def count(self, report: str) -> None:
        """
        Add the results in *report*, which pytest wrote as JUnit XML. An empty report counts as a failure.
        """
        if not report:
            self.failed += 1
            return
        [suite] = ElementTree.fromstring(report).iter("testsuite")
        skipped: Counter[str] = Counter()
        self.seconds += float(suite.get("time", 0))
        for case in suite.iter("testcase"):
            outcomes = {child.tag for child in case}
            self.failed += bool(outcomes & {"failure", "error"})
            self.skipped += "skipped" in outcomes
            skipped.update(skip.get("message", "") for skip in case.iter("skipped"))
            self.passed += not outcomes & {"failure", "error", "skipped"}
        self.note = ", ".join(f"{count}: {reason}" for reason, count in skipped.items())

    def __str__(self) -> str:
        counts = self.passed, self.failed, self.skipped, round(self.seconds)
        return f"| {self.name} | {self.version} | {self.detail} | {' | '.join(map(str, counts))} | {self.note} |"


def unavailable(name: str, error: Exception) -> Row:
    """
    Return the row of a Python or kernel that is not available.
    """
    print(error)
    return Row(name, failed=1, note=str(error).partition("\n")[0])


def conclude(subject: str, detail: str, rows: list[Row]) -> None:
    """
    Print the table, and exit with status 1 if a test failed or none ran.
    """
    print(f"\n| {subject} | version | {detail} | passed | failed | skipped | seconds | |\n|{'-|' * 8}", *rows, sep="\n")
    sys.exit(any(row.failed or not row.passed for row in rows if row.version or row.failed))
