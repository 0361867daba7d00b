/* The least that libfuse serves: one file, as deep as a VM's status is in our tree. A baseline for reads over FUSE. */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse3/fuse.h>
#include <stdlib.h>
#include <string.h>

static const char file[] = "/vms/1/status";
static char text[65536];
static size_t size = 300;

static int is_folder(const char *path) {
    return strcmp(path, "/") == 0 || strcmp(path, "/vms") == 0 || strcmp(path, "/vms/1") == 0;
}

static int hello_getattr(const char *path, struct stat *st, struct fuse_file_info *fi) {
    (void)fi;
    memset(st, 0, sizeof *st);
    if (is_folder(path)) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        return 0;
    }
    if (strcmp(path, file) != 0) return -ENOENT;
    st->st_mode = S_IFREG | 0444;
    st->st_nlink = 1;
    st->st_size = (off_t)size;
    return 0;
}

static int hello_open(const char *path, struct fuse_file_info *fi) {
    if (strcmp(path, file) != 0) return -ENOENT;
    fi->direct_io = 1;
    return 0;
}

static int hello_read(const char *path, char *buf, size_t n, off_t at, struct fuse_file_info *fi) {
    (void)path;
    (void)fi;
    if ((size_t)at >= size) return 0;
    if (n > size - (size_t)at) n = size - (size_t)at;
    memcpy(buf, text + at, n);
    return (int)n;
}

static const struct fuse_operations operations = { .getattr = hello_getattr, .open = hello_open, .read = hello_read };

int main(int argc, char **argv) {
    memset(text, 'x', sizeof text);
    return fuse_main(argc, argv, &operations, NULL);
}
