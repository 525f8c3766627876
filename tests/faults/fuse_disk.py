"""
A disk that logs the order of its writes: a FUSE server with nothing but the standard library.

    python fuse_disk.py DIRECTORY SIZE

The server makes the files ``DIRECTORY/fuse/{disk,mark,control}``, and then prints a line. ``disk`` is for a loop
device with a filesystem. ``DIRECTORY/disk`` has its content. Each change is appended to ``DIRECTORY/log``, which
power.py reads, before the request is answered. A write(2) to ``mark`` returns after the marker is in the log, behind
everything that the disk has done. A write(2) to ``control`` returns after its rules are in force.

A single thread answers requests in sequence, so the log has the order of the disk. A write in flight at a flush is
wholly before or wholly after the flush.

At the end of stdin, also if the parent died, the server unmounts and removes everything, including the filesystem at
``DIRECTORY/mount``.
"""

import ctypes
import errno
import os
import shutil
import struct
import sys
import threading

ENTRY = struct.Struct("<cQQ")  # kind, offset, length; followed by the data of a write or a marker
WRITE, ZERO, FLUSH, MARK = b"W", b"Z", b"F", b"M"

# include/uapi/linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE_OP, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH_OP, INIT, OPENDIR, READDIR, RELEASEDIR = 18, 20, 25, 26, 27, 28, 29
INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE = 36, 38, 42, 43
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_IN = struct.Struct("<IIII")
INIT_OUT = struct.Struct("<IIIIHHIIHH32x")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ATTR_OUT = struct.Struct("<QII")
ENTRY_OUT = struct.Struct("<QQQQII")
OPEN_OUT = struct.Struct("<QIi")
READ_IN = struct.Struct("<QQIIQII")
WRITE_IN = READ_IN
WRITE_OUT = struct.Struct("<II")
FALLOCATE_IN = struct.Struct("<QQQII")
FUSE_ASYNC_DIO, FUSE_MAX_PAGES = 1 << 15, 1 << 22
FOPEN_DIRECT_IO = 1
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
MAX_WRITE = 1 << 20

MNT_DETACH = 2
PR_SET_IO_FLUSHER = 57
ROOT, DISK, MARK_FILE, CONTROL = 1, 2, 3, 4
NAMES = {b"disk": DISK, b"mark": MARK_FILE, b"control": CONTROL}

libc = ctypes.CDLL(None, use_errno=True)


EMPTY = memoryview(b"")


class RefusedError(Exception):
    """
    A refusal of a request with an errno.
    """


class Faults:
    """
    The requests that the disk refuses, as last written to ``control``.
    """

    def __init__(self, disk: int) -> None:
        self.disk = disk
        self.rules: list[tuple[str, int, int, int]] = []

    def set(self, text: str) -> None:
        """
        Set the rules, each a line ``REQUEST ERRNO [START END]``. Without lines the disk is healthy.

        REQUEST is ``write``, ``data``, ``flush`` or ``read``; START and END bound its bytes. ``data`` are writes other
        than tree blocks and superblocks.
        """
        rules = []
        for request, name, *bounds in map(str.split, text.strip().splitlines()):
            if request not in ("write", "data", "flush", "read") or not hasattr(errno, name):
                raise RefusedError(errno.EINVAL)
            start, end = map(int, bounds) if bounds else (0, 1 << 63)
            rules.append((request, int(getattr(errno, name)), start, end))
        self.rules = rules
        # Tree blocks and superblocks carry the filesystem's id in bytes 32 to 47.
        self.fsid = os.pread(self.disk, 16, 65536 + 32)

    def check(self, request: str, offset: int = 0, length: int = 1, data: memoryview = EMPTY) -> None:
        for kind, number, start, end in self.rules:
            hit = kind == request or (kind == "data" and request == "write" and data[32:48] != self.fsid)
            if hit and offset < end and start < offset + length:
                raise RefusedError(number)


