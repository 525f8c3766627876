"""
Run the tests of pybtrfs on other kernels: ``python -m tools.kernels [NAME...]``, such as ``6.1``.

Each kernel is Debian's and runs in a virtual machine. The machine shares this machine's files, so the same Python and
tests run there; its writes stay in its memory. The processor is emulated, which makes Python about twenty times slower.
Therefore only tests that call the kernel run. The table at the end has a line for each kernel. The command fails if a
test fails or a kernel is not available.
"""

import lzma
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tools import debian
from tools.cache import cached
from tools.debian import UnavailableError
from tools.results import PYTEST, ROOT, TIMEOUT, Row, conclude, unavailable

MEMORY = "2G"

# The tests that call the kernel and do little else.
SELECTED = ("-m", "btrfs", *(f"--ignore=tests/pybtrfs/{name}" for name in ("compat", "test_cli.py", "test_testing.py")))


class Kernel(NamedTuple):
    """
    A kernel of Debian: its suite and its package. From 6.19 on, the modules have their own package.
    """

    suite: str
    package: str


KERNELS = {
    "5.10": Kernel("bullseye", r"linux-image-5\.10\.0-\d+-cloud-amd64"),
    "6.1": Kernel("bookworm", r"linux-image-6\.1\.0-\d+-cloud-amd64"),
    "6.12": Kernel("trixie", r"linux-image-6\.12\.\d+\+deb13-cloud-amd64"),
    "6.18": Kernel("trixie-backports", r"linux-image-6\.18\.\d+\+deb13-cloud-amd64"),
    "7.3": Kernel("trixie-backports", r"linux-binary-7\.3\.\d+\+deb13-cloud-amd64"),
}

QEMU, VIRTIOFSD = "usr/bin/qemu-system-x86_64", "usr/lib/qemu/virtiofsd"

# First the modules that the kernel requests by name, then the drivers of the machine. A kernel has some built in.
MODULES = ["crc32c_generic", "crc32c_cryptoapi", "xxhash_generic", "sha256_generic", "blake2b_generic"]
MODULES += ["virtio_pci", "virtiofs", "overlay", "loop", "btrfs"]

INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
for module in /modules/*; do insmod $module; done
mount -t virtiofs -o ro root /lower
mount -t tmpfs none /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work none /root
mount -t proc none /root/proc
mount -t sysfs none /root/sys
mount -t devtmpfs none /root/dev
mkdir /root/dev/shm
for path in /root/tmp /root/dev/shm; do mount -t tmpfs none $path; done
exec switch_root /root /bin/sh -c {job}
"""

# switch_root and not chroot(2), because a process in a chroot cannot create a user namespace.
JOB = """
export HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
uname -rv > /dev/ttyS1
cd {directory} && {tests}
cat {report} > /dev/ttyS1
{busybox} poweroff -f
"""


def files_of(name: str) -> Path:
    """
    Return the directory with the files of the kernel *name*.
    """
    suite, package = KERNELS[name]

    def build(directory: Path) -> None:
        with debian.Suite(suite) as opened:
            image = opened.newest(package)
            packages = {image, image.replace("linux-binary", "linux-modules")}
            opened.unpack(*packages, tree=directory, dependencies=False)

    return cached(f"linux-{name}", build)


def modules(directory: Path) -> list[bytes]:
    """
    Return the contents of MODULES and of their dependencies, in load order.
    """
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in directory.rglob("*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in files and name not in loaded:  # otherwise the kernel has it built in
            content = files[name].read_bytes()
            if files[name].suffix == ".xz":
                content = lzma.decompress(content)
            for needed in re.findall(rb"(?<![a-z])depends=([^\0]+)", content):
                for dependency in needed.decode().split(","):
                    load(dependency.replace("-", "_"))
            loaded[name] = content

    for name in MODULES:
        load(name)
    return [*loaded.values()]


def initramfs(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """
    Return a cpio archive of *files*, each with its mode, that a kernel unpacks as its first root.
    """
    parts = []
    for name, mode, content in [*files, ("TRAILER!!!", 0, b"")]:
        path = name.encode() + b"\0"
        numbers = 0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        parts += [header, bytes(-len(header) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def boot(name: str, arguments: list[str], directory: Path) -> Row:
    """
    Run the tests on the kernel *name*.
    """
    kernel = files_of(name)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise UnavailableError("as root: apt-get install busybox-static")
    console, reported, report = directory / "console", directory / "reported", "/tmp/report.xml"
    tests = shlex.join([sys.executable, *PYTEST, *SELECTED, f"--junit-xml={report}", *arguments])
    job = JOB.format(directory=shlex.quote(str(ROOT)), tests=tests, report=report, busybox=busybox)
    init = INIT.format(job=shlex.quote(job))
    files = [(path, 0o40755, b"") for path in ("bin", "dev", "lower", "modules", "root", "upper")]
    files += [("init", 0o100755, init.encode()), ("bin/busybox", 0o100755, Path(busybox).read_bytes())]
    files += [(f"modules/{number:02}", 0o100644, content) for number, content in enumerate(modules(kernel))]
    (directory / "initramfs").write_bytes(initramfs(files))
    tools = debian.programs("bookworm", ("qemu-system-x86",), (QEMU, VIRTIOFSD))
    socket = directory / "socket"
    # Not the default sandbox, because it cannot share the root directory.
    options = f"--socket-path={socket}", "-o", "source=/,sandbox=chroot"
    shared = subprocess.Popen([tools / VIRTIOFSD, *options], stderr=subprocess.DEVNULL)
    try:
        while not socket.exists():
            if shared.poll() is not None:
                raise UnavailableError("virtiofsd ended: it needs root")
            time.sleep(0.01)
        machine: list[str | Path] = [
            tools / QEMU,
            *("-L", tools / "usr/share/qemu", "-L", tools / "usr/share/seabios"),
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY, "-no-reboot", "-display", "none"),
            *("-kernel", next(kernel.rglob("vmlinuz*")), "-initrd", directory / "initramfs"),
            *("-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check"),
            *("-serial", f"file:{console}", "-serial", f"file:{reported}"),
            *("-object", f"memory-backend-memfd,id=memory,share=on,size={MEMORY}", "-numa", "node,memdev=memory"),
            *("-chardev", f"socket,id=files,path={socket}", "-device", "vhost-user-fs-pci,chardev=files,tag=root"),
        ]
        subprocess.run(machine, timeout=TIMEOUT, check=True)
    finally:
        shared.terminate()
        shared.wait()
    version, _, junit = reported.read_text().partition("\n")
    row = Row(name, version.rpartition("Debian ")[2].split(" ")[0], version.split(" ")[0])
    row.count(junit)
    if row.failed:
        print(console.read_text(errors="replace"))
    return row


def main(arguments: list[str]) -> None:
    names = [name for name in KERNELS if name in arguments] or [*KERNELS]
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            try:
                row = boot(name, [argument for argument in arguments if argument not in KERNELS], Path(directory))
            except (UnavailableError, subprocess.SubprocessError) as error:
                row = unavailable(name, error)
        rows.append(row)
        print(row, flush=True)
    conclude("Linux", "release", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
