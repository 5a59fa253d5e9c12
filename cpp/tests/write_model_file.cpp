// Writes a small valid model for the tests that are not C++: histo_write_model_file FILE

#include <cstdio>
#include <fstream>

#include "model_file.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  const auto bytes = make_model_file(3, 6, 33, 1);
  std::ofstream file(argv[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  return file ? 0 : 1;
}