class Server:
    def __init__(self, directory: str, size: int) -> None:
        self.size = size
        self.disk = os.open(f"{directory}/disk", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.disk, size)
        self.log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.faults = Faults(self.disk)

    def append(self, kind: bytes, offset: int = 0, length: int = 0, data: memoryview = EMPTY) -> None:
        os.writev(self.log, [ENTRY.pack(kind, offset, length), data])

    def attributes(self, node: int) -> bytes:
        mode = 0o40700 if node == ROOT else 0o100600
        size = self.size if node == DISK else 0
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, opcode: int, node: int, body: memoryview) -> bytes:
        """
        Return the answer to a request of the kernel.

        Raises:
            RefusedError: The answer is an errno.
        """
        if opcode == READ:
            _, offset, size, *_ = READ_IN.unpack_from(body)
            if node != DISK:
                return b""
            self.faults.check("read", offset, size)
            return os.pread(self.disk, size, offset)
        if opcode == WRITE_OP:
            _, offset, size, *_ = WRITE_IN.unpack_from(body)
            self.write(node, offset, body[WRITE_IN.size : WRITE_IN.size + size])
            return WRITE_OUT.pack(size, 0)
        if opcode == FSYNC:
            self.faults.check("flush")
            self.append(FLUSH)
            return b""
        if opcode == FALLOCATE:
            _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(body)
            if node != DISK or not mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
                raise RefusedError(errno.EOPNOTSUPP)
            self.faults.check("write", offset, length)
            punch(self.disk, offset, length)
            self.append(ZERO, offset, length)
            return b""
        if opcode == LOOKUP:
            name = bytes(body[:-1])
            if node != ROOT or name not in NAMES:
                raise RefusedError(errno.ENOENT)
            return ENTRY_OUT.pack(NAMES[name], 0, 3600, 3600, 0, 0) + self.attributes(NAMES[name])
        if opcode in (GETATTR, SETATTR):
            return ATTR_OUT.pack(3600, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return OPEN_OUT.pack(0, FOPEN_DIRECT_IO if opcode == OPEN else 0, 0)
        if opcode == INIT:
            _, _, readahead, flags = INIT_IN.unpack_from(body)
            flags &= FUSE_ASYNC_DIO | FUSE_MAX_PAGES
            return INIT_OUT.pack(7, 31, readahead, flags, 64, 48, MAX_WRITE, 1, MAX_WRITE // 4096, 0)
        if opcode == STATFS:
            return bytes(80)
        if opcode in (RELEASE, RELEASEDIR, READDIR, FLUSH_OP, DESTROY):
            return b""
        raise RefusedError(errno.ENOSYS)

    def write(self, node: int, offset: int, data: memoryview) -> None:
        if node == CONTROL:
            self.faults.set(bytes(data).decode())
        elif node == MARK_FILE:
            self.append(MARK, 0, len(data), data)
        else:
            self.faults.check("write", offset, len(data), data)
            if os.pwrite(self.disk, data, offset) != len(data):
                raise RefusedError(errno.EIO)
            self.append(WRITE, offset, len(data), data)

    def serve(self, fuse: int) -> None:
        """
        Answer requests until the filesystem is unmounted.
        """
        buffer = memoryview(bytearray(MAX_WRITE + 4096))
        while True:
            try:
                length = os.readv(fuse, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted before it was read
                    continue
                raise
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(buffer)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                reply, number = self.answer(opcode, node, buffer[IN_HEADER.size : length]), 0
            except RefusedError as refused:
                reply, number = b"", refused.args[0]
            except OSError as error:
                reply, number = b"", error.errno or errno.EIO
            try:
                os.writev(fuse, [OUT_HEADER.pack(OUT_HEADER.size + len(reply), -number, unique), reply])
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


def punch(fd: int, offset: int, length: int) -> None:
    """
    Make a range of a file read as zeros.
    """
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def main() -> None:
    directory, size = sys.argv[1], int(sys.argv[2])
    server = Server(directory, size)
    os.mkdir(f"{directory}/fuse")
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"faults", f"{directory}/fuse".encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount of a FUSE file system")
    libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)  # allocations of this process must never wait for its own disk

    def clean_up() -> None:
        sys.stdin.buffer.read()
        # The parent has already unmounted it, unless it died.
        libc.umount2(f"{directory}/mount".encode(), MNT_DETACH)
        if libc.umount2(f"{directory}/fuse".encode(), 0):
            libc.umount2(f"{directory}/fuse".encode(), MNT_DETACH)

    # A thread, because umount2 of the disk's filesystem needs answers of this one. ctypes releases the GIL.
    cleaner = threading.Thread(target=clean_up)
    cleaner.start()
    print("ready", flush=True)
    try:
        server.serve(fuse)
    finally:
        os.close(fuse)  # after a failure, pending requests get ENOTCONN and do not hang
        cleaner.join()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
