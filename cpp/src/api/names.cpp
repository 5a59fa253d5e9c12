#include "histo/names.h"

#include <string>

#include "histo/error.h"

namespace histo {

void throw_unknown_name(std::string_view what, std::string_view text, std::string_view choices) {
  throw Error(ErrorCode::invalid_argument,
              std::string(what).append(" \"").append(text).append("\" is unknown"),
              std::string("choose from ").append(choices));
}

}  // namespace histo
