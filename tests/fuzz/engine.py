"""
Run a target under atheris: ``python -m tests.fuzz.engine TARGET [OPTION OF LIBFUZZER | DIRECTORY]...``
"""

import sys

import atheris

with atheris.instrument_imports(include=["pybtrfs", "snapshotter"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
