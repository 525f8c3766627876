/* The functions that btrfs.h describes. */

#include "btrfs.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define PYBTRFS_LARGEST_ITEM (1 << 16) /* bytes; an item is smaller than a node, and no node is larger */
#define PYBTRFS_SEARCH_SIZE (1 << 17)  /* bytes */
#define PYBTRFS_ONE_INODE 512          /* bytes, for one inode item and its header */
#define PYBTRFS_MANY_INODES (1 << 16)  /* bytes */
#define PYBTRFS_CLOSE 4                /* inode numbers; near enough to read all in between */
#define PYBTRFS_BLOCK 4096             /* bytes */

#define PYBTRFS_DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_openat2
#define SYS_openat2 437 /* on every architecture */
#endif
#ifndef SYS_statmount
#define SYS_statmount 457
#endif
#ifndef SYS_listmount
#define SYS_listmount 458
#endif

int pybtrfs_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

int64_t pybtrfs_value_ioctl(int fd, unsigned long request)
{
    if (request == PYBTRFS_IOC_INO_LOOKUP) {
        struct pybtrfs_ioctl_ino_lookup_args arguments = {.objectid = PYBTRFS_FIRST_FREE_OBJECTID};
        int result = pybtrfs_ioctl(fd, request, &arguments);
        return result < 0 ? result : (int64_t)arguments.treeid;
    }
    uint64_t value = 0;
    int result = pybtrfs_ioctl(fd, request, &value);
    return result < 0 ? result : (int64_t)value;
}

int pybtrfs_vol_ioctl(int dirfd, unsigned long request, const char *name, size_t size, int source_fd, uint64_t flags,
                      struct pybtrfs_qgroup_inherit *inherit)
{
    if (memchr(name, 0, size))
        return -EINVAL;
    if (request == PYBTRFS_IOC_SNAP_DESTROY) {
        struct pybtrfs_ioctl_vol_args arguments = {0};
        if (size >= sizeof(arguments.name))
            return -ENAMETOOLONG;
        memcpy(arguments.name, name, size);
        return pybtrfs_ioctl(dirfd, request, &arguments);
    }
    struct pybtrfs_ioctl_vol_args_v2 arguments = {.fd = source_fd, .flags = flags};
    if (size >= sizeof(arguments.name))
        return -ENAMETOOLONG;
    memcpy(arguments.name, name, size);
    if (inherit) {
        arguments.flags |= PYBTRFS_SUBVOL_QGROUP_INHERIT;
        arguments.size = sizeof(*inherit) + inherit->num_qgroups * sizeof(inherit->qgroups[0]);
        arguments.qgroup_inherit = inherit;
    }
    return pybtrfs_ioctl(dirfd, request, &arguments);
}

int pybtrfs_mount(const char *source, const char *target, const char *fstype, unsigned long flags, const char *data)
{
    return mount(source, target, fstype, flags, data) < 0 ? -errno : 0;
}

int pybtrfs_umount2(const char *target, int flags)
{
    return umount2(target, flags) < 0 ? -errno : 0;
}

int pybtrfs_open_tree(int dirfd, const char *path, unsigned int flags)
{
    int fd = (int)syscall(SYS_open_tree, dirfd, path, flags);
    return fd < 0 ? -errno : fd;
}

int pybtrfs_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path, unsigned int flags)
{
    return syscall(SYS_move_mount, from_dirfd, from_path, to_dirfd, to_path, flags) < 0 ? -errno : 0;
}

int pybtrfs_mount_setattr(int dirfd, const char *path, unsigned int flags, const struct pybtrfs_mount_attr *attr)
{
    return syscall(SYS_mount_setattr, dirfd, path, flags, attr, sizeof(*attr)) < 0 ? -errno : 0;
}

/* Write a map of ids in one call to write(2), as the kernel requires. Return 0 or -errno. */
static int pybtrfs_write_map(pid_t pid, const char *name, const char *map)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int result = write(fd, map, strlen(map)) < 0 ? -errno : 0;
    close(fd);
    return result;
}

