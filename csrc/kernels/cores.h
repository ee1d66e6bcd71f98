// How many cores this process may use, and of which kind.

#pragma once

#include <bitset>

namespace mlx_recurrent::kernels {

// The cores that the calling thread may run on at this moment. Members of a
// larger team would wait at every barrier for one that waits for their core.
int cores_now();

// Cores of the fastest kind, and all others.
struct Cores {
  int fast;
  int slow;
};

// Cores by their number, as many as an affinity mask holds.
using CoreSet = std::bitset<1024>;

// Those of `cores_now` by their kind: none is slow where the system tells no
// kinds apart.
Cores cores_by_kind();

// The same of the cores in `allowed`, from a folder as /sys/devices of Linux:
// by the lists of a hybrid processor, or else by the capacity of each core.
// Where either is missing or damaged, all are of one kind.
Cores cores_by_kind(const char* devices, const CoreSet& allowed);

// The least CPU quota of the control groups that this process is in, its own
// and those around it, in cores; 0 where there is none.
double cpu_quota();

// The same from other files: the list of a process's groups, as
// /proc/self/cgroup (cgroups(7)), and the folder in which the groups stand, as
// /sys/fs/cgroup. Whatever is missing or damaged sets no limit.
double cpu_quota(const char* list, const char* mount);

// The cores that a team has unless the user asks for more: the fast ones, since
// it goes at the pace of its slowest member, and no more than the quota has
// begun; from 1 to kMostThreads (team.h).
int usable_cores();

} // namespace mlx_recurrent::kernels
