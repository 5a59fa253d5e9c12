# macOS by Zig's compiler (PyPI: ziglang), on any system. HISTO_ZIG_ARCHITECTURE chooses aarch64 or x86_64. It shows
# that the sources compile and link there; what users get is built on macOS.
set(CMAKE_SYSTEM_NAME Darwin)
set(HISTO_ZIG_ARCHITECTURE aarch64 CACHE STRING "aarch64 or x86_64")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HISTO_ZIG_ARCHITECTURE)
set(CMAKE_SYSTEM_PROCESSOR ${HISTO_ZIG_ARCHITECTURE})
find_program(HISTO_ZIG NAMES python-zig zig REQUIRED)
set(CMAKE_C_COMPILER ${HISTO_ZIG} cc)
set(CMAKE_CXX_COMPILER ${HISTO_ZIG} c++)
set(CMAKE_C_COMPILER_TARGET ${HISTO_ZIG_ARCHITECTURE}-macos.11.0)
set(CMAKE_CXX_COMPILER_TARGET ${HISTO_ZIG_ARCHITECTURE}-macos.11.0)
