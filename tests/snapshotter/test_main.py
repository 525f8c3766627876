"""
The command as a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.cli import COMMANDS

# Python imports this module at its start. It interrupts the process when the module MOMENT is looked for.
INTERRUPTING = """\
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MOMENT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""

ENTRIES = {
    "module": [sys.executable, "-m", "snapshotter"],
    "script": [str(Path(sys.executable).with_name("snapshotter"))],
}
MOMENTS = ["snapshotter.cli", "argparse", "pybtrfs._btrfs", "snapshotter.contract", "snapshotter.cli.arguments"]
MOMENTS += [f"snapshotter.cli.commands.{module}" for module in sorted({module for module, _ in COMMANDS.values()})]
USUAL = {module: name for name, (module, _) in COMMANDS.items()}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_interrupted_import(entry: str, moment: str, tmp_path: Path) -> None:
    """
    Ctrl-C during an import is one line and code 130, and no traceback.
    """
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    name = USUAL.get(moment.rpartition(".")[2], "ls")
    done = subprocess.run(
        [*ENTRIES[entry], name, "--root", str(tmp_path / "none")],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "MOMENT": moment},
        capture_output=True,
        text=True,
    )
    interrupted = (130, "", "snapshotter: interrupted\n")
    assert (done.returncode, done.stdout, done.stderr) == interrupted