int pybtrfs_user_namespace(const char *uid_map, const char *gid_map)
{
    /* Without an exit signal, so that the program's own waiting for children never meets this one. */
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER, NULL, NULL, NULL, 0);
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    int result = pybtrfs_write_map(pid, "uid_map", uid_map);
    if (!result)
        result = pybtrfs_write_map(pid, "gid_map", gid_map);
    if (!result) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
        result = open(path, O_RDONLY | O_CLOEXEC);
        if (result < 0)
            result = -errno;
    }
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, __WCLONE) < 0 && errno == EINTR)
        ;
    return result;
}

int pybtrfs_syncfs(int fd)
{
    return syncfs(fd) < 0 ? -errno : 0;
}

int64_t pybtrfs_fstatfs_type(int fd)
{
    struct statfs buffer;
    return fstatfs(fd, &buffer) < 0 ? -errno : (int64_t)(uint32_t)buffer.f_type;
}

int pybtrfs_openat2(int dirfd, const char *path, const struct pybtrfs_open_how *how)
{
    int fd = (int)syscall(SYS_openat2, dirfd, path, how, sizeof(*how));
    return fd < 0 ? -errno : fd;
}

int pybtrfs_make_directory(int dirfd, const char *name, unsigned int mode, const char *xattr, const void *value,
                           size_t size)
{
    if (mkdirat(dirfd, name, mode) < 0)
        return -errno;
    int fd = openat(dirfd, name, PYBTRFS_DIRECTORY);
    if (fd >= 0 && fsetxattr(fd, xattr, value, size, 0) == 0)
        return fd;
    int error = errno;
    if (fd >= 0)
        close(fd);
    unlinkat(dirfd, name, AT_REMOVEDIR);
    return -error;
}

int64_t pybtrfs_read_directory(int dirfd, const char *name, const char *xattr, void *value, size_t size,
                               const char *names, uint64_t *inodes, size_t count)
{
    int fd = openat(dirfd, name, PYBTRFS_DIRECTORY);
    if (fd < 0)
        return -errno;
    int64_t result = fgetxattr(fd, xattr, value, size);
    if (result < 0)
        result = -errno;
    for (size_t i = 0; i < count && (result >= 0 || result == -ENODATA); i++, names += strlen(names) + 1) {
        struct stat status;
        if (fstatat(fd, names, &status, AT_SYMLINK_NOFOLLOW) == 0)
            inodes[i] = S_ISDIR(status.st_mode) ? status.st_ino : 0;
        else if (errno == ENOENT)
            inodes[i] = 0;
        else
            result = -errno;
    }
    close(fd);
    return result;
}

int pybtrfs_snapshot_in_directory(int source_dirfd, const char *source, int dirfd, const char *directory,
                                  unsigned int mode, const char *xattr, const void *value, size_t size,
                                  const char *name, size_t name_size)
{
    int source_fd = openat(source_dirfd, source, PYBTRFS_DIRECTORY);
    if (source_fd < 0)
        return -errno;
    int fd = pybtrfs_make_directory(dirfd, directory, mode, xattr, value, size);
    int result = fd;
    if (fd >= 0) {
        result = pybtrfs_vol_ioctl(fd, PYBTRFS_IOC_SNAP_CREATE_V2, name, name_size, source_fd, 0, NULL);
        if (result < 0)
            unlinkat(dirfd, directory, AT_REMOVEDIR);
        close(fd);
    }
    close(source_fd);
    return result;
}

int pybtrfs_name_to_handle_at(int dirfd, const char *path, struct pybtrfs_file_handle *handle, int flags)
{
    int mount_id;
    return name_to_handle_at(dirfd, path, (struct file_handle *)handle, &mount_id, flags) < 0 ? -errno : 0;
}

int pybtrfs_open_by_handle_at(int fd, struct pybtrfs_file_handle *handle, int flags)
{
    int opened = open_by_handle_at(fd, (struct file_handle *)handle, flags);
    return opened < 0 ? -errno : opened;
}

