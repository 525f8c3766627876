/*
 * The kernel's interface: the numbers and structs of the ioctls of btrfs, loop devices and file attributes, of btrfs
 * items, and of system calls that the C library may lack.
 *
 * Names have a prefix of their own, so that the age of the installed kernel headers does not matter and no name
 * collides with theirs. The prefix is "py" before the kernel's name, or "pybtrfs_" if that name does not begin with
 * btrfs. Fields keep the kernel's names.
 *
 * build_ffi.py derives cffi's declarations from this file. Therefore a #define holds an integer constant and stands on
 * one line, and a struct ends with "};" at the beginning of a line.
 */

#pragma once

#include <linux/ioctl.h>
#include <stddef.h>
#include <stdint.h>

#define PYBTRFS_SUPER_MAGIC 0x9123683E
#define PYBTRFS_IOCTL_MAGIC 0x94

#define PYBTRFS_VOL_NAME_MAX 255
#define PYBTRFS_FIRST_FREE_OBJECTID 256ULL
#define PYBTRFS_EMPTY_SUBVOL_DIR_OBJECTID 2

/* Subvolumes */

#define PYBTRFS_SUBVOL_RDONLY (1ULL << 1)
#define PYBTRFS_SUBVOL_QGROUP_INHERIT (1ULL << 2)
#define PYBTRFS_SUBVOL_SPEC_BY_ID (1ULL << 4)

struct pybtrfs_ioctl_vol_args {
    int64_t fd;
    char name[4088];
};

struct pybtrfs_qgroup_limit {
    uint64_t flags;
    uint64_t max_rfer;
    uint64_t max_excl;
    uint64_t rsv_rfer;
    uint64_t rsv_excl;
};

struct pybtrfs_qgroup_inherit {
    uint64_t flags;
    uint64_t num_qgroups;
    uint64_t num_ref_copies;
    uint64_t num_excl_copies;
    struct pybtrfs_qgroup_limit lim;
    uint64_t qgroups[];
};

struct pybtrfs_ioctl_vol_args_v2 {
    int64_t fd;
    uint64_t transid;
    uint64_t flags;
    union {
        struct {
            uint64_t size;
            struct pybtrfs_qgroup_inherit *qgroup_inherit;
        };
        uint64_t unused[4];
    };
    union {
        char name[4040];
        uint64_t devid;
        uint64_t subvolid;
    };
};

struct pybtrfs_ioctl_timespec {
    uint64_t sec;
    uint32_t nsec;
};

struct pybtrfs_ioctl_get_subvol_info_args {
    uint64_t treeid;
    char name[256];
    uint64_t parent_id;
    uint64_t dirid;
    uint64_t generation;
    uint64_t flags;
    uint8_t uuid[16];
    uint8_t parent_uuid[16];
    uint8_t received_uuid[16];
    uint64_t ctransid;
    uint64_t otransid;
    uint64_t stransid;
    uint64_t rtransid;
    struct pybtrfs_ioctl_timespec ctime;
    struct pybtrfs_ioctl_timespec otime;
    struct pybtrfs_ioctl_timespec stime;
    struct pybtrfs_ioctl_timespec rtime;
    uint64_t reserved[8];
};

struct pybtrfs_ioctl_get_subvol_rootref_args {
    uint64_t min_treeid;
    struct {
        uint64_t treeid;
        uint64_t dirid;
    } rootref[255];
    uint8_t num_items;
    uint8_t align[7];
};

struct pybtrfs_ioctl_received_subvol_args {
    char uuid[16];
    uint64_t stransid;
    uint64_t rtransid;
    struct pybtrfs_ioctl_timespec stime;
    struct pybtrfs_ioctl_timespec rtime;
    uint64_t flags;
    uint64_t reserved[16];
};

#define PYBTRFS_SEND_FLAG_NO_FILE_DATA 0x1
#define PYBTRFS_SEND_FLAG_OMIT_STREAM_HEADER 0x2
#define PYBTRFS_SEND_FLAG_OMIT_END_CMD 0x4
#define PYBTRFS_SEND_FLAG_VERSION 0x8
#define PYBTRFS_SEND_FLAG_COMPRESSED 0x10

