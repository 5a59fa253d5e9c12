# Cross compiler for Linux on AArch64: Debian's and Ubuntu's g++-aarch64-linux-gnu. Programs that are built run
# under qemu-user where it is installed; the environment variable QEMU_CPU chooses the CPU (`qemu-aarch64 -cpu help`).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

find_program(HISTO_QEMU_AARCH64 qemu-aarch64)
if(HISTO_QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${HISTO_QEMU_AARCH64};-L;/usr/aarch64-linux-gnu)
endif()

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