static int64_t pybtrfs_add_namespace(int fd, const struct pybtrfs_mnt_ns_info *info, int64_t found,
                                     struct pybtrfs_mount_namespace *namespaces, size_t count)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if ((size_t)found < count)
        namespaces[found] = (struct pybtrfs_mount_namespace){info->mnt_ns_id, status.st_ino};
    return found + 1;
}

int64_t pybtrfs_mount_namespaces(struct pybtrfs_mount_namespace *namespaces, size_t count)
{
    int own = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return -errno;
    struct pybtrfs_mnt_ns_info info = {0};
    int64_t found = ioctl(own, PYBTRFS_NS_MNT_GET_INFO, &info) < 0 ? -errno : 0;
    if (found == 0)
        found = pybtrfs_add_namespace(own, &info, 0, namespaces, count);
    /* Newer namespaces come last, because a namespace that is made during the call may be a copy of an older one. */
    const unsigned long directions[] = {PYBTRFS_NS_MNT_GET_PREV, PYBTRFS_NS_MNT_GET_NEXT};
    for (size_t i = 0; i < 2 && found >= 0; i++) {
        int fd = own, next;
        while (found >= 0 && (next = ioctl(fd, directions[i], &info)) >= 0) {
            if (fd != own)
                close(fd);
            fd = next;
            found = pybtrfs_add_namespace(fd, &info, found, namespaces, count);
        }
        if (found >= 0 && errno != ENOENT)
            found = -errno;
        if (fd != own)
            close(fd);
    }
    close(own);
    return found;
}

static int pybtrfs_statmount_call(uint64_t namespace_id, uint64_t id, uint64_t mask, struct pybtrfs_statmount *result,
                                  size_t size)
{
    struct pybtrfs_mnt_id_req request = {.size = sizeof(request), .mnt_id = id, .param = mask, .mnt_ns_id = namespace_id};
    return syscall(SYS_statmount, &request, result, size, 0) < 0 ? -errno : 0;
}

struct pybtrfs_listed_mount {
    uint64_t id;
    uint64_t parent_id;
    int matches;
};

static int pybtrfs_compare_ids(const void *a, const void *b)
{
    uint64_t left = ((const struct pybtrfs_listed_mount *)a)->id, right = ((const struct pybtrfs_listed_mount *)b)->id;
    return (left > right) - (left < right);
}

/* List the mounts of a namespace in ascending order of their ids, in memory that the caller frees. */
static int64_t pybtrfs_list_mounts(uint64_t namespace_id, uint32_t major, uint32_t minor,
                                   struct pybtrfs_listed_mount **mounts)
{
    uint64_t ids[512];
    struct pybtrfs_mnt_id_req request = {
        .size = sizeof(request), .mnt_id = PYBTRFS_LSMT_ROOT, .mnt_ns_id = namespace_id};
    int64_t count = 0;
    for (;;) {
        int64_t listed = syscall(SYS_listmount, &request, ids, sizeof(ids) / sizeof(ids[0]), 0);
        if (listed <= 0)
            return listed == 0 || errno == ENOENT ? count : -errno;
        struct pybtrfs_listed_mount *larger = realloc(*mounts, (count + listed) * sizeof(**mounts));
        if (!larger)
            return -ENOMEM;
        *mounts = larger;
        for (int64_t i = 0; i < listed; i++) {
            struct pybtrfs_statmount basic;
            int result = pybtrfs_statmount_call(
                namespace_id, ids[i], PYBTRFS_STATMOUNT_SB_BASIC | PYBTRFS_STATMOUNT_MNT_BASIC, &basic, sizeof(basic));
            if (result == -ENOENT)
                continue; /* unmounted since it was listed */
            if (result < 0)
                return result;
            int matches = major || minor ? basic.sb_dev_major == major && basic.sb_dev_minor == minor
                                         : basic.sb_magic == PYBTRFS_SUPER_MAGIC;
            larger[count++] = (struct pybtrfs_listed_mount){ids[i], basic.mnt_parent_id, matches};
        }
        request.param = ids[listed - 1];
    }
}