struct pybtrfs_ioctl_send_args {
    int64_t send_fd;
    uint64_t clone_sources_count;
    uint64_t *clone_sources;
    uint64_t parent_root;
    uint64_t flags;
    uint32_t version;
    uint8_t reserved[28];
};

#define PYBTRFS_SUBVOL_SYNC_WAIT_FOR_ONE 0
#define PYBTRFS_SUBVOL_SYNC_WAIT_FOR_QUEUED 1
#define PYBTRFS_SUBVOL_SYNC_COUNT 2
#define PYBTRFS_SUBVOL_SYNC_PEEK_FIRST 3
#define PYBTRFS_SUBVOL_SYNC_PEEK_LAST 4

struct pybtrfs_ioctl_subvol_wait {
    uint64_t subvolid;
    uint32_t mode;
    uint32_t count;
};

/* Trees and inodes */

#define PYBTRFS_INODE_ITEM_KEY 1
#define PYBTRFS_EXTENT_DATA_KEY 108
#define PYBTRFS_ROOT_ITEM_KEY 132
#define PYBTRFS_ROOT_BACKREF_KEY 144

#define PYBTRFS_FILE_EXTENT_INLINE 0
#define PYBTRFS_FILE_EXTENT_REG 1
#define PYBTRFS_FILE_EXTENT_PREALLOC 2

/* Items on disk: little-endian and packed. */
#pragma pack(push, 1)

struct pybtrfs_timespec {
    uint64_t sec;
    uint32_t nsec;
};

struct pybtrfs_inode_item {
    uint64_t generation;
    uint64_t transid;
    uint64_t size;
    uint64_t nbytes;
    uint64_t block_group;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t mode;
    uint64_t rdev;
    uint64_t flags;
    uint64_t sequence;
    uint64_t reserved[4];
    struct pybtrfs_timespec atime;
    struct pybtrfs_timespec ctime;
    struct pybtrfs_timespec mtime;
    struct pybtrfs_timespec otime;
};

/* The data of an inline extent takes the place of the fields from disk_bytenr on. */
struct pybtrfs_file_extent_item {
    uint64_t generation;
    uint64_t ram_bytes;
    uint8_t compression;
    uint8_t encryption;
    uint16_t other_encoding;
    uint8_t type;
    uint64_t disk_bytenr;
    uint64_t disk_num_bytes;
    uint64_t offset;
    uint64_t num_bytes;
};

struct pybtrfs_root_item {
    uint8_t inode[160];
    uint64_t generation;
    uint64_t root_dirid;
    uint64_t bytenr;
    uint64_t byte_limit;
    uint64_t bytes_used;
    uint64_t last_snapshot;
    uint64_t flags;
    uint32_t refs;
    uint8_t drop_progress[17];
    uint8_t drop_level;
    uint8_t level;
    uint64_t generation_v2;
    uint8_t uuid[16];
    uint8_t parent_uuid[16];
    uint8_t received_uuid[16];
    uint64_t ctransid;
    uint64_t otransid;
    uint64_t stransid;
    uint64_t rtransid;
    struct pybtrfs_timespec ctime;
    struct pybtrfs_timespec otime;
    struct pybtrfs_timespec stime;
    struct pybtrfs_timespec rtime;
    uint64_t reserved[8];
};

struct pybtrfs_root_ref {
    uint64_t dirid;
    uint64_t sequence;
    uint16_t name_len;
};

#pragma pack(pop)

struct pybtrfs_ioctl_search_key {
    uint64_t tree_id;
    uint64_t min_objectid;
    uint64_t max_objectid;
    uint64_t min_offset;
    uint64_t max_offset;
    uint64_t min_transid;
    uint64_t max_transid;
    uint32_t min_type;
    uint32_t max_type;
    uint32_t nr_items;
    uint32_t unused;
    uint64_t unused1;
    uint64_t unused2;
    uint64_t unused3;
    uint64_t unused4;
};

