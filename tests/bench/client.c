/* The reader of the benchmark: opens, reads and closes (or stats) a list of files with some threads.

   usage: client read|stat ROOT LIST THREADS CHUNK SECONDS

   LIST holds paths relative to ROOT, one a line. A thread takes CHUNK lines at a time (the files of one sample), in the
   order of the list, until there are none left or SECONDS are over. Each file is read to its end. Prints one line of
   JSON: seconds, files, bytes, errors, the first error, and the latency of one file in microseconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (256 * 1024)
#define MAX_THREADS 256

static char **paths;
static uint32_t *latencies;	/* microseconds; 0 for files that were not reached */
static size_t count, chunk;
static int stat_only;
static double deadline;
static atomic_size_t next_line, files, errors;
static atomic_ullong bytes;
static _Atomic(const char *) failed_path;
static atomic_int failed_errno;
static pthread_barrier_t start;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Bytes of the file (its size, for stat); -1 with errno. */
static long long one(const char *path, char *buffer)
{
	long long total = 0;
	ssize_t got;
	int file;

	if (stat_only) {
		struct stat found;
		return stat(path, &found) ? -1 : (long long)found.st_size;
	}
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	while ((got = read(file, buffer, BUFFER)) > 0)
		total += got;
	if (got < 0) {
		int why = errno;
		close(file);
		errno = why;
		return -1;
	}
	close(file);
	return total;
}

static void *work(void *unused)
{
	char *buffer = malloc(BUFFER);
	(void)unused;

	if (!buffer)
		abort();
	memset(buffer, 0, BUFFER);
	pthread_barrier_wait(&start);
	for (double before = now(); before < deadline;) {
		size_t at = atomic_fetch_add(&next_line, chunk), end = at + chunk < count ? at + chunk : count;
		if (at >= count)
			break;
		for (; at < end; at++) {
			long long size = one(paths[at], buffer);
			double after = now();
			latencies[at] = 1 + (uint32_t)((after - before) * 1e6);
			before = after;
			atomic_fetch_add(&files, 1);
			if (size >= 0) {
				atomic_fetch_add(&bytes, (unsigned long long)size);
			} else if (atomic_fetch_add(&errors, 1) == 0) {
				atomic_store(&failed_errno, errno);
				atomic_store(&failed_path, paths[at]);
			}
		}
	}
	free(buffer);
	return NULL;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static void load(const char *name)
{
	struct stat found;
	FILE *file = fopen(name, "r");
	char *text, *save = NULL;

	if (!file || fstat(fileno(file), &found))
		die(name);
	text = malloc((size_t)found.st_size + 1);
	if (!text || fread(text, 1, (size_t)found.st_size, file) != (size_t)found.st_size)
		die(name);
	text[found.st_size] = 0;
	fclose(file);
	for (char *c = text; *c; c++)
		count += *c == '\n';
	paths = calloc(count + 1, sizeof *paths);
	latencies = calloc(count + 1, sizeof *latencies);
	if (!paths || !latencies)
		die("memory");
	count = 0;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		paths[count++] = line;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	size_t n, reached = 0;
	double begun, took;
	const char *failed;

	if (argc != 7) {
		fprintf(stderr, "usage: client read|stat ROOT LIST THREADS CHUNK SECONDS\n");
		return 2;
	}
	stat_only = !strcmp(argv[1], "stat");
	load(argv[3]);
	n = strtoul(argv[4], NULL, 10);
	chunk = strtoul(argv[5], NULL, 10);
	if (n < 1 || n > MAX_THREADS || chunk < 1) {
		fprintf(stderr, "client: THREADS is 1 to %d, CHUNK at least 1\n", MAX_THREADS);
		return 2;
	}
	if (chdir(argv[2]))
		die(argv[2]);
	pthread_barrier_init(&start, NULL, (unsigned)n + 1);
	deadline = now() + 3600;
	for (size_t i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, work, NULL))
			die("pthread_create");
	begun = now();
	deadline = begun + strtod(argv[6], NULL);
	pthread_barrier_wait(&start);
	for (size_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	took = now() - begun;
	for (size_t i = 0; i < count; i++)
		if (latencies[i])
			latencies[reached++] = latencies[i];
	qsort(latencies, reached, sizeof *latencies, by_size);
	failed = atomic_load(&failed_path);
	printf("{\"seconds\": %.6f, \"files\": %zu, \"bytes\": %llu, \"errors\": %zu, \"first_error\": \"%s%s%s\", "
	       "\"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n",
	       took, (size_t)files, (unsigned long long)bytes, (size_t)errors, failed ? failed : "", failed ? ": " : "",
	       failed ? strerror(failed_errno) : "", reached ? latencies[reached / 2] : 0,
	       reached ? latencies[reached * 99 / 100] : 0, reached ? latencies[reached - 1] : 0);
	return 0;
}
