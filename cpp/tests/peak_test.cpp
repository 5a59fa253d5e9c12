// What the machine can do at most; how fast that is cannot be tested.

#include "histo/peak.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "cpu/isa_records.h"
#include "cpu/peak_loops.h"
#include "error_code.h"
#include "histo/error.h"

namespace {

using histo::ErrorCode;
using histo::Isa;
using histo::Peak;
using histo::Precision;

bool has(const std::vector<Peak>& peaks, const std::string& products) {
  return std::ranges::find(peaks, products, &Peak::products) != peaks.end();
}

}  // namespace

TEST_CASE("each kind of products that kernels of this machine multiply has a peak") {
  for (const Isa isa : histo::usable_isas()) {
    CAPTURE(histo::name(isa));
    const std::vector<Peak> peaks = histo::measure_peaks(1, 0, isa);
    REQUIRE(!peaks.empty());
    CHECK(peaks.front().products == "fp32");
    for (const Peak& peak : peaks) {
      CAPTURE(peak.instruction);
      CHECK(peak.multiply_adds > 1e6);
      CHECK(peak.multiply_adds < 1e15);
    }
    for (const histo::PrecisionSupport& support : histo::precision_support(isa)) {
      if (support.precision != Precision::bf16x3) {  // which multiplies in bf16
        CHECK(has(peaks, std::string(histo::name(support.precision))) == support.isa.has_value());
      }
    }
  }
}

TEST_CASE("all kernels, also those of other machines, have a loop for what they multiply") {
  for (const histo::IsaRecord* const record : histo::isa_records()) {
    CAPTURE(record->description);
    for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::int8}) {
      CAPTURE(histo::name(precision));
      if (record->executes[precision]) {
        const std::vector<histo::PeakLoop> loops = histo::peak_loops(record->isa, precision);
        REQUIRE(!loops.empty());
        CHECK(std::string(loops.front().products) == histo::name(precision));
      }
    }
  }
}

TEST_CASE("memory is read") { CHECK(histo::measure_reading(2, 0) > 1e6); }

TEST_CASE("impossible times and threads are refused") {
  for (const double seconds : {-0.1, 60.5, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(code_of([&] { (void)histo::measure_peaks(1, seconds); }) == ErrorCode::invalid_argument);
    CHECK(code_of([&] { (void)histo::measure_reading(1, seconds); }) == ErrorCode::invalid_argument);
  }
  CHECK(code_of([] { (void)histo::measure_peaks(1U << 31U, 0); }) == ErrorCode::invalid_argument);
}