struct pybtrfs_ioctl_search_header {
    uint64_t transid;
    uint64_t objectid;
    uint64_t offset;
    uint32_t type;
    uint32_t len;
};

struct pybtrfs_ioctl_search_args {
    struct pybtrfs_ioctl_search_key key;
    char buf[3992];
};

struct pybtrfs_ioctl_search_args_v2 {
    struct pybtrfs_ioctl_search_key key;
    uint64_t buf_size;
    uint8_t buf[];
};

struct pybtrfs_ioctl_ino_lookup_args {
    uint64_t treeid;
    uint64_t objectid;
    char name[4080];
};

struct pybtrfs_ioctl_ino_lookup_user_args {
    uint64_t dirid;
    uint64_t treeid;
    char name[256];
    char path[3824];
};

#define PYBTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET (1ULL << 0)

struct pybtrfs_data_container {
    uint32_t bytes_left;
    uint32_t bytes_missing;
    uint32_t elem_cnt;
    uint32_t elem_missed;
    uint64_t val[];
};

struct pybtrfs_ioctl_logical_ino_args {
    uint64_t logical;
    uint64_t size;
    uint64_t reserved[3];
    uint64_t flags;
    uint64_t inodes;
};

/* The filesystem and its devices */

#define PYBTRFS_FS_INFO_FLAG_CSUM_INFO (1 << 0)
#define PYBTRFS_FS_INFO_FLAG_GENERATION (1 << 1)
#define PYBTRFS_FS_INFO_FLAG_METADATA_UUID (1 << 2)

struct pybtrfs_ioctl_fs_info_args {
    uint64_t max_id;
    uint64_t num_devices;
    uint8_t fsid[16];
    uint32_t nodesize;
    uint32_t sectorsize;
    uint32_t clone_alignment;
    uint16_t csum_type;
    uint16_t csum_size;
    uint64_t flags;
    uint64_t generation;
    uint8_t metadata_uuid[16];
    uint8_t reserved[944];
};

struct pybtrfs_ioctl_dev_info_args {
    uint64_t devid;
    uint8_t uuid[16];
    uint64_t bytes_used;
    uint64_t total_bytes;
    uint64_t unused[379];
    uint8_t path[1024];
};

#define PYBTRFS_DEV_STATS_RESET (1ULL << 0)
#define PYBTRFS_DEV_STAT_VALUES_MAX 5

struct pybtrfs_ioctl_get_dev_stats {
    uint64_t devid;
    uint64_t nr_items;
    uint64_t flags;
    uint64_t values[5];
    uint64_t unused[121];
};

#define PYBTRFS_BLOCK_GROUP_DATA (1ULL << 0)
#define PYBTRFS_BLOCK_GROUP_SYSTEM (1ULL << 1)
#define PYBTRFS_BLOCK_GROUP_METADATA (1ULL << 2)
#define PYBTRFS_BLOCK_GROUP_RAID0 (1ULL << 3)
#define PYBTRFS_BLOCK_GROUP_RAID1 (1ULL << 4)
#define PYBTRFS_BLOCK_GROUP_DUP (1ULL << 5)
#define PYBTRFS_BLOCK_GROUP_RAID10 (1ULL << 6)
#define PYBTRFS_BLOCK_GROUP_RAID5 (1ULL << 7)
#define PYBTRFS_BLOCK_GROUP_RAID6 (1ULL << 8)
#define PYBTRFS_BLOCK_GROUP_RAID1C3 (1ULL << 9)
#define PYBTRFS_BLOCK_GROUP_RAID1C4 (1ULL << 10)
#define PYBTRFS_SPACE_INFO_GLOBAL_RSV (1ULL << 49)

struct pybtrfs_ioctl_space_info {
    uint64_t flags;
    uint64_t total_bytes;
    uint64_t used_bytes;
};

struct pybtrfs_ioctl_space_args {
    uint64_t space_slots;
    uint64_t total_spaces;
    struct pybtrfs_ioctl_space_info spaces[];
};

/* Quotas */