int64_t pybtrfs_read_mounts(uint64_t namespace_id, uint32_t major, uint32_t minor, char *buffer, size_t size)
{
    const uint64_t mask = PYBTRFS_STATMOUNT_SB_BASIC | PYBTRFS_STATMOUNT_MNT_BASIC | PYBTRFS_STATMOUNT_MNT_ROOT |
                          PYBTRFS_STATMOUNT_MNT_POINT | PYBTRFS_STATMOUNT_MNT_OPTS;
    struct pybtrfs_listed_mount *mounts = NULL;
    int64_t count = pybtrfs_list_mounts(namespace_id, major, minor, &mounts);
    int64_t used = count < 0 ? count : 0;
    for (int64_t i = 0; i < count && used >= 0; i++) {
        if (!mounts[i].matches) {
            struct pybtrfs_listed_mount key = {.id = mounts[i].parent_id};
            struct pybtrfs_listed_mount *parent = bsearch(&key, mounts, count, sizeof(key), pybtrfs_compare_ids);
            if (!parent || !parent->matches)
                continue;
        }
        if (size - used < sizeof(struct pybtrfs_statmount)) {
            used = -EOVERFLOW;
            break;
        }
        struct pybtrfs_statmount *mount = (struct pybtrfs_statmount *)(buffer + used);
        int result = pybtrfs_statmount_call(namespace_id, mounts[i].id, mask, mount, size - used);
        if (result == 0)
            used += (mount->size + 7) & ~7U;
        else if (result != -ENOENT)
            used = result;
        if (used > (int64_t)size)
            used = -EOVERFLOW;
    }
    free(mounts);
    return used;
}

/* Read the next item. Return 1, 0 if there is none, or -EIO if the buffer ends before the item does. */
static int pybtrfs_next_item(struct pybtrfs_items *items, struct pybtrfs_ioctl_search_header *header, const char **data)
{
    if (items->count == 0)
        return 0;
    if ((size_t)(items->end - items->next) < sizeof(*header))
        return -EIO;
    memcpy(header, items->next, sizeof(*header));
    *data = items->next + sizeof(*header);
    if ((size_t)(items->end - *data) < header->len)
        return -EIO;
    items->next = *data + header->len;
    items->count--;
    return 1;
}

int64_t pybtrfs_keep_changed(char *items, uint32_t size, uint32_t count, uint64_t transid,
                             struct pybtrfs_ioctl_search_header *last, uint32_t *sizes)
{
    struct pybtrfs_items rest = {items, items + size, count};
    const char *from = items, *data;
    char *to = items;
    int64_t kept = 0;
    int result;

    for (; (result = pybtrfs_next_item(&rest, last, &data)) > 0; from = rest.next) {
        int inode = last->type == PYBTRFS_INODE_ITEM_KEY;
        if ((inode || last->type == PYBTRFS_EXTENT_DATA_KEY) && last->len >= 2 * sizeof(uint64_t)) {
            uint64_t changed;
            /* Both items begin with the generation; in an inode, the transid of its last change follows. */
            memcpy(&changed, data + (inode ? sizeof(changed) : 0), sizeof(changed));
            if (le64toh(changed) > transid) {
                memmove(to, from, (size_t)(rest.next - from));
                to += rest.next - from;
                kept++;
            }
        }
    }
    sizes[0] = (uint32_t)(to - items);
    sizes[1] = (uint32_t)(rest.next - items);
    return result < 0 ? result : kept;
}

/* Search the range of *key in a buffer of the given size. Return 0 or -errno. */
static int pybtrfs_search(int fd, const struct pybtrfs_ioctl_search_key *key, struct pybtrfs_ioctl_search_args_v2 *search,
                          size_t size, struct pybtrfs_items *items)
{
    search->key = *key;
    search->buf_size = size;
    int result = pybtrfs_ioctl(fd, PYBTRFS_IOC_TREE_SEARCH_V2, search);
    if (result < 0)
        return result;
    const char *found = (const char *)search->buf;
    *items = (struct pybtrfs_items){found, found + size, search->key.nr_items};
    return 0;
}

