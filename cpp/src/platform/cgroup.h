// CPU quota of the Linux control group that this process is in.
#pragma once

#include <filesystem>
#include <optional>

namespace histo {

// The tightest CPU quota, in CPUs (1.5 is one and a half), of the process's cgroup and of all above it;
// nothing where none is set or the system has no cgroups. `root` is "/", or a copied tree in tests.
//
// Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst (cpu.max) and
// Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us, cpu.cfs_period_us), man 7 cgroups
// (/proc/self/cgroup).
std::optional<double> cgroup_cpu_quota(const std::filesystem::path& root);

}  // namespace histo
