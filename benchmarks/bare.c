/*
 * The bare system calls, for benchmarks to compare with. Reads a command from each line of stdin, its words separated
 * by tabs, and answers with a line: the nanoseconds of each operation, or the numbers that the command's comment names.
 * Any error ends the process.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define RECORD "user.bare"
#define MAX_RECORD 16384
#define MAX_THREADS 256

static char record[MAX_RECORD];
static int record_size;

static void check(int failed, const char *call)
{
    if (failed) {
        fprintf(stderr, "bare: %s: %s\n", call, strerror(errno));
        exit(1);
    }
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int open_directory(int dir, const char *name)
{
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(fd < 0, name);
    return fd;
}

static void snapshot(int source, int dir, const char *name, uint64_t flags)
{
    struct btrfs_ioctl_vol_args_v2 arguments = {.fd = source, .flags = flags};
    strcpy(arguments.name, name);
    check(ioctl(dir, BTRFS_IOC_SNAP_CREATE_V2, &arguments) < 0, "BTRFS_IOC_SNAP_CREATE_V2");
}

static void create(int dir, const char *name)
{
    struct btrfs_ioctl_vol_args_v2 arguments = {0};
    strcpy(arguments.name, name);
    check(ioctl(dir, BTRFS_IOC_SUBVOL_CREATE_V2, &arguments) < 0, "BTRFS_IOC_SUBVOL_CREATE_V2");
}

static void destroy(int dir, const char *name)
{
    struct btrfs_ioctl_vol_args arguments = {0};
    strcpy(arguments.name, name);
    check(ioctl(dir, BTRFS_IOC_SNAP_DESTROY, &arguments) < 0, "BTRFS_IOC_SNAP_DESTROY");
}

static uint64_t get_id(int fd)
{
    struct btrfs_ioctl_ino_lookup_args arguments = {.objectid = BTRFS_FIRST_FREE_OBJECTID};
    check(ioctl(fd, BTRFS_IOC_INO_LOOKUP, &arguments) < 0, "BTRFS_IOC_INO_LOOKUP");
    return arguments.treeid;
}

static void get_info(int fd)
{
    struct btrfs_ioctl_get_subvol_info_args arguments = {0};
    check(ioctl(fd, BTRFS_IOC_GET_SUBVOL_INFO, &arguments) < 0, "BTRFS_IOC_GET_SUBVOL_INFO");
}

static uint64_t get_flags(int fd)
{
    uint64_t flags;
    check(ioctl(fd, BTRFS_IOC_SUBVOL_GETFLAGS, &flags) < 0, "BTRFS_IOC_SUBVOL_GETFLAGS");
    return flags;
}

/* Find the item and the place of every subvolume in one search. */
static int list(int fd)
{
    static char buffer[sizeof(struct btrfs_ioctl_search_args_v2) + 65536];
    struct btrfs_ioctl_search_args_v2 *arguments = (void *)buffer;
    struct btrfs_ioctl_search_key *key = &arguments->key;
    int found = 0;

    *key = (struct btrfs_ioctl_search_key){
        .tree_id = BTRFS_ROOT_TREE_OBJECTID,
        .min_objectid = BTRFS_FIRST_FREE_OBJECTID,
        .max_objectid = BTRFS_LAST_FREE_OBJECTID,
        .min_type = BTRFS_ROOT_ITEM_KEY,
        .max_type = BTRFS_ROOT_BACKREF_KEY,
        .max_offset = UINT64_MAX,
        .max_transid = UINT64_MAX,
    };
    for (;;) {
        struct btrfs_ioctl_search_header header;
        char *at = (char *)arguments->buf;
        key->nr_items = UINT32_MAX;
        arguments->buf_size = 65536;
        check(ioctl(fd, BTRFS_IOC_TREE_SEARCH_V2, arguments) < 0, "BTRFS_IOC_TREE_SEARCH_V2");
        if (!key->nr_items)
            return found;
        for (uint32_t i = 0; i < key->nr_items; i++) {
            memcpy(&header, at, sizeof header);
            found += header.type == BTRFS_ROOT_BACKREF_KEY;
            at += sizeof header + header.len;
        }
        key->min_objectid = header.objectid;
        key->min_type = header.type;
        key->min_offset = header.offset + 1;
    }
}

