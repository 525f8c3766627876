"""
Ctrl-C for a benchmark.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def interrupt(module: str, directory: Path) -> None:
    """
    Interrupt the benchmark *module* while it measures; it ends with status 130 and leaves *directory* empty.
    """
    command = [sys.executable, "-m", module, "--quick", "--directory", os.fspath(directory)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        process.stderr.readline()  # names the first measurement
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
    assert os.listdir(directory) == []
