/* The floor of the benchmark: a read-only FUSE file system in C that shows a directory tree as it is.

   usage: passthrough SOURCE MOUNTPOINT

   Written from libfuse's documentation of its low-level API (fuse_lowlevel.h). The tree must not change while it is
   mounted and must lie on one file system: an item is known by its inode number there and never forgotten, the kernel
   may keep names, attributes and content for a day, and flush is answered with ENOSYS (by not having it), so that it is
   asked once only. Requests are read by as many threads as there is work for, each from a descriptor of its own. Stays
   in the foreground; ends when it is unmounted. */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY 86400.0
#define BUCKETS (1u << 17)

/* Directories keep a descriptor for the mount's whole life; files are opened by name below their directory's. */
struct item {
	ino_t inode;
	int parent, folder;	/* descriptors; folder is -1 for what is no directory */
	struct item *next;
	char name[];
};

static struct item *root, *known[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct item *item_of(fuse_ino_t inode)
{
	return inode == FUSE_ROOT_ID ? root : (struct item *)(uintptr_t)inode;
}

/* Finds NAME below FOLDER and remembers it. NULL with errno. */
static struct item *find(int folder, const char *name, struct stat *attributes)
{
	struct item *found, **bucket;

	if (fstatat(folder, name, attributes, AT_SYMLINK_NOFOLLOW))
		return NULL;
	bucket = &known[(attributes->st_ino * 0x9E3779B97F4A7C15ull) >> (64 - 17)];
	pthread_mutex_lock(&lock);
	for (found = *bucket; found && found->inode != attributes->st_ino; found = found->next)
		;
	if (!found && (found = malloc(sizeof *found + strlen(name) + 1))) {
		found->inode = attributes->st_ino;
		found->parent = folder;
		found->folder = -1;
		strcpy(found->name, name);
		if (S_ISDIR(attributes->st_mode))
			found->folder = openat(folder, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		found->next = *bucket;
		*bucket = found;
	}
	pthread_mutex_unlock(&lock);
	return found;
}

static void fill(struct fuse_entry_param *entry, struct item *item)
{
	entry->ino = (uintptr_t)item;
	entry->generation = 0;
	entry->attr_timeout = entry->entry_timeout = DAY;
}

static void on_init(void *unused, struct fuse_conn_info *connection)
{
	unsigned wanted = FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_READDIRPLUS | FUSE_CAP_PARALLEL_DIROPS |
			  FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ASYNC_READ;
	(void)unused;

	connection->want |= wanted & connection->capable;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {0};
	struct item *item = find(item_of(parent)->folder, name, &entry.attr);

	if (!item && errno != ENOENT) {
		fuse_reply_err(request, errno);
		return;
	}
	fill(&entry, item);	/* no item: inode 0, which with a timeout means that there will be none */
	fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	struct item *item = item_of(inode);
	struct stat attributes;
	(void)file;

	if (fstatat(item->parent, item->name, &attributes, AT_SYMLINK_NOFOLLOW))
		fuse_reply_err(request, errno);
	else
		fuse_reply_attr(request, &attributes, DAY);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	struct item *item = item_of(inode);
	int opened;

	if ((file->flags & O_ACCMODE) != O_RDONLY) {
		fuse_reply_err(request, EROFS);
		return;
	}
	opened = openat(item->parent, item->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (opened < 0) {
		fuse_reply_err(request, errno);
		return;
	}
	file->fh = (uint64_t)opened;
	file->keep_cache = 1;
	fuse_reply_open(request, file);
}

static void on_release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	(void)inode;
	close((int)file->fh);
	fuse_reply_err(request, 0);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
	struct fuse_bufvec source = FUSE_BUFVEC_INIT(size);
	(void)inode;

	source.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	source.buf[0].fd = (int)file->fh;
	source.buf[0].pos = offset;
	fuse_reply_data(request, &source, FUSE_BUF_SPLICE_MOVE);
}

/* An open directory: a stream, and the entry that did not fit into the last answer. */
struct listing {
	DIR *stream;
	struct dirent *waiting;
	off_t at;
};

static void on_opendir(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	int folder = openat(item_of(inode)->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct listing *listing = calloc(1, sizeof *listing);

	if (folder < 0 || !listing || !(listing->stream = fdopendir(folder))) {
		int why = errno;
		if (folder >= 0)
			close(folder);
		free(listing);
		fuse_reply_err(request, why);
		return;
	}
	file->fh = (uintptr_t)listing;
	file->keep_cache = file->cache_readdir = 1;
	fuse_reply_open(request, file);
}

static void on_releasedir(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	struct listing *listing = (struct listing *)(uintptr_t)file->fh;
	(void)inode;

	closedir(listing->stream);
	free(listing);
	fuse_reply_err(request, 0);
}

/* Adds one entry to an answer; the space it takes or would take, or 0 for an entry that is to be passed over. */
static size_t add(fuse_req_t request, int folder, struct dirent *found, char *space, size_t left, int plus)
{
	struct fuse_entry_param entry = {0};

	if (!plus) {
		entry.attr.st_ino = found->d_ino;
		entry.attr.st_mode = (mode_t)found->d_type << 12;
		return fuse_add_direntry(request, space, left, found->d_name, &entry.attr, found->d_off);
	}
	if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, "..")) {
		entry.attr.st_ino = found->d_ino;
		entry.attr.st_mode = S_IFDIR;	/* and inode 0: a listing's dots are not looked up */
	} else {
		struct item *item = find(folder, found->d_name, &entry.attr);
		if (!item)
			return 0;
		fill(&entry, item);
	}
	return fuse_add_direntry_plus(request, space, left, found->d_name, &entry, found->d_off);
}

static void answer_listing(fuse_req_t request, int folder, size_t size, off_t offset, struct fuse_file_info *file,
			   int plus)
{
	struct listing *listing = (struct listing *)(uintptr_t)file->fh;
	char *answer = malloc(size);
	size_t used = 0, taken;

	if (!answer) {
		fuse_reply_err(request, ENOMEM);
		return;
	}
	if (offset != listing->at) {
		seekdir(listing->stream, offset);
		listing->waiting = NULL;
		listing->at = offset;
	}
	while (listing->waiting || (listing->waiting = readdir(listing->stream))) {
		taken = add(request, folder, listing->waiting, answer + used, size - used, plus);
		if (taken > size - used)
			break;
		used += taken;
		listing->at = listing->waiting->d_off;
		listing->waiting = NULL;
	}
	fuse_reply_buf(request, answer, used);
	free(answer);
}

/* The kernel asks for plain entries where it has seen that nobody looks at what they are. */
static void on_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
	answer_listing(request, item_of(inode)->folder, size, offset, file, 0);
}

