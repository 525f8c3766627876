"""
Run a command as systemd would run it for a unit, as far as possible without systemd:

    unshare --mount --propagation slave python sandbox.py UNIT RUNTIME_DIRECTORY SOCKET_FD COMMAND...

The file system is read-only apart from the unit's ReadWritePaths and the runtime directory, and /dev has no disks. The
process has the capabilities and system calls of the unit, and the socket. Mounts propagate from the host, not to it.
"""

import ctypes
import os
import platform
import re
import stat
import struct
import subprocess
import sys
from pathlib import Path

from pybtrfs import mountinfo, syscall
from pybtrfs.path import owned

_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 24, 22, 38, 65
_MDWE_REFUSE_EXEC_GAIN = 1
_SECCOMP_MODE_FILTER = 2
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 8, 32, 4096, 16384
_KEPT = {"nosuid": _MS_NOSUID, "nodev": _MS_NODEV, "noexec": _MS_NOEXEC}
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_HEADERS = ("/usr/include/linux/capability.h", f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h")

_libc = ctypes.CDLL(None, use_errno=True)


def settings_of(unit: str) -> dict[str, list[str]]:
    """
    Return the values of each setting of a unit, in order.
    """
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def capabilities() -> dict[str, int]:
    """
    Return the number of each capability in the kernel headers.
    """
    text = Path(_HEADERS[0]).read_text()
    return {name: int(number) for name, number in re.findall(r"^#define (CAP_[A-Z_]+)\s+(\d+)$", text, re.MULTILINE)}


def allowed_calls(filters: list[str]) -> set[str]:
    """
    Return the system calls that a list of ``SystemCallFilter=`` allows.
    """
    allowed: set[str] = set()
    for line in filters:
        names = _expanded(line.removeprefix("~").split())
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | _expanded(["@default"])


def _expanded(names: list[str]) -> set[str]:
    calls, groups = set(), [*names]
    while groups:
        name = groups.pop()
        if not name.startswith("@"):
            calls.add(name)
            continue
        shown = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        groups.extend(line.strip() for line in shown.stdout.splitlines()[1:] if line.strip() and "#" not in line)
    return calls


def _prctl(*arguments: int) -> None:
    if _libc.prctl(*map(ctypes.c_ulong, arguments), *([ctypes.c_ulong(0)] * (5 - len(arguments)))):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}")


def hide_devices() -> None:
    """
    Replace /dev by one without disks, as PrivateDevices does.
    """
    former = os.open("/dev", os.O_PATH)
    syscall.mount("none", "/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=755")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    os.symlink("/proc/self/fd", "/dev/fd")
    for name in ("shm", "pts"):
        os.mkdir(f"/dev/{name}")
        syscall.mount(f"/proc/self/fd/{former}/{name}", f"/dev/{name}", "", _MS_BIND | _MS_REC)
    os.close(former)


def protect(writable: list[str]) -> None:
    """
    Make every mount read-only, apart from the trees of *writable*.
    """
    for path in (*writable, "/proc/sys"):
        # As systemd does. A copy of the mount of a store would keep a dead filesystem from being unmounted.
        with owned(os.open(path, os.O_PATH)) as fd:
            mount = mountinfo.own(fd)
        if mount is None or mount.point != path:
            syscall.mount(path, path, "", _MS_BIND)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if point == "/proc" or any(point == path or point.startswith(path + "/") for path in (*writable, "/dev")):
            continue
        kept = sum(flag for name, flag in _KEPT.items() if name in fields[5].split(","))
        syscall.mount("none", point, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)


def filter_calls(allowed: set[str]) -> None:
    """
    Make every system call fail with EPERM unless it is in *allowed*.
    """
    text = Path(_HEADERS[1]).read_text()
    numbers = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    program = struct.pack("HBBI", load, 0, 0, 0)
    for number in sorted(numbers[name] for name in allowed & numbers.keys()):
        program += struct.pack("HBBI", jump_if_equal, 0, 1, number) + struct.pack("HBBI", give, 0, 0, 0x7FFF0000)
    program += struct.pack("HBBI", give, 0, 0, 0x00050000 | 1)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def main(unit: str, runtime_directory: str, listener: str, *command: str) -> None:
    values = settings_of(Path(unit).read_text())
    allowed = allowed_calls(values["SystemCallFilter"])
    hide_devices()
    protect([*values["ReadWritePaths"], runtime_directory])
    kept = set(values["CapabilityBoundingSet"][0].split())
    for name, number in capabilities().items():
        if name not in kept:
            _prctl(_PR_CAPBSET_DROP, number)
    os.dup2(int(listener), 3)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN)
    filter_calls(allowed)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