/*
 * Read the inode item of *inode* in the base. Return 1, 0 if the base has no such inode, or -errno.
 *
 * The inodes are asked for in ascending order, so each search continues where the one before ended. Few of the inodes
 * may have changed, so a search reads one inode. If the next inodes are close, each search reads eight times as much.
 */
static int pybtrfs_read_base_inode(int fd, struct pybtrfs_changes *changes, uint64_t inode,
                                   struct pybtrfs_inode_item *item)
{
    struct pybtrfs_items *items = &changes->base_items;
    uint64_t distance = inode - changes->base_inode;
    changes->base_inode = inode;

    for (int searched = changes->base_complete;; searched = 1) {
        struct pybtrfs_items rest = *items;
        struct pybtrfs_ioctl_search_header header;
        const char *data;
        int result;
        while ((result = pybtrfs_next_item(&rest, &header, &data)) > 0 && header.objectid <= inode) {
            *items = rest;
            if (header.objectid == inode && header.type == PYBTRFS_INODE_ITEM_KEY) {
                if (header.len < sizeof(*item))
                    return -EUCLEAN;
                memcpy(item, data, sizeof(*item));
                return 1;
            }
        }
        if (result != 0 || searched)
            return result < 0 ? result : 0;

        if (!changes->base_search &&
            !(changes->base_search = malloc(sizeof(*changes->base_search) + PYBTRFS_MANY_INODES)))
            return -ENOMEM;
        if (distance > PYBTRFS_CLOSE)
            changes->base_size = PYBTRFS_ONE_INODE;
        else
            changes->base_size = changes->base_size < PYBTRFS_MANY_INODES / 8 ? 8 * changes->base_size : PYBTRFS_MANY_INODES;
        struct pybtrfs_ioctl_search_key key = {.tree_id = changes->tree.base_id,
                                               .min_objectid = inode,
                                               .max_objectid = changes->tree.key.max_objectid,
                                               .max_offset = UINT64_MAX,
                                               .max_transid = UINT64_MAX,
                                               .min_type = PYBTRFS_INODE_ITEM_KEY,
                                               .max_type = UINT8_MAX,
                                               .nr_items = UINT32_MAX};
        result = pybtrfs_search(fd, &key, changes->base_search, changes->base_size, items);
        if (result < 0 && result != -EOVERFLOW) /* an item that does not fit is no inode item */
            return result;
        changes->base_complete = result == 0 && items->count == 0;
    }
}

/* Return the slot with *bytenr in a table of extents, or the free slot for it. */
static uint64_t *pybtrfs_find_slot(uint64_t *extents, size_t slots, uint64_t bytenr)
{
    size_t slot = (size_t)(bytenr * 0x9E3779B97F4A7C15 >> 32); /* Fibonacci hashing */
    while (extents[slot &= slots - 1] && extents[slot] != bytenr)
        slot++;
    return &extents[slot];
}

/* Add an extent to the set of counted extents. Return 1, 0 if the set has it already, or -ENOMEM. */
static int pybtrfs_add_extent(struct pybtrfs_changes *changes, uint64_t bytenr)
{
    if (changes->extent_count == changes->extent_slots / 2) {
        size_t slots = changes->extent_slots ? 2 * changes->extent_slots : 512;
        uint64_t *larger = calloc(slots, sizeof(*larger));
        if (!larger)
            return -ENOMEM;
        for (size_t i = 0; i < changes->extent_slots; i++)
            if (changes->extents[i])
                *pybtrfs_find_slot(larger, slots, changes->extents[i]) = changes->extents[i];
        free(changes->extents);
        changes->extents = larger;
        changes->extent_slots = slots;
    }
    uint64_t *slot = pybtrfs_find_slot(changes->extents, changes->extent_slots, bytenr);
    if (*slot)
        return 0;
    *slot = bytenr;
    changes->extent_count++;
    return 1;
}

