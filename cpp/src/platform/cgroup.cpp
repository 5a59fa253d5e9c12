#include "platform/cgroup.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace histo {
namespace {

namespace fs = std::filesystem;

// "max 100000" (v2, no quota), "-1" (v1, no quota) and unreadable files all come out as no quota.
std::optional<double> quota_over_period(std::istream&& quota_file, std::istream&& period_file) {
  double quota = 0;
  double period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return quota / period;
  }
  return std::nullopt;
}

std::optional<double> quota_v2(const fs::path& group) {
  std::ifstream file(group / "cpu.max");
  std::string quota;
  std::string period;
  file >> quota >> period;
  return quota_over_period(std::istringstream(quota), std::istringstream(period));
}

std::optional<double> quota_v1(const fs::path& group) {
  return quota_over_period(std::ifstream(group / "cpu.cfs_quota_us"),
                           std::ifstream(group / "cpu.cfs_period_us"));
}

// A quota binds everything below it, so every group up to the mount point counts. Inside a container the path
// may be the host's and not exist here; the walk then still meets the mount point, which is the container's
// own.
template <typename ReadQuota>
void tighten(std::optional<double>& tightest, const fs::path& mount, fs::path group, ReadQuota read_quota) {
  while (true) {
    if (const auto quota = read_quota(mount / group)) {
      tightest = std::min(*quota, tightest.value_or(*quota));
    }
    if (group.empty()) {
      return;
    }
    group = group.parent_path();
  }
}

bool has_cpu_controller(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") {
      return true;
    }
  }
  return false;
}

}  // namespace

std::optional<double> cgroup_cpu_quota(const fs::path& root) {
  const fs::path cgroups = root / "sys/fs/cgroup";
  std::optional<double> tightest;

  // Each line is "hierarchy-id:controllers:/path"; v2 is the line whose controllers are empty.
  std::ifstream memberships(root / "proc/self/cgroup");
  for (std::string line; std::getline(memberships, line);) {
    std::istringstream fields(line);
    std::string id;
    std::string controllers;
    std::string path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    const fs::path group = fs::path(path).relative_path();
    if (controllers.empty()) {
      tighten(tightest, cgroups, group, quota_v2);
    } else if (has_cpu_controller(controllers)) {
      tighten(tightest, cgroups / "cpu", group,
              quota_v1);  // a link to "cpu,cpuacct" where the two are mounted as one
    }
  }
  return tightest;
}

}  // namespace histo
