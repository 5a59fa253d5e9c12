#include "histo/image_view.h"

#include <limits>
#include <string>

#include "checks.h"
#include "histo/error.h"
#include "image_layout.h"

namespace histo {
namespace {

constexpr std::size_t largest = std::numeric_limits<std::size_t>::max();

// Sums of products that know when they no longer fit.
class CheckedSum {
 public:
  void add(std::size_t a, std::size_t b) {
    if (b != 0 && a > (largest - sum_) / b) {
      fits_ = false;
    } else {
      sum_ += a * b;
    }
  }
  [[nodiscard]] bool fits() const { return fits_; }
  [[nodiscard]] std::size_t value() const { return sum_; }

 private:
  std::size_t sum_ = 0;
  bool fits_ = true;
};

std::string extents(std::size_t height, std::size_t width) {
  return std::to_string(height) + " x " + std::to_string(width) + " pixels";
}

void check_stride(const char* stride, std::size_t bytes, std::size_t row, const std::string& name) {
  if (bytes != 0 && bytes < row) {
    throw Error(ErrorCode::invalid_argument,
                std::string(stride) + " of " + name + " is " + std::to_string(bytes) +
                    " bytes, less than a row, which takes " + std::to_string(row),
                "give the bytes from one to the next, or 0");
  }
}

}  // namespace

void check_image(const ImageView& image, const std::string& name) {
  if (histo::name(image.format) == "unknown") {
    throw Error(ErrorCode::invalid_argument,
                "the format of " + name + " is not a value of histo::PixelFormat",
                "use " + name_list<PixelFormat>());
  }
  if (image.height == 0 || image.width == 0) {
    throw Error(ErrorCode::invalid_argument, name + " has " + extents(image.height, image.width),
                "both must be at least 1");
  }
  const std::size_t channels = bytes_of_pixel(image.format);
  const bool planar = image.plane_stride != 0;
  CheckedSum row;
  row.add(image.width, planar ? 1 : channels);
  CheckedSum all = row;
  if (row.fits()) {
    check_stride("row_stride", image.row_stride, row.value(), name);
    check_stride("plane_stride", image.plane_stride, row.value(), name);
    all.add(image.height - 1, image.row_stride == 0 ? row.value() : image.row_stride);
    all.add(image.plane_stride, channels - 1);
  }
  if (!all.fits()) {
    throw Error(ErrorCode::size_overflow, name + " has more bytes than fit in memory", "check its shape");
  }
  if (image.bytes.data() == nullptr) {
    throw Error(ErrorCode::invalid_argument, name + " is a null pointer",
                "give the address of its first pixel");
  }
  if (image.bytes.size() < all.value()) {
    throw Error(ErrorCode::size_mismatch, name + " has " + std::to_string(image.bytes.size()) + " bytes",
                "its pixels take " + std::to_string(all.value()));
  }
}

ImageView ImageView::region(const Region& region) const {
  check_image(*this, "the image");
  if (region.height == 0 || region.width == 0) {
    throw Error(ErrorCode::invalid_argument, "the region has " + extents(region.height, region.width),
                "both must be at least 1");
  }
  // Differences, because sums might overflow.
  if (region.height > height || region.y > height - region.height || region.width > width ||
      region.x > width - region.width) {
    throw Error(ErrorCode::invalid_argument,
                "the region of " + extents(region.height, region.width) + " at x " +
                    std::to_string(region.x) + ", y " + std::to_string(region.y) +
                    " is not inside the image of " + extents(height, width),
                "move it, or make it smaller");
  }
  const ImageStrides strides = strides_of(*this);
  return {.bytes = bytes.subspan(region.y * strides.row + region.x * strides.pixel),
          .height = region.height,
          .width = region.width,
          .format = format,
          .row_stride = strides.row,
          .plane_stride = plane_stride};
}

}  // namespace histo