#define PYBTRFS_QGROUP_LIMIT_MAX_RFER (1ULL << 0)
#define PYBTRFS_QGROUP_LIMIT_MAX_EXCL (1ULL << 1)
#define PYBTRFS_QGROUP_INHERIT_SET_LIMITS (1ULL << 0)

#define PYBTRFS_QUOTA_CTL_ENABLE 1
#define PYBTRFS_QUOTA_CTL_DISABLE 2
#define PYBTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA 4

struct pybtrfs_ioctl_quota_ctl_args {
    uint64_t cmd;
    uint64_t status;
};

struct pybtrfs_ioctl_qgroup_create_args {
    uint64_t create;
    uint64_t qgroupid;
};

struct pybtrfs_ioctl_qgroup_limit_args {
    uint64_t qgroupid;
    struct pybtrfs_qgroup_limit lim;
};

/* Loop devices */

#define PYBTRFS_LO_FLAGS_READ_ONLY 1
#define PYBTRFS_LO_FLAGS_AUTOCLEAR 4
#define PYBTRFS_LO_FLAGS_PARTSCAN 8
#define PYBTRFS_LO_FLAGS_DIRECT_IO 16

struct pybtrfs_loop_info64 {
    uint64_t lo_device;
    uint64_t lo_inode;
    uint64_t lo_rdevice;
    uint64_t lo_offset;
    uint64_t lo_sizelimit;
    uint32_t lo_number;
    uint32_t lo_encrypt_type;
    uint32_t lo_encrypt_key_size;
    uint32_t lo_flags;
    uint8_t lo_file_name[64];
    uint8_t lo_crypt_name[64];
    uint8_t lo_encrypt_key[32];
    uint64_t lo_init[2];
};

struct pybtrfs_loop_config {
    uint32_t fd;
    uint32_t block_size;
    struct pybtrfs_loop_info64 info;
    uint64_t __reserved[8];
};

/* System calls that the C library may lack */

#define PYBTRFS_RESOLVE_NO_XDEV 0x01
#define PYBTRFS_RESOLVE_NO_MAGICLINKS 0x02
#define PYBTRFS_RESOLVE_NO_SYMLINKS 0x04
#define PYBTRFS_RESOLVE_BENEATH 0x08

struct pybtrfs_open_how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};

/* Mount namespaces and their mounts */

#define PYBTRFS_NS_MNT_GET_INFO _IOR(0xb7, 10, struct pybtrfs_mnt_ns_info)
#define PYBTRFS_NS_MNT_GET_NEXT _IOR(0xb7, 11, struct pybtrfs_mnt_ns_info)
#define PYBTRFS_NS_MNT_GET_PREV _IOR(0xb7, 12, struct pybtrfs_mnt_ns_info)

#define PYBTRFS_LSMT_ROOT 0xffffffffffffffffULL
#define PYBTRFS_STATMOUNT_SB_BASIC 0x01ULL
#define PYBTRFS_STATMOUNT_MNT_BASIC 0x02ULL
#define PYBTRFS_STATMOUNT_MNT_ROOT 0x08ULL
#define PYBTRFS_STATMOUNT_MNT_POINT 0x10ULL
#define PYBTRFS_STATMOUNT_MNT_OPTS 0x80ULL
#define PYBTRFS_MOUNT_ATTR_RDONLY 0x01
#define PYBTRFS_MOUNT_ATTR_IDMAP 0x00100000

#define PYBTRFS_OPEN_TREE_CLONE 1
#define PYBTRFS_MOVE_MOUNT_F_EMPTY_PATH 0x04

struct pybtrfs_mount_attr {
    uint64_t attr_set;
    uint64_t attr_clr;
    uint64_t propagation;
    uint64_t userns_fd;
};

struct pybtrfs_mnt_ns_info {
    uint32_t size;
    uint32_t nr_mounts;
    uint64_t mnt_ns_id;
};

struct pybtrfs_mnt_id_req {
    uint32_t size;
    uint32_t mnt_ns_fd;
    uint64_t mnt_id;
    uint64_t param;
    uint64_t mnt_ns_id;
};

