// How many cores this process may use.

#pragma once

namespace mlx_recurrent::kernels {

// The cores that the calling thread may run on at this moment. Members of a
// larger team would wait at every barrier for one that waits for their core.
int cores_now();

// The least CPU quota of the control groups that this process is in, its own
// and those around it, in cores; 0 where there is none.
double cpu_quota();

// The same from other files: the list of a process's groups, as
// /proc/self/cgroup (cgroups(7)), and the folder in which the groups stand, as
// /sys/fs/cgroup. Whatever is missing or damaged sets no limit.
double cpu_quota(const char* list, const char* mount);

// The cores that a team may have: those of `cores_now`, and no more than the
// quota has begun; from 1 to kMostThreads (team.h).
int usable_cores();

} // namespace mlx_recurrent::kernels