/* Add size to *sum. Return 0 or -EOVERFLOW. */
static int pybtrfs_add(uint64_t *sum, uint64_t size)
{
    return __builtin_add_overflow(*sum, size, sum) ? -EOVERFLOW : 0;
}

/* Add an inode to the sums. Return 0 or -errno. */
static int pybtrfs_sum_inode(int fd, struct pybtrfs_changes *changes, const struct pybtrfs_ioctl_search_header *header,
                             const char *data)
{
    struct pybtrfs_inode_item now, before;
    if (header->len < sizeof(now))
        return -EUCLEAN;
    memcpy(&now, data, sizeof(now));
    if (le64toh(now.transid) <= changes->tree.transid || now.nlink == 0)
        return 0;

    int changed = 1, modified = 1;
    if (changes->tree.base_id && le64toh(now.generation) <= changes->tree.transid) {
        int found = pybtrfs_read_base_inode(fd, changes, header->objectid, &before);
        if (found < 0)
            return found;
        if (found && now.mode == before.mode && now.uid == before.uid && now.gid == before.gid &&
            now.rdev == before.rdev) {
            if (S_ISDIR(le32toh(now.mode))) {
                changed = modified = 0; /* a change of the entries is none of the directory */
            } else if (now.size == before.size && now.nlink == before.nlink) {
                changed = memcmp(&now.ctime, &before.ctime, sizeof(now.ctime)) != 0;
                modified = memcmp(&now.mtime, &before.mtime, sizeof(now.mtime)) != 0;
            }
        }
    }
    changes->changed_inodes += changed;
    changes->modified_inodes += modified;
    uint64_t size = le64toh(now.nbytes), padding = -size % PYBTRFS_BLOCK;
    if (!modified)
        return 0;
    return pybtrfs_add(&size, padding) || pybtrfs_add(&changes->modified_bytes, size) ? -EOVERFLOW : 0;
}

/* Add a file extent to the sums. Return 0 or -errno. */
static int pybtrfs_sum_extent(struct pybtrfs_changes *changes, const struct pybtrfs_ioctl_search_header *header,
                              const char *data)
{
    const size_t inline_data = offsetof(struct pybtrfs_file_extent_item, disk_bytenr);
    struct pybtrfs_file_extent_item extent = {0};
    if (header->len < inline_data)
        return -EUCLEAN;
    memcpy(&extent, data, header->len < sizeof(extent) ? header->len : sizeof(extent));
    if (le64toh(extent.generation) <= changes->tree.transid)
        return 0;
    if (extent.type == PYBTRFS_FILE_EXTENT_INLINE)
        return pybtrfs_add(&changes->disk_bytes, header->len - inline_data);
    if (header->len < sizeof(extent) ||
        (extent.type != PYBTRFS_FILE_EXTENT_REG && extent.type != PYBTRFS_FILE_EXTENT_PREALLOC))
        return -EUCLEAN;
    if (extent.disk_bytenr == 0)
        return 0; /* a hole */
    int added = pybtrfs_add_extent(changes, le64toh(extent.disk_bytenr));
    return added <= 0 ? added : pybtrfs_add(&changes->disk_bytes, le64toh(extent.disk_num_bytes));
}

int pybtrfs_sum_items(int fd, struct pybtrfs_changes *changes)
{
    for (;;) {
        struct pybtrfs_items rest = changes->items;
        const char *data;
        int result = pybtrfs_next_item(&rest, &changes->last, &data);
        if (result <= 0)
            return result;
        if (changes->last.type == PYBTRFS_INODE_ITEM_KEY)
            result = pybtrfs_sum_inode(fd, changes, &changes->last, data);
        else if (changes->last.type == PYBTRFS_EXTENT_DATA_KEY)
            result = pybtrfs_sum_extent(changes, &changes->last, data);
        if (result < 0)
            return result;
        changes->items = rest;
    }
}