/* mnt_opts, mnt_root and mnt_point are offsets in str. */
struct pybtrfs_statmount {
    uint32_t size;
    uint32_t mnt_opts;
    uint64_t mask;
    uint32_t sb_dev_major;
    uint32_t sb_dev_minor;
    uint64_t sb_magic;
    uint32_t sb_flags;
    uint32_t fs_type;
    uint64_t mnt_id;
    uint64_t mnt_parent_id;
    uint32_t mnt_id_old;
    uint32_t mnt_parent_id_old;
    uint64_t mnt_attr;
    uint64_t mnt_propagation;
    uint64_t mnt_peer_group;
    uint64_t mnt_master;
    uint64_t propagate_from;
    uint32_t mnt_root;
    uint32_t mnt_point;
    uint64_t mnt_ns_id;
    uint8_t unused[392];
    char str[];
};

/* The file handle of a btrfs inode: type FILEID_BTRFS_WITHOUT_PARENT of name_to_handle_at(2). */
struct pybtrfs_file_handle {
    uint32_t handle_bytes;
    int32_t handle_type;
    uint64_t objectid;
    uint64_t root_objectid;
    uint32_t gen;
};

/* The ioctls */

#define PYBTRFS_IOC_RESIZE _IOW(PYBTRFS_IOCTL_MAGIC, 3, struct pybtrfs_ioctl_vol_args)
#define PYBTRFS_IOC_SYNC _IO(PYBTRFS_IOCTL_MAGIC, 8)
#define PYBTRFS_IOC_SNAP_DESTROY _IOW(PYBTRFS_IOCTL_MAGIC, 15, struct pybtrfs_ioctl_vol_args)
#define PYBTRFS_IOC_TREE_SEARCH _IOWR(PYBTRFS_IOCTL_MAGIC, 17, struct pybtrfs_ioctl_search_args)
#define PYBTRFS_IOC_TREE_SEARCH_V2 _IOWR(PYBTRFS_IOCTL_MAGIC, 17, struct pybtrfs_ioctl_search_args_v2)
#define PYBTRFS_IOC_INO_LOOKUP _IOWR(PYBTRFS_IOCTL_MAGIC, 18, struct pybtrfs_ioctl_ino_lookup_args)
#define PYBTRFS_IOC_DEFAULT_SUBVOL _IOW(PYBTRFS_IOCTL_MAGIC, 19, uint64_t)
#define PYBTRFS_IOC_SPACE_INFO _IOWR(PYBTRFS_IOCTL_MAGIC, 20, struct pybtrfs_ioctl_space_args)
#define PYBTRFS_IOC_WAIT_SYNC _IOW(PYBTRFS_IOCTL_MAGIC, 22, uint64_t)
#define PYBTRFS_IOC_SNAP_CREATE_V2 _IOW(PYBTRFS_IOCTL_MAGIC, 23, struct pybtrfs_ioctl_vol_args_v2)
#define PYBTRFS_IOC_START_SYNC _IOR(PYBTRFS_IOCTL_MAGIC, 24, uint64_t)
#define PYBTRFS_IOC_SUBVOL_CREATE_V2 _IOW(PYBTRFS_IOCTL_MAGIC, 24, struct pybtrfs_ioctl_vol_args_v2)
#define PYBTRFS_IOC_SUBVOL_GETFLAGS _IOR(PYBTRFS_IOCTL_MAGIC, 25, uint64_t)
#define PYBTRFS_IOC_SUBVOL_SETFLAGS _IOW(PYBTRFS_IOCTL_MAGIC, 26, uint64_t)
#define PYBTRFS_IOC_DEV_INFO _IOWR(PYBTRFS_IOCTL_MAGIC, 30, struct pybtrfs_ioctl_dev_info_args)
#define PYBTRFS_IOC_FS_INFO _IOR(PYBTRFS_IOCTL_MAGIC, 31, struct pybtrfs_ioctl_fs_info_args)
#define PYBTRFS_IOC_SET_RECEIVED_SUBVOL _IOWR(PYBTRFS_IOCTL_MAGIC, 37, struct pybtrfs_ioctl_received_subvol_args)
#define PYBTRFS_IOC_SEND _IOW(PYBTRFS_IOCTL_MAGIC, 38, struct pybtrfs_ioctl_send_args)
#define PYBTRFS_IOC_QUOTA_CTL _IOWR(PYBTRFS_IOCTL_MAGIC, 40, struct pybtrfs_ioctl_quota_ctl_args)
#define PYBTRFS_IOC_QGROUP_CREATE _IOW(PYBTRFS_IOCTL_MAGIC, 42, struct pybtrfs_ioctl_qgroup_create_args)
#define PYBTRFS_IOC_QGROUP_LIMIT _IOR(PYBTRFS_IOCTL_MAGIC, 43, struct pybtrfs_ioctl_qgroup_limit_args)
#define PYBTRFS_IOC_QUOTA_RESCAN_WAIT _IO(PYBTRFS_IOCTL_MAGIC, 46)
#define PYBTRFS_IOC_GET_DEV_STATS _IOWR(PYBTRFS_IOCTL_MAGIC, 52, struct pybtrfs_ioctl_get_dev_stats)
#define PYBTRFS_IOC_LOGICAL_INO_V2 _IOWR(PYBTRFS_IOCTL_MAGIC, 59, struct pybtrfs_ioctl_logical_ino_args)
#define PYBTRFS_IOC_GET_SUBVOL_INFO _IOR(PYBTRFS_IOCTL_MAGIC, 60, struct pybtrfs_ioctl_get_subvol_info_args)
#define PYBTRFS_IOC_GET_SUBVOL_ROOTREF _IOWR(PYBTRFS_IOCTL_MAGIC, 61, struct pybtrfs_ioctl_get_subvol_rootref_args)
#define PYBTRFS_IOC_INO_LOOKUP_USER _IOWR(PYBTRFS_IOCTL_MAGIC, 62, struct pybtrfs_ioctl_ino_lookup_user_args)
#define PYBTRFS_IOC_SNAP_DESTROY_V2 _IOW(PYBTRFS_IOCTL_MAGIC, 63, struct pybtrfs_ioctl_vol_args_v2)
#define PYBTRFS_IOC_SUBVOL_SYNC_WAIT _IOW(PYBTRFS_IOCTL_MAGIC, 65, struct pybtrfs_ioctl_subvol_wait)

