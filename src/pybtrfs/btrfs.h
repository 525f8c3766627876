/*
 * The C functions of pybtrfs._btrfs. cffi releases the GIL around each call.
 *
 * A function that makes system calls returns -errno on failure, because other code could change errno before Python
 * reads it. The functions are hidden, so that calls are direct and the module exports none of them.
 *
 * build_ffi.py derives cffi's declarations from this file, as it does from btrfs_uapi.h.
 */

#pragma once

#include "btrfs_uapi.h"
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* A subvolume as Python reads it, from BTRFS_IOC_GET_SUBVOL_INFO or from the items of a tree search. */
struct pybtrfs_subvolume {
    uint64_t treeid;
    uint8_t name_len;
    char name[255];
    uint64_t parent_id;
    uint64_t dirid;
    uint64_t generation;
    uint64_t flags;
    uint64_t ctransid;
    uint64_t otransid;
    uint64_t stransid;
    uint64_t rtransid;
    int64_t ctime; /* all times are in nanoseconds since the epoch */
    int64_t otime;
    int64_t stime;
    int64_t rtime;
    uint8_t uuid[16];
    uint8_t parent_uuid[16];
    uint8_t received_uuid[16];
};

/* Items of a tree search that are yet to be read: count items in the bytes from next to end. */
struct pybtrfs_items {
    const char *next;
    const char *end;
    uint32_t count;
};

/* A tree in which to search for changes after transid. base_id is the tree to compare it with, or 0. */
struct pybtrfs_changed_tree {
    struct pybtrfs_ioctl_search_key key;
    uint64_t transid;
    uint64_t base_id;
};

/* The changes of trees, as pybtrfs_sum_changes adds them up. Zero at first. Only the first tree may have a base. */
struct pybtrfs_changes {
    /* The tree that is searched; the caller replaces it by the next when it ends. */
    struct pybtrfs_changed_tree tree;
    /* The sums. */
    uint64_t disk_bytes;
    uint64_t changed_inodes;
    uint64_t modified_inodes;
    uint64_t modified_bytes;
    /* The search, its remaining items, and the item before them. */
    struct pybtrfs_ioctl_search_args_v2 *search;
    struct pybtrfs_items items;
    struct pybtrfs_ioctl_search_header last;
    /* The search of the base, its remaining items and size, the last inode looked up, and whether no item follows. */
    struct pybtrfs_ioctl_search_args_v2 *base_search;
    struct pybtrfs_items base_items;
    size_t base_size;
    uint64_t base_inode;
    int base_complete;
    /* The disk_bytenr of each extent in disk_bytes: a hash table, in which 0 is a free slot. */
    uint64_t *extents;
    size_t extent_count;
    size_t extent_slots;
};

/* Issue an ioctl. Return its result or -errno. */
int pybtrfs_ioctl(int fd, unsigned long request, void *argument);

/*
 * Issue an ioctl that fills one number, and return the number or -errno.
 *
 * BTRFS_IOC_INO_LOOKUP is issued for the subvolume that contains fd, and returns its id; every other request takes
 * uint64_t.
 */
int64_t pybtrfs_value_ioctl(int fd, unsigned long request);

/*
 * Issue an ioctl on the entry of dirfd with the given name, which is size bytes long and needs no final NUL byte.
 *
 * BTRFS_IOC_SNAP_DESTROY takes struct pybtrfs_ioctl_vol_args and ignores the other arguments; every other request takes
 * struct pybtrfs_ioctl_vol_args_v2. inherit may be NULL.
 *
 * Return the result of the ioctl or -errno. Without an ioctl, return -EINVAL if the name contains a NUL byte, and
 * -ENAMETOOLONG if the name does not fit into the struct.
 */
int pybtrfs_vol_ioctl(int dirfd, unsigned long request, const char *name, size_t size, int source_fd, uint64_t flags,
                      struct pybtrfs_qgroup_inherit *inherit);

/* Fill *subvolume with BTRFS_IOC_GET_SUBVOL_INFO for the subvolume that contains fd. Return 0 or -errno. */
int pybtrfs_get_subvol_info(int fd, struct pybtrfs_subvolume *subvolume);

/* Call mount(2). Return 0 or -errno. */
int pybtrfs_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data);

/* Call umount2(2). Return 0 or -errno. */
int pybtrfs_umount2(const char *target, int flags);

/* Call open_tree(2). Return the new fd or -errno. */
int pybtrfs_open_tree(int dirfd, const char *path, unsigned int flags);

/* Call move_mount(2). Return 0 or -errno. */
int pybtrfs_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path, unsigned int flags);

/* Call mount_setattr(2). Return 0 or -errno. */
int pybtrfs_mount_setattr(int dirfd, const char *path, unsigned int flags, const struct pybtrfs_mount_attr *attr);

/*
 * Create a user namespace with two maps, in the format of /proc/PID/uid_map. Return an fd of it, close-on-exec, or
 * -errno.
 *
 * A child process of the call holds the namespace until its maps are written. It ends with the call, and sends no signal.
 */
int pybtrfs_user_namespace(const char *uid_map, const char *gid_map);

/* Call syncfs(2). Return 0 or -errno. */
int pybtrfs_syncfs(int fd);

/* Return the magic number of the filesystem that contains fd, or -errno. Calls fstatfs(2). */
int64_t pybtrfs_fstatfs_type(int fd);

/* Call openat2(2), which C libraries may lack. Return the new fd or -errno. */
int pybtrfs_openat2(int dirfd, const char *path, const struct pybtrfs_open_how *how);

/*
 * Create a directory with one extended attribute. Return its fd, close-on-exec, or -errno.
 *
 * On failure, remove the directory again. If the process is killed, the directory may remain without the attribute.
 */