/* The steps of the snapshotter's operations; *name* is a snapshot's directory in *dir*. */

static void write_record(int fd)
{
    check(fsetxattr(fd, RECORD, record, record_size, 0), "fsetxattr");
}

static int begin(int dir, const char *name)
{
    check(mkdirat(dir, name, 0700), "mkdir");
    int fd = open_directory(dir, name);
    write_record(fd);
    return fd;
}

static void prepare(int dir, const char *name, const char *parent)
{
    int fd = begin(dir, name);
    int source = open_directory(AT_FDCWD, parent);
    snapshot(source, fd, "fs", 0);
    close(source);
    close(fd);
}

static void prepare_empty(int dir, const char *name)
{
    int fd = begin(dir, name);
    create(fd, "fs");
    check(fchmodat(fd, "fs", 0755, 0), "chmod");
    check(fsync(fd), "fsync");
    close(fd);
}

static void view(int dir, const char *name)
{
    int fd = begin(dir, name);
    check(fsync(fd), "fsync");
    close(fd);
}

static void commit(int dir, const char *name)
{
    int fd = open_directory(dir, name);
    write_record(fd);
    int source = open_directory(fd, "fs");
    snapshot(source, fd, "layer", BTRFS_SUBVOL_RDONLY);
    close(source);
    check(syncfs(fd), "syncfs");
    close(fd);
}

static void mark_removed(int dir, const char *name)
{
    int fd = open_directory(dir, name);
    write_record(fd);
    check(fsync(fd), "fsync");
    close(fd);
}

static void discard(int dir, const char *name)
{
    int fd = open_directory(dir, name);
    const char *names[] = {"fs", "layer"};
    for (int i = 0; i < 2; i++)
        if (!faccessat(fd, names[i], F_OK, 0))
            destroy(fd, names[i]);
    close(fd);
    check(unlinkat(dir, name, AT_REMOVEDIR), "rmdir");
}

static void pair(int dir, const char *name, const char *parent)
{
    prepare(dir, name, parent);
    mark_removed(dir, name);
    discard(dir, name);
}

/* Write *count* files, every *step*th of a tree that has 1000 in a directory. */
static void fill(int dir, int first, int count, int bytes, int step)
{
    char *content = calloc(1, bytes + 16), name[32];
    for (int i = 0; i < count; i++) {
        int number = first + i * step;
        snprintf(name, sizeof name, "%d", number / 1000);
        if (mkdirat(dir, name, 0755))
            check(errno != EEXIST, "mkdir");
        snprintf(name, sizeof name, "%d/%d", number / 1000, number);
        int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        check(fd < 0, name);
        for (int j = 0; j < bytes; j += 16)
            content[j] = rand();
        check(write(fd, content, bytes) != bytes, "write");
        close(fd);
    }
    free(content);
}

/* Threads: each of them makes, and in churn and copy also removes, snapshots in directories of its own. */

struct job {
    int dir, first, count;
    double seconds;
    const char *parent;
    pthread_barrier_t *start;
    int pairs;
};

static void *prepare_once(void *argument)
{
    struct job *job = argument;
    char name[32];
    snprintf(name, sizeof name, "%d", job->first);
    pthread_barrier_wait(job->start);
    prepare(job->dir, name, job->parent);
    return NULL;
}

static void *churn(void *argument)
{
    struct job *job = argument;
    char name[32];
    pthread_barrier_wait(job->start);
    uint64_t end = now() + job->seconds * 1e9;
    for (; now() < end; job->pairs++) {
        snprintf(name, sizeof name, "%d-%d", job->first, job->pairs);
        pair(job->dir, name, job->parent);
    }
    return NULL;
}

static void *copy(void *argument)
{
    struct job *job = argument;
    char name[32];
    snprintf(name, sizeof name, "%d", job->first);
    check(mkdirat(job->dir, name, 0700), "mkdir");
    int own = open_directory(job->dir, name), source = open_directory(AT_FDCWD, job->parent);
    pthread_barrier_wait(job->start);
    uint64_t end = now() + job->seconds * 1e9;
    for (; now() < end; job->pairs++) {
        snapshot(source, own, "copy", 0);
        destroy(own, "copy");
    }
    close(source);
    close(own);
    check(unlinkat(job->dir, name, AT_REMOVEDIR), "rmdir");
    return NULL;
}