#define PYBTRFS_FS_IOC_GETFLAGS _IOR('f', 1, long)
#define PYBTRFS_FS_IOC_SETFLAGS _IOW('f', 2, long)
#define PYBTRFS_FS_IMMUTABLE_FL 0x00000010
#define PYBTRFS_FS_APPEND_FL 0x00000020
#define PYBTRFS_FS_NOCOMP_FL 0x00000400
#define PYBTRFS_FS_NOCOW_FL 0x00800000

#define PYBTRFS_LOOP_SET_FD 0x4C00
#define PYBTRFS_LOOP_CLR_FD 0x4C01
#define PYBTRFS_LOOP_SET_STATUS64 0x4C04
#define PYBTRFS_LOOP_GET_STATUS64 0x4C05
#define PYBTRFS_LOOP_SET_CAPACITY 0x4C07
#define PYBTRFS_LOOP_SET_DIRECT_IO 0x4C08
#define PYBTRFS_LOOP_CONFIGURE 0x4C0A
#define PYBTRFS_LOOP_CTL_ADD 0x4C80
#define PYBTRFS_LOOP_CTL_GET_FREE 0x4C82

/* The kernel's layouts */

_Static_assert(sizeof(struct pybtrfs_ioctl_vol_args) == 4096, "vol_args");
_Static_assert(sizeof(struct pybtrfs_qgroup_inherit) == 72, "qgroup_inherit");
_Static_assert(offsetof(struct pybtrfs_qgroup_inherit, qgroups) == 72, "qgroup_inherit.qgroups");
_Static_assert(sizeof(struct pybtrfs_ioctl_vol_args_v2) == 4096, "vol_args_v2");
_Static_assert(offsetof(struct pybtrfs_ioctl_vol_args_v2, qgroup_inherit) == 32, "vol_args_v2.qgroup_inherit");
_Static_assert(offsetof(struct pybtrfs_ioctl_vol_args_v2, name) == 56, "vol_args_v2.name");
_Static_assert(sizeof(struct pybtrfs_ioctl_get_subvol_info_args) == 504, "get_subvol_info_args");
_Static_assert(offsetof(struct pybtrfs_ioctl_get_subvol_info_args, uuid) == 296, "get_subvol_info_args.uuid");
_Static_assert(offsetof(struct pybtrfs_ioctl_get_subvol_info_args, ctime) == 376, "get_subvol_info_args.ctime");
_Static_assert(sizeof(struct pybtrfs_ioctl_get_subvol_rootref_args) == 4096, "get_subvol_rootref_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_received_subvol_args) == 200, "received_subvol_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_send_args) == 64 + sizeof(void *), "send_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_subvol_wait) == 16, "subvol_wait");
_Static_assert(sizeof(struct pybtrfs_inode_item) == 160, "inode_item");
_Static_assert(sizeof(struct pybtrfs_file_extent_item) == 53, "file_extent_item");
_Static_assert(offsetof(struct pybtrfs_file_extent_item, disk_bytenr) == 21, "file_extent_item.disk_bytenr");
_Static_assert(sizeof(struct pybtrfs_root_item) == 439, "root_item");
_Static_assert(sizeof(struct pybtrfs_root_ref) == 18, "root_ref");
_Static_assert(sizeof(struct pybtrfs_ioctl_search_key) == 104, "search_key");
_Static_assert(sizeof(struct pybtrfs_ioctl_search_header) == 32, "search_header");
_Static_assert(offsetof(struct pybtrfs_ioctl_search_header, len) == 28, "search_header.len");
_Static_assert(sizeof(struct pybtrfs_ioctl_search_args) == 4096, "search_args");
_Static_assert(offsetof(struct pybtrfs_ioctl_search_args_v2, buf) == 112, "search_args_v2.buf");
_Static_assert(sizeof(struct pybtrfs_ioctl_ino_lookup_args) == 4096, "ino_lookup_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_ino_lookup_user_args) == 4096, "ino_lookup_user_args");
_Static_assert(sizeof(struct pybtrfs_data_container) == 16, "data_container");
_Static_assert(sizeof(struct pybtrfs_ioctl_logical_ino_args) == 56, "logical_ino_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_fs_info_args) == 1024, "fs_info_args");
_Static_assert(offsetof(struct pybtrfs_ioctl_fs_info_args, generation) == 56, "fs_info_args.generation");
_Static_assert(sizeof(struct pybtrfs_ioctl_dev_info_args) == 4096, "dev_info_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_get_dev_stats) == 1032, "get_dev_stats");
_Static_assert(sizeof(struct pybtrfs_ioctl_space_args) == 16, "space_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_quota_ctl_args) == 16, "quota_ctl_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_qgroup_create_args) == 16, "qgroup_create_args");
_Static_assert(sizeof(struct pybtrfs_ioctl_qgroup_limit_args) == 48, "qgroup_limit_args");
_Static_assert(sizeof(struct pybtrfs_loop_info64) == 232, "loop_info64");
_Static_assert(sizeof(struct pybtrfs_loop_config) == 304, "loop_config");
_Static_assert(sizeof(struct pybtrfs_open_how) == 24, "open_how");
_Static_assert(sizeof(struct pybtrfs_mount_attr) == 32, "mount_attr");
_Static_assert(sizeof(struct pybtrfs_mnt_ns_info) == 16, "mnt_ns_info");
_Static_assert(sizeof(struct pybtrfs_mnt_id_req) == 32, "mnt_id_req");
_Static_assert(offsetof(struct pybtrfs_statmount, mnt_ns_id) == 112, "statmount.mnt_ns_id");
_Static_assert(offsetof(struct pybtrfs_statmount, str) == 512, "statmount.str");
_Static_assert(offsetof(struct pybtrfs_file_handle, gen) == 24, "file_handle.gen");
