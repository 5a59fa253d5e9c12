#include "platform/cgroup.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

namespace {

namespace fs = std::filesystem;

// A made-up root directory that goes away with the test.
class FakeRoot {
 public:
  FakeRoot()
      : path_(fs::temp_directory_path() / ("histo-cgroup-" + std::to_string(std::random_device{}()))) {}
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;
  ~FakeRoot() { fs::remove_all(path_); }

  FakeRoot& with(const fs::path& file, const std::string& text) {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
    return *this;
  }

  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

TEST_CASE("no cgroups, no quota") {
  CHECK_FALSE(histo::cgroup_cpu_quota(FakeRoot().path()));
  CHECK_FALSE(histo::cgroup_cpu_quota(FakeRoot().with("proc/self/cgroup", "garbage\n::\n\n").path()));
}

TEST_CASE("v2: the tightest quota from the group up counts") {
  FakeRoot root;
  root.with("proc/self/cgroup", "0::/pod/container\n")
      .with("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
      .with("sys/fs/cgroup/pod/cpu.max", "150000 100000\n");
  CHECK(histo::cgroup_cpu_quota(root.path()) == 1.5);

  root.with("sys/fs/cgroup/pod/container/cpu.max", "50000 100000\n");
  CHECK(histo::cgroup_cpu_quota(root.path()) == 0.5);
}

TEST_CASE("v2: no quota") {
  FakeRoot root;
  root.with("proc/self/cgroup", "0::/\n").with("sys/fs/cgroup/cpu.max", "max 100000\n");
  CHECK_FALSE(histo::cgroup_cpu_quota(root.path()));
}

TEST_CASE("v1: the cpu controller, alone or mounted with another") {
  FakeRoot root;
  root.with("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "300000\n")
      .with("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
      .with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
      .with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(histo::cgroup_cpu_quota(root.with("proc/self/cgroup", "2:cpu:/job\n").path()) == 3.0);
  CHECK(histo::cgroup_cpu_quota(root.with("proc/self/cgroup", "2:cpu,cpuacct:/job\n0::/\n").path()) == 3.0);
  CHECK_FALSE(histo::cgroup_cpu_quota(root.with("proc/self/cgroup", "2:cpuacct:/job\n").path()));
  CHECK_FALSE(histo::cgroup_cpu_quota(root.with("proc/self/cgroup", "2:cpu:/\n").path()));
}

TEST_CASE("a container that sees the host's path finds its quota at the mount point") {
  FakeRoot root;
  root.with("proc/self/cgroup", "0::/host/only/path\n").with("sys/fs/cgroup/cpu.max", "200000 100000\n");
  CHECK(histo::cgroup_cpu_quota(root.path()) == 2.0);
}

}  // namespace
