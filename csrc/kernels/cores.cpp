#include "cores.h"

#include <limits.h>
#include <sched.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "team.h"

namespace mlx_recurrent::kernels {

namespace {

// Whether the first line of a file begins with `count` integers.
bool read_numbers(
    const char* folder,
    const char* name,
    long long* numbers,
    int count) {
  char path[PATH_MAX];
  int length = std::snprintf(path, sizeof path, "%s/%s", folder, name);
  if (length < 0 || length >= PATH_MAX) {
    return false;
  }
  std::FILE* file = std::fopen(path, "r");
  if (!file) {
    return false;
  }
  char line[64]; // two integers of 64 bits need 42
  const char* rest = std::fgets(line, sizeof line, file);
  std::fclose(file);
  for (int i = 0; rest && i < count; ++i) {
    char* end;
    errno = 0;
    numbers[i] = std::strtoll(rest, &end, 10);
    rest = end == rest || errno != 0 ? nullptr : end;
  }
  return rest;
}

// The quota of the group whose folder this is, by either version of control
// groups: microseconds of processor time in a period of so many. Without a
// quota version 2 has a word, and version 1 has -1.
double quota_of(const char* folder) {
  long long numbers[2];
  bool found = read_numbers(folder, "cpu.max", numbers, 2) ||
      (read_numbers(folder, "cpu.cfs_quota_us", numbers, 1) &&
       read_numbers(folder, "cpu.cfs_period_us", numbers + 1, 1));
  if (!found || numbers[0] <= 0 || numbers[1] <= 0) {
    return 0;
  }
  return static_cast<double>(numbers[0]) / static_cast<double>(numbers[1]);
}

double lesser(double a, double b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

// The least quota of a group and of those around it but for the root, whose
// folder is `mount`. The path of a group begins with a slash.
double quota_around(const char* mount, const char* group) {
  // A path that is cut here is too long to be opened; those above it are not.
  char folder[PATH_MAX];
  std::snprintf(folder, sizeof folder, "%s%s", mount, group);
  size_t root = std::strlen(mount);
  double least = 0;
  while (std::strlen(folder) > root) {
    least = lesser(least, quota_of(folder));
    *std::strrchr(folder, '/') = '\0';
  }
  return least;
}

// Whether a path leads out of the mount, as that of a group does which this
// process's namespace of control groups does not hold.
bool leads_out(const char* group) {
  for (const char* up = group; (up = std::strstr(up, "/..")); up += 3) {
    if (up[3] == '/' || up[3] == '\0') {
      return true;
    }
  }
  return false;
}

// Whether "cpu" is one of the names that commas separate.
bool names_cpu(const char* controllers) {
  for (const char* name = controllers;; ++name) {
    size_t length = std::strcspn(name, ",");
    if (length == 3 && std::strncmp(name, "cpu", length) == 0) {
      return true;
    }
    name += length;
    if (*name == '\0') {
      return false;
    }
  }
}

} // namespace

int cores_now() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  static const int cores =
      static_cast<int>(std::thread::hardware_concurrency());
  return cores < 1 ? 1 : cores;
}

double cpu_quota(const char* list, const char* mount) {
  char cpu[PATH_MAX];
  std::snprintf(cpu, sizeof cpu, "%s/cpu", mount);
  // The roots count also where the list cannot be read.
  double least = lesser(quota_of(mount), quota_of(cpu));
  std::FILE* file = std::fopen(list, "r");
  if (!file) {
    return least;
  }
  char* line = nullptr;
  size_t size = 0;
  // number:controllers:group, where version 2 names no controllers.
  while (getline(&line, &size, file) > 0) {
    line[std::strcspn(line, "\n")] = '\0';
    char* controllers = std::strchr(line, ':');
    char* group = controllers ? std::strchr(controllers + 1, ':') : nullptr;
    if (!group || group[1] != '/' || leads_out(group + 1)) {
      continue;
    }
    *group++ = '\0';
    ++controllers;
    if (*controllers == '\0') {
      least = lesser(least, quota_around(mount, group));
    } else if (names_cpu(controllers)) {
      least = lesser(least, quota_around(cpu, group));
    }
  }
  std::free(line);
  std::fclose(file);
  return least;
}

double cpu_quota() {
  return cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
}

int usable_cores() {
  int cores = cores_now();
  double quota = cpu_quota();
  if (quota > 0 && std::ceil(quota) < cores) {
    cores = static_cast<int>(std::ceil(quota));
  }
  return cores < kMostThreads ? cores : kMostThreads;
}

} // namespace mlx_recurrent::kernels
