# macOS by Zig's compiler (PyPI: ziglang), on any system. It shows that the sources compile and link there; programs
# for users are built on macOS. HISTO_ZIG_ARCHITECTURE chooses aarch64 or x86_64.
set(HISTO_ZIG_ARCHITECTURE aarch64 CACHE STRING "aarch64 or x86_64")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HISTO_ZIG_ARCHITECTURE HISTO_ZIG)
find_program(HISTO_ZIG NAMES python-zig zig REQUIRED)

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR ${HISTO_ZIG_ARCHITECTURE})
set(CMAKE_C_COMPILER ${HISTO_ZIG} cc -target ${HISTO_ZIG_ARCHITECTURE}-macos.11.0)
set(CMAKE_CXX_COMPILER ${HISTO_ZIG} c++ -target ${HISTO_ZIG_ARCHITECTURE}-macos.11.0)
set(CMAKE_CXX_ARCHIVE_CREATE "${HISTO_ZIG} ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "${HISTO_ZIG} ranlib <TARGET>")
set(CMAKE_INSTALL_NAME_TOOL install_name_tool CACHE FILEPATH "only used to install, on macOS")
