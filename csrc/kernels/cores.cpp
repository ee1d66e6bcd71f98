#include "cores.h"

#include <limits.h>
#include <sched.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "team.h"

namespace mlx_recurrent::kernels {

namespace {

constexpr int kMostCores = CoreSet().size();

// A file's first line, as far as `line` holds it; null where there is none.
const char* read_line(
    const char* folder,
    const char* name,
    char* line,
    int size) {
  char path[PATH_MAX];
  int length = std::snprintf(path, sizeof path, "%s/%s", folder, name);
  if (length < 0 || length >= PATH_MAX) {
    return nullptr;
  }
  std::FILE* file = std::fopen(path, "r");
  if (!file) {
    return nullptr;
  }
  const char* text = std::fgets(line, size, file);
  std::fclose(file);
  return text;
}

// What follows the integer that a text begins with; null where it is none.
const char* read_number(const char* text, long long* number) {
  char* end;
  errno = 0;
  *number = std::strtoll(text, &end, 10);
  return end == text || errno != 0 ? nullptr : end;
}

// Whether the first line of a file begins with `count` integers.
bool read_numbers(
    const char* folder,
    const char* name,
    long long* numbers,
    int count) {
  char line[64]; // two integers of 64 bits need 42
  const char* rest = read_line(folder, name, line, sizeof line);
  for (int i = 0; rest && i < count; ++i) {
    rest = read_number(rest, numbers + i);
  }
  return rest;
}

// The cores that a file lists, as "0-3,8"; none where it is no such list.
CoreSet read_list(const char* folder, const char* name) {
  char line[4098]; // the system's files have a page at most
  const char* rest = read_line(folder, name, line, sizeof line);
  const char* cut = line + sizeof line - 1;
  CoreSet listed;
  while (rest) {
    long long first, last;
    rest = read_number(rest, &first);
    last = first;
    if (rest && *rest == '-') {
      rest = read_number(rest + 1, &last);
    }
    if (!rest || first < 0 || last < first) {
      break;
    }
    for (long long i = first; i <= last && i < kMostCores; ++i) {
      listed.set(static_cast<size_t>(i));
    }
    if (*rest == '\n' || (*rest == '\0' && rest != cut)) {
      return listed;
    }
    rest = *rest == ',' ? rest + 1 : nullptr;
  }
  return {};
}

// Cores of one kind differ by what each may be clocked at; those of two kinds
// differ by more than this part.
constexpr double kSameKind = 0.75;
constexpr long long kFullCapacity = 1024; // of the system's fastest core

// Those of the fastest kind by their capacities.
CoreSet fast_by_capacity(const char* devices, const CoreSet& allowed) {
  long long capacities[kMostCores] = {};
  long long most = 0;
  for (int i = 0; i < kMostCores; ++i) {
    if (!allowed[i]) {
      continue;
    }
    char name[64];
    std::snprintf(name, sizeof name, "system/cpu/cpu%d/cpu_capacity", i);
    if (!read_numbers(devices, name, capacities + i, 1) || capacities[i] < 1 ||
        capacities[i] > kFullCapacity) {
      return allowed;
    }
    most = capacities[i] > most ? capacities[i] : most;
  }
  CoreSet fast;
  for (int i = 0; i < kMostCores; ++i) {
    fast[i] = allowed[i] && capacities[i] >= kSameKind * most;
  }
  return fast;
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

Cores cores_by_kind(const char* devices, const CoreSet& allowed) {
  CoreSet core = read_list(devices, "cpu_core/cpus");
  CoreSet atom = read_list(devices, "cpu_atom/cpus");
  bool hybrid = core.any() && atom.any() && (core & atom).none();
  CoreSet fast = hybrid ? allowed & core : fast_by_capacity(devices, allowed);
  if (fast.none()) { // the affinity mask has left the slower ones alone
    fast = allowed;
  }
  int count = static_cast<int>(fast.count());
  return {count, static_cast<int>(allowed.count()) - count};
}

Cores cores_by_kind() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    CoreSet allowed;
    for (int i = 0; i < CPU_SETSIZE && i < kMostCores; ++i) {
      allowed[i] = CPU_ISSET(i, &set);
    }
    return cores_by_kind("/sys/devices", allowed);
  }
#elif defined(__APPLE__)
  int fast = 0;
  size_t size = sizeof fast;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &size, nullptr, 0) == 0 &&
      fast > 0 && fast < cores_now()) {
    return {fast, cores_now() - fast};
  }
#endif
  return {cores_now(), 0};
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
  int cores = cores_by_kind().fast;
  double quota = cpu_quota();
  if (quota > 0 && std::ceil(quota) < cores) {
    cores = static_cast<int>(std::ceil(quota));
  }
  return cores < kMostThreads ? cores : kMostThreads;
}

} // namespace mlx_recurrent::kernels