static uint64_t in_threads(void *(*function)(void *), struct job job, int *pairs)
{
    pthread_t threads[MAX_THREADS];
    struct job jobs[MAX_THREADS];
    pthread_barrier_t start;
    int count = job.count < MAX_THREADS ? job.count : MAX_THREADS;

    pthread_barrier_init(&start, NULL, count + 1);
    job.start = &start;
    for (int i = 0; i < count; i++, job.first++) {
        jobs[i] = job;
        check(pthread_create(&threads[i], NULL, function, &jobs[i]), "pthread_create");
    }
    pthread_barrier_wait(&start);
    uint64_t begin = now();
    *pairs = 0;
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        *pairs += jobs[i].pairs;
    }
    return now() - begin;
}

/* Run a command: its words are a verb, a directory, the first number, a count, and the arguments of the verb. */
static void run(char **word)
{
    const char *verb = word[0], *extra = word[4], *also = word[5];
    int dir = open_directory(AT_FDCWD, word[1]), first = atoi(word[2]), count = atoi(word[3]), other = -1, pairs;
    char name[32];

    if (!strcmp(verb, "fill")) {
        fill(dir, first, count, atoi(extra), atoi(also));
    } else if (!strcmp(verb, "record")) {
        record_size = count;
    } else if (!strcmp(verb, "simultaneous")) {
        printf("%lu ", in_threads(prepare_once, (struct job){.dir = dir, .first = first, .count = count, .parent = extra}, &pairs));
    } else if (!strcmp(verb, "churn") || !strcmp(verb, "copy")) {
        uint64_t time = in_threads(!strcmp(verb, "copy") ? copy : churn, (struct job){.dir = dir, .first = first, .count = count, .parent = extra, .seconds = atof(also)}, &pairs);
        printf("%lu %d ", time, pairs);
    } else {
        if (!strcmp(verb, "snapshot"))
            other = open_directory(AT_FDCWD, extra);
        int each = !strcmp(verb, "id") || !strcmp(verb, "info") || !strcmp(verb, "flags") ? 100 : 1;
        for (int i = 0; i < count; i++) {
            snprintf(name, sizeof name, "%d", first + i);
            uint64_t begin = now();
            for (int j = 0; j < each; j++) {
                if (!strcmp(verb, "create"))
                    create(dir, name);
                else if (!strcmp(verb, "snapshot"))
                    snapshot(other, dir, name, 0);
                else if (!strcmp(verb, "delete"))
                    destroy(dir, name);
                else if (!strcmp(verb, "id"))
                    get_id(dir);
                else if (!strcmp(verb, "info"))
                    get_info(dir);
                else if (!strcmp(verb, "flags"))
                    get_flags(dir);
                else if (!strcmp(verb, "list"))
                    list(dir);
                else if (!strcmp(verb, "prepare"))
                    prepare(dir, name, extra);
                else if (!strcmp(verb, "prepare_empty"))
                    prepare_empty(dir, name);
                else if (!strcmp(verb, "view"))
                    view(dir, name);
                else if (!strcmp(verb, "commit"))
                    commit(dir, name);
                else if (!strcmp(verb, "mark_removed"))
                    mark_removed(dir, name);
                else if (!strcmp(verb, "discard"))
                    discard(dir, name);
                else if (!strcmp(verb, "pair"))
                    pair(dir, name, extra);
                else
                    errno = ENOSYS, check(1, verb);
            }
            printf("%lu ", (now() - begin) / each);
        }
        if (other >= 0)
            close(other);
    }
    close(dir);
    printf("\n");
    fflush(stdout);
}

int main(void)
{
    char line[8192], *word[8];
    memset(record, 'x', sizeof record);
    while (fgets(line, sizeof line, stdin)) {
        char *rest = line;
        line[strcspn(line, "\n")] = 0;
        memset(word, 0, sizeof word);
        for (int i = 0; i < 8 && (word[i] = strsep(&rest, "\t")); i++)
            ;
        run(word);
    }
    return 0;
}
