# A toolchain for wheels that run on every Linux with glibc 2.28 or newer (manylinux_2_28), built on a newer system
# and without a container: GCC compiles, as everywhere else, so the arithmetic is that of the tests; Zig links, because
# it has the symbol lists of every glibc. A symbol that glibc 2.28 lacks is an error of the linker. libstdc++ is linked
# statically: the one of the compiler is newer than what such systems have.
#
# The environment says for which CPU: HISTO_WHEEL_ARCH=x86_64 or aarch64; HISTO_ZIG=path of the program zig.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{HISTO_WHEEL_ARCH})
set(histo_triple ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu)
set(CMAKE_C_COMPILER ${histo_triple}-gcc)
set(CMAKE_CXX_COMPILER ${histo_triple}-g++)

foreach(library libstdc++.a libgcc_s.so.1)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${library}
    OUTPUT_VARIABLE histo_path OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND histo_runtime ${histo_path})
endforeach()
list(JOIN histo_runtime " " histo_runtime)
set(histo_link "$ENV{HISTO_ZIG} c++ -target ${histo_triple}.2.28 -nostdlib++ -Wl,--allow-shlib-undefined -Wl,-s")
set(histo_objects "<OBJECTS> -fvisibility=hidden ${CMAKE_CURRENT_LIST_DIR}/glibc_2_28.c -o <TARGET>")
set(CMAKE_CXX_LINK_EXECUTABLE
  "${histo_link} <CMAKE_CXX_LINK_FLAGS> <LINK_FLAGS> ${histo_objects} <LINK_LIBRARIES> ${histo_runtime}")
set(CMAKE_CXX_CREATE_SHARED_LIBRARY
  "${histo_link} -shared <LINK_FLAGS> <SONAME_FLAG><TARGET_SONAME> ${histo_objects} <LINK_LIBRARIES> ${histo_runtime}")
set(CMAKE_CXX_CREATE_SHARED_MODULE ${CMAKE_CXX_CREATE_SHARED_LIBRARY})
set(CMAKE_INTERPROCEDURAL_OPTIMIZATION OFF) # what GCC leaves to link time, Zig cannot read

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
