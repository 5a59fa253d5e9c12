// Whether the tests run on an emulated CPU: CMAKE_CROSSCOMPILING_EMULATOR, see CMakeLists.txt.
#pragma once

#ifdef HISTO_UNDER_EMULATION
inline constexpr bool under_emulation = true;
#else
inline constexpr bool under_emulation = false;
#endif
