"""
Builds ``pybtrfs._btrfs``: the ioctls and system calls that Python's standard library lacks.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
HEADER = "src/pybtrfs/btrfs_uapi.h"

# Each function answers -errno where the system call answers -1: nothing can run between the call and reading errno.
FUNCTIONS = """
int pybtrfs_ioctl(int fd, unsigned long request, void *argument);
int pybtrfs_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data);
int pybtrfs_umount2(const char *target, int flags);
int pybtrfs_syncfs(int fd);
int64_t pybtrfs_fstatfs_type(int fd);
int pybtrfs_openat2(int dirfd, const char *path, const struct pybtrfs_open_how *how);
int pybtrfs_open_by_handle_at(int fd, struct pybtrfs_file_handle *handle, int flags);
uint32_t pybtrfs_keep_changed(char *items, uint32_t count, uint64_t transid, struct pybtrfs_ioctl_search_header *last,
                              uint32_t *size);
"""

SOURCE = """
#include "btrfs_uapi.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <string.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437 /* the same on every architecture */
#endif

static int pybtrfs_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

static int pybtrfs_mount(const char *source, const char *target, const char *fstype, unsigned long flags,
                         const char *data)
{
    return mount(source, target, fstype, flags, data) < 0 ? -errno : 0;
}

static int pybtrfs_umount2(const char *target, int flags)
{
    return umount2(target, flags) < 0 ? -errno : 0;
}

static int pybtrfs_syncfs(int fd)
{
    return syncfs(fd) < 0 ? -errno : 0;
}

static int64_t pybtrfs_fstatfs_type(int fd)
{
    struct statfs buffer;
    return fstatfs(fd, &buffer) < 0 ? -errno : (int64_t)(uint32_t)buffer.f_type;
}

static int pybtrfs_openat2(int dirfd, const char *path, const struct pybtrfs_open_how *how)
{
    int fd = (int)syscall(SYS_openat2, dirfd, path, how, sizeof(*how));
    return fd < 0 ? -errno : fd;
}

static int pybtrfs_open_by_handle_at(int fd, struct pybtrfs_file_handle *handle, int flags)
{
    int opened = open_by_handle_at(fd, (struct file_handle *)handle, flags);
    return opened < 0 ? -errno : opened;
}

/*
 * Keep, of the items that a tree search found, the inodes and file extents that changed after the transaction. Gives
 * how many they are and how large, and the header of the last item found.
 */
static uint32_t pybtrfs_keep_changed(char *items, uint32_t count, uint64_t transid,
                                     struct pybtrfs_ioctl_search_header *last, uint32_t *size)
{
    const char *from = items;
    char *to = items;
    uint32_t kept = 0;

    while (count--) {
        memcpy(last, from, sizeof(*last));
        uint32_t length = sizeof(*last) + last->len;
        int inode = last->type == PYBTRFS_INODE_ITEM_KEY;
        if ((inode || last->type == PYBTRFS_EXTENT_DATA_KEY) && last->len >= 2 * sizeof(uint64_t)) {
            uint64_t changed;
            /* Both begin with the transaction that made them; in an inode the one that changed it last follows. */
            memcpy(&changed, from + sizeof(*last) + (inode ? sizeof(changed) : 0), sizeof(changed));
            if (le64toh(changed) > transid) {
                memmove(to, from, length);
                to += length;
                kept++;
            }
        }
        from += length;
    }
    *size = (uint32_t)(to - items);
    return kept;
}
"""

# From <sys/mount.h> and <fcntl.h>.
CONSTANTS = """
#define MS_RDONLY ...
#define MS_NOSUID ...
#define MS_NODEV ...
#define MS_NOEXEC ...
#define MS_REMOUNT ...
#define MS_NOATIME ...
#define MS_BIND ...
#define MS_REC ...
#define MS_PRIVATE ...
#define MNT_FORCE ...
#define MNT_DETACH ...
#define UMOUNT_NOFOLLOW ...
#define O_PATH ...
"""


def declarations(header: str) -> str:
    """
    The header as cffi reads it: constants, and whatever else a struct may hold, are left to the compiler.
    """
    header = re.sub(r"^(#pragma|#include|_Static_assert).*", "", header, flags=re.MULTILINE)
    header = re.sub(r"^#define (\w+) .*", r"#define \1 ...", header, flags=re.MULTILINE)
    return re.sub(r"^};", "    ...;\n};", header, flags=re.MULTILINE)


version = (HERE / "src/pybtrfs/_version.py").read_text().split('"')[1]

ffi = FFI()
ffi.cdef("static const char *const PYBTRFS_VERSION;")
ffi.cdef(declarations((HERE / HEADER).read_text()))
ffi.cdef(FUNCTIONS)
ffi.cdef(CONSTANTS)
ffi.set_source(
    "pybtrfs._btrfs",
    SOURCE,
    define_macros=[("_GNU_SOURCE", "1"), ("PYBTRFS_VERSION", f'"{version}"')],
    depends=[HEADER],
    include_dirs=[str(HERE / "src/pybtrfs")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