int pybtrfs_make_directory(int dirfd, const char *name, unsigned int mode, const char *xattr, const void *value,
                           size_t size);

/*
 * Read an extended attribute of a directory, and the inode numbers of some of its subdirectories.
 *
 * names holds count names, each with its NUL byte. inodes[i] receives the inode number of the subdirectory with name i,
 * or 0 if there is no such entry or the entry is not a directory. Symlinks are not followed.
 *
 * Return the size of the attribute in bytes, or -errno. -ENODATA means that the directory has no such attribute; the
 * inode numbers are valid then, too.
 */
int64_t pybtrfs_read_directory(int dirfd, const char *name, const char *xattr, void *value, size_t size,
                               const char *names, uint64_t *inodes, size_t count);

/*
 * Create a directory as pybtrfs_make_directory does, and in it a snapshot of the subvolume source in source_dirfd.
 *
 * name is the name of the snapshot, name_size bytes long. On failure, remove the directory again. Return 0 or -errno.
 */
int pybtrfs_snapshot_in_directory(int source_dirfd, const char *source, int dirfd, const char *directory,
                                  unsigned int mode, const char *xattr, const void *value, size_t size,
                                  const char *name, size_t name_size);

/* Call name_to_handle_at(2). The caller sets handle->handle_bytes. Return 0 or -errno. */
int pybtrfs_name_to_handle_at(int dirfd, const char *path, struct pybtrfs_file_handle *handle, int flags);

/* Call open_by_handle_at(2). Return the new fd or -errno. */
int pybtrfs_open_by_handle_at(int fd, struct pybtrfs_file_handle *handle, int flags);

/* A mount namespace: its id for listmount(2), and the inode number that /proc/PID/ns/mnt shows. */
struct pybtrfs_mount_namespace {
    uint64_t id;
    uint64_t inode;
};

/*
 * List the mount namespaces in which the caller has CAP_SYS_ADMIN, and the caller's own, by NS_MNT_GET_NEXT.
 *
 * namespaces has room for count of them. Return their number, which may be larger than count, or -errno. -ENOTTY means
 * that the kernel is older than 6.12.
 */
int64_t pybtrfs_mount_namespaces(struct pybtrfs_mount_namespace *namespaces, size_t count);

/*
 * Read the mounts of one filesystem in a mount namespace, and all mounts that have one of these as their parent.
 *
 * The filesystem has the device number major:minor; if both are 0, every btrfs counts. Each mount is a struct
 * pybtrfs_statmount with its strings, at the next multiple of 8 bytes in buffer.
 *
 * Return the number of bytes in buffer, or -errno. -EOVERFLOW means that buffer is too small. A namespace that has ended
 * has no mounts. Calls listmount(2) and statmount(2).
 */
int64_t pybtrfs_read_mounts(uint64_t namespace_id, uint32_t major, uint32_t minor, char *buffer, size_t size);

/*
 * Filter the result of BTRFS_IOC_TREE_SEARCH_V2 in place: keep the inodes and file extents that changed after transid.
 *
 * items holds count items in at most size bytes. The kept items move to the front. *last receives the header of the
 * last item found, kept or not. sizes[0] receives the size of the kept items in bytes, sizes[1] that of all items.
 *
 * Return the number of items kept, or -EIO if items holds fewer than count items.
 */
int64_t pybtrfs_keep_changed(char *items, uint32_t size, uint32_t count, uint64_t transid,
                             struct pybtrfs_ioctl_search_header *last, uint32_t *sizes);

/*
 * Search changes->tree with BTRFS_IOC_TREE_SEARCH_V2 on fd, and add its changes to *changes.
 *
 * Inodes and file extents that changed after the transid count, but no unlinked inode and no hole. An extent counts
 * once, even if several files or trees reference it. An inode that was created before is looked up in the base, and
 * counts if it differs from the inode there.
 *
 * Return 0 at the end of the tree, or 1 if the given time has passed or a signal came: call again to continue. Return
 * -errno on failure: -EIO if the kernel returned fewer items than it counted, -EUCLEAN if an item is damaged, and
 * -EOVERFLOW if a sum does not fit.
 */
int pybtrfs_sum_changes(int fd, struct pybtrfs_changes *changes, int64_t nanoseconds);

/* Add changes->items to the sums, as a step of pybtrfs_sum_changes. Return 0, or -errno and keep the item at fault. */
int pybtrfs_sum_items(int fd, struct pybtrfs_changes *changes);

/* Free the memory of *changes, but not *changes itself. */
void pybtrfs_free_changes(struct pybtrfs_changes *changes);

/* Convert a result of BTRFS_IOC_GET_SUBVOL_INFO. */
void pybtrfs_read_info(const struct pybtrfs_ioctl_get_subvol_info_args *info, struct pybtrfs_subvolume *subvolume);

/*
 * Convert the root items and root backrefs that BTRFS_IOC_TREE_SEARCH_V2 found in the tree of roots.
 *
 * items holds count items in at most size bytes. subvolumes is zeroed memory with room for min(count, size / 32)
 * structs, because a header is 32 bytes long. A deleted subvolume has no backref: its parent_id, dirid and name stay
 * zero. *last receives the header of the item after which to continue the search: the last item, or the item before
 * a root item whose backref is yet to be found.
 *
 * Return the number of subvolumes, or -EIO if items holds fewer than count items.
 */
int64_t pybtrfs_read_subvolumes(const char *items, uint32_t size, uint32_t count, struct pybtrfs_subvolume *subvolumes,
                                struct pybtrfs_ioctl_search_header *last);

/* Update crc, a CRC32C without the inversions at its start and end, with the bytes of data. */
uint32_t pybtrfs_crc32c(uint32_t crc, const char *data, size_t size);

#pragma GCC visibility pop