static void on_readdirplus(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
	answer_listing(request, item_of(inode)->folder, size, offset, file, 1);
}

static void on_forget(fuse_req_t request, fuse_ino_t inode, uint64_t lookups)
{
	(void)inode;
	(void)lookups;
	fuse_reply_none(request);
}

static const struct fuse_lowlevel_ops operations = {
	.init = on_init,
	.lookup = on_lookup,
	.getattr = on_getattr,
	.open = on_open,
	.read = on_read,
	.release = on_release,
	.opendir = on_opendir,
	.readdir = on_readdir,
	.readdirplus = on_readdirplus,
	.releasedir = on_releasedir,
	.forget = on_forget,
};

static int serve(const char *program, const char *mountpoint)
{
	char *words[] = {(char *)program, "-o", "ro,default_permissions,fsname=passthrough,subtype=passthrough", NULL};
	struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
	struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
	struct fuse_loop_config *loop = fuse_loop_cfg_create();
	int failed = 1;

	if (!session || !loop || fuse_set_signal_handlers(session))
		return 1;
	fuse_loop_cfg_set_clone_fd(loop, 1);
	if (!fuse_session_mount(session, mountpoint)) {
		failed = fuse_session_loop_mt(session, loop);
		fuse_session_unmount(session);
	}
	fuse_remove_signal_handlers(session);
	fuse_session_destroy(session);
	fuse_loop_cfg_destroy(loop);
	return failed != 0;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: passthrough SOURCE MOUNTPOINT\n");
		return 2;
	}
	root = calloc(1, sizeof *root + 2);
	if (!root)
		return 1;
	strcpy(root->name, ".");
	root->folder = root->parent = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root->folder < 0) {
		perror(argv[1]);
		return 1;
	}
	return serve(argv[0], argv[2]);
}
