// Preloaded, makes one operation that changes a file fail: the one of a number, or it and all later.
//
// Operations are counted from failing_writes_begin on, which a process calls about itself, and only
// on paths that contain a given text. Each is written to a log, a line for each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char wanted[PATH_MAX];
static long first, number, count;
static int forever, descriptor = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void failing_writes_begin(const char *paths, long nth, int for_ever, int error, const char *log) {
  snprintf(wanted, sizeof wanted, "%s", paths);
  first = nth, forever = for_ever, number = error, count = 0;
  if (*log)
    descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

// Whether this operation has to fail; errno is set then.
static int fails(const char *operation, const char *path) {
  if (!*wanted || !path || !strstr(path, wanted)) return 0;
  pthread_mutex_lock(&lock);
  long own = ++count;
  pthread_mutex_unlock(&lock);
  int failing = first && (own == first || (forever && own > first));
  if (descriptor >= 0) {
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%ld %s %s\n", own, operation, path);
    syscall(SYS_write, descriptor, line, size);
  }
  if (failing) errno = number;
  return failing;
}

static int fails_open(const char *operation, int file) {
  char link[64], path[PATH_MAX];
  if (!*wanted) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return fails(operation, path);
}

// A path as seen from the root, where it is relative to the current folder.
static const char *whole(int folder, const char *path, char *buffer) {
  if (!*wanted || path[0] == '/' || folder != AT_FDCWD || !getcwd(buffer, PATH_MAX)) return path;
  size_t size = strlen(buffer);
  snprintf(buffer + size, PATH_MAX - size, "/%s", path);
  return buffer;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define WRITES(flags) (((flags)&O_CREAT) || ((flags)&O_ACCMODE) != O_RDONLY)
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags); \
    char buffer[PATH_MAX]; \
    if (WRITES(flags) && fails("open", whole(AT_FDCWD, path, buffer))) return -1; \
    return real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags); \
    char buffer[PATH_MAX]; \
    if (WRITES(flags) && fails("open", whole(folder, path, buffer))) return -1; \
    return real(folder, path, flags, mode); \
  }
#define ON_FILE(result, name, parameters, arguments) \
  result name parameters { \
    REAL(name); \
    if (fails_open(#name, file)) return -1; \
    return real arguments; \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
ON_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(ssize_t, writev, (int file, const struct iovec *parts, int n), (file, parts, n))
ON_FILE(ssize_t, pwritev, (int file, const struct iovec *parts, int n, off_t at), (file, parts, n, at))
ON_FILE(ssize_t, pwritev64, (int file, const struct iovec *parts, int n, off64_t at), (file, parts, n, at))
ON_FILE(int, fsync, (int file), (file))
ON_FILE(int, fdatasync, (int file), (file))
ON_FILE(int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size))

int close(int file) {
  REAL(close);
  int flags = *wanted ? fcntl(file, F_GETFL) : -1;
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || !fails_open("close", file)) return real(file);
  real(file);
  errno = number;
  return -1;
}

int rename(const char *from, const char *to) {
  REAL(rename);
  char buffer[PATH_MAX];
  return fails("rename", whole(AT_FDCWD, to, buffer)) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
  REAL(renameat);
  char buffer[PATH_MAX];
  return fails("rename", whole(to_folder, to, buffer)) ? -1 : real(from_folder, from, to_folder, to);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  char buffer[PATH_MAX];
  return fails("mkdir", whole(AT_FDCWD, path, buffer)) ? -1 : real(path, mode);
}
