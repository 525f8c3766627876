"""
Run tests with the compiled modules built for AddressSanitizer and UndefinedBehaviorSanitizer.

``python -m tests.sanitized [ARGUMENT OF PYTEST]...``
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"


def build(directory: Path) -> dict[str, str]:
    """
    Compile the modules in *directory*, and return the environment in which Python loads them.
    """
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    environment = os.environ | {"CFLAGS": f"{FLAGS} -O1 -g -fno-omit-frame-pointer", "LDFLAGS": FLAGS}
    argv = [sys.executable, "setup.py", "-q", "build", "--build-base", directory, "--build-lib", directory / "lib"]
    subprocess.run(argv, cwd=ROOT, env=environment, check=True)
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": os.pathsep.join([str(directory / "lib"), str(ROOT)]),
        "PYTHONMALLOC": "malloc",  # Python's own allocator hides accesses between objects
        # No leak detection, because Python, gcc and other programs exit with allocated memory, and LeakSanitizer
        # itself sometimes crashes. tests/packaging/test_sanitized.py finds memory that grows.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    environment = build(ROOT / "build/sanitized")
    transport = ["tests/snapshotter/transport", "tests/snapshotter/daemon/test_rpc.py"]
    tests = sys.argv[1:] or ["-q", "tests/pybtrfs", "tests/fuzz", *transport]
    os.execve(sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests], environment)


if __name__ == "__main__":
    main()
