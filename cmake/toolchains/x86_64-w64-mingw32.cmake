# Windows on x86-64, with Debian's compilers (g++-mingw-w64-x86-64-posix); programs run under wine (wine64).

set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CROSSCOMPILING_EMULATOR env WINEDEBUG=-all "WINEPREFIX=${CMAKE_BINARY_DIR}/wine" /usr/lib/wine/wine64)
include("${CMAKE_CURRENT_LIST_DIR}/debian.cmake")
