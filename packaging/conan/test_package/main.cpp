// Whether headers and library of the package belong together, and it runs here.

#include <histo/build_config.h>
#include <histo/cpu.h>
#include <histo/thread_team.h>

#include <cstdio>

int main() {
  histo::require_version();
  std::printf("histo %s, %u threads, %zu instruction sets\n", histo::build_config().version.data(),
              histo::ThreadTeam().threads(), histo::usable_isas().size());
}