static int64_t pybtrfs_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int pybtrfs_sum_changes(int fd, struct pybtrfs_changes *changes, int64_t nanoseconds)
{
    struct pybtrfs_ioctl_search_key *key = &changes->tree.key;
    struct pybtrfs_items *items = &changes->items;
    int64_t began = pybtrfs_nanoseconds();

    if (!changes->search && !(changes->search = malloc(sizeof(*changes->search) + PYBTRFS_SEARCH_SIZE)))
        return -ENOMEM;
    do {
        int result = 0;
        if (items->count == 0) {
            result = pybtrfs_search(fd, key, changes->search, PYBTRFS_SEARCH_SIZE, items);
            if (result == 0 && items->count == 0)
                return 0;
        }
        if (result == 0)
            result = pybtrfs_sum_items(fd, changes);
        if (result < 0)
            return result == -EINTR ? 1 : result;
        if (items->end - items->next >= PYBTRFS_LARGEST_ITEM)
            return 0; /* the next item would have fitted */
        key->min_objectid = changes->last.objectid;
        key->min_type = changes->last.type;
        key->min_offset = changes->last.offset + 1;
        if (key->min_offset == 0 && ++key->min_type > UINT8_MAX) {
            key->min_type = 0;
            if (++key->min_objectid == 0)
                return 0;
        }
    } while (pybtrfs_nanoseconds() - began < nanoseconds);
    return 1;
}

void pybtrfs_free_changes(struct pybtrfs_changes *changes)
{
    free(changes->search);
    free(changes->base_search);
    free(changes->extents);
}

/* Set the name of *subvolume, cut to the size of the field. */
static void pybtrfs_name_subvolume(struct pybtrfs_subvolume *subvolume, const char *name, size_t length)
{
    subvolume->name_len = (uint8_t)(length < sizeof(subvolume->name) ? length : sizeof(subvolume->name));
    memcpy(subvolume->name, name, subvolume->name_len);
}

/* Convert an on-disk timespec to nanoseconds. */
#define PYBTRFS_NANOSECONDS(time) ((int64_t)(le64toh((time).sec) * 1000000000 + le32toh((time).nsec)))

void pybtrfs_read_info(const struct pybtrfs_ioctl_get_subvol_info_args *info, struct pybtrfs_subvolume *subvolume)
{
    subvolume->treeid = info->treeid;
    pybtrfs_name_subvolume(subvolume, info->name, strnlen(info->name, sizeof(info->name)));
    subvolume->parent_id = info->parent_id;
    subvolume->dirid = info->dirid;
    subvolume->generation = info->generation;
    subvolume->flags = info->flags;
    subvolume->ctransid = info->ctransid;
    subvolume->otransid = info->otransid;
    subvolume->stransid = info->stransid;
    subvolume->rtransid = info->rtransid;
    subvolume->ctime = (int64_t)(info->ctime.sec * 1000000000 + info->ctime.nsec);
    subvolume->otime = (int64_t)(info->otime.sec * 1000000000 + info->otime.nsec);
    subvolume->stime = (int64_t)(info->stime.sec * 1000000000 + info->stime.nsec);
    subvolume->rtime = (int64_t)(info->rtime.sec * 1000000000 + info->rtime.nsec);
    memcpy(subvolume->uuid, info->uuid, sizeof(info->uuid));
    memcpy(subvolume->parent_uuid, info->parent_uuid, sizeof(info->parent_uuid));
    memcpy(subvolume->received_uuid, info->received_uuid, sizeof(info->received_uuid));
}

int pybtrfs_get_subvol_info(int fd, struct pybtrfs_subvolume *subvolume)
{
    struct pybtrfs_ioctl_get_subvol_info_args info;
    int result = pybtrfs_ioctl(fd, PYBTRFS_IOC_GET_SUBVOL_INFO, &info);
    if (result >= 0)
        pybtrfs_read_info(&info, subvolume);
    return result;
}

int64_t pybtrfs_read_subvolumes(const char *items, uint32_t size, uint32_t count, struct pybtrfs_subvolume *subvolumes,
                                struct pybtrfs_ioctl_search_header *last)
{
    const char *end = items + size;
    struct pybtrfs_ioctl_search_header header = {0}, before = {0};
    struct pybtrfs_subvolume *subvolume = NULL;
    int64_t found = 0;

    for (uint32_t i = 0; i < count; i++) {
        before = header;
        if ((size_t)(end - items) < sizeof(header))
            return -EIO;
        memcpy(&header, items, sizeof(header));
        const char *data = items + sizeof(header);
        if ((size_t)(end - data) < header.len)
            return -EIO;
        items = data + header.len;
        if (header.type == PYBTRFS_ROOT_ITEM_KEY) {
            struct pybtrfs_root_item root = {0};
            memcpy(&root, data, header.len < sizeof(root) ? header.len : sizeof(root));
            /*
             * If the item is short or the generations differ, an old kernel wrote the item last, and the new fields are
             * absent or stale.
             */
            if (header.len < sizeof(root) || root.generation != root.generation_v2)
                memset(&root.generation_v2, 0, sizeof(root) - offsetof(struct pybtrfs_root_item, generation_v2));
            subvolume = &subvolumes[found++];
            subvolume->treeid = header.objectid;
            subvolume->generation = le64toh(root.generation);
            subvolume->flags = le64toh(root.flags);
            subvolume->ctransid = le64toh(root.ctransid);
            subvolume->otransid = le64toh(root.otransid);
            subvolume->stransid = le64toh(root.stransid);
            subvolume->rtransid = le64toh(root.rtransid);
            subvolume->ctime = PYBTRFS_NANOSECONDS(root.ctime);
            subvolume->otime = PYBTRFS_NANOSECONDS(root.otime);
            subvolume->stime = PYBTRFS_NANOSECONDS(root.stime);
            subvolume->rtime = PYBTRFS_NANOSECONDS(root.rtime);
            memcpy(subvolume->uuid, root.uuid, sizeof(root.uuid));
            memcpy(subvolume->parent_uuid, root.parent_uuid, sizeof(root.parent_uuid));
            memcpy(subvolume->received_uuid, root.received_uuid, sizeof(root.received_uuid));
        } else if (header.type == PYBTRFS_ROOT_BACKREF_KEY && header.len >= sizeof(struct pybtrfs_root_ref) &&
                   before.type == PYBTRFS_ROOT_ITEM_KEY && before.objectid == header.objectid) {
            struct pybtrfs_root_ref ref;
            memcpy(&ref, data, sizeof(ref));
            subvolume->parent_id = header.offset;
            subvolume->dirid = le64toh(ref.dirid);
            pybtrfs_name_subvolume(subvolume, data + sizeof(ref), header.len - sizeof(ref));
        }
    }
    /* The backref of a final root item may not have fitted into the buffer. A root item found alone has no backref. */
    if (header.type == PYBTRFS_ROOT_ITEM_KEY && count > 1) {
        found--;
        header = before;
    }
    *last = header;
    return found;
}

/* Row n has the checksum of each byte with n zero bytes after it. */
static uint32_t crc32c_table[8][256];

__attribute__((constructor)) static void make_crc32c_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
        crc32c_table[0][byte] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = crc32c_table[row - 1][byte];
            crc32c_table[row][byte] = crc >> 8 ^ crc32c_table[0][crc & 0xff];
        }
}

uint32_t pybtrfs_crc32c(uint32_t crc, const char *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof(word));
        word = le64toh(word) ^ crc;
        crc = 0;
        for (int row = 0; row < 8; row++)
            crc ^= crc32c_table[7 - row][word >> 8 * row & 0xff];
    }
    for (; size; data++, size--)
        crc = crc >> 8 ^ crc32c_table[0][(crc ^ (uint8_t)*data) & 0xff];
    return crc;
}
