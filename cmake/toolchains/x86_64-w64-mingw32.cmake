# Windows on x86-64, with Debian's compilers (g++-mingw-w64-x86-64-posix); programs run under wine
# (wine64).

set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CROSSCOMPILING_EMULATOR env WINEDEBUG=-all /usr/lib/wine/wine64)
# The compilers' own libraries are DLLs in folders of theirs, where no program looks.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
include("${CMAKE_CURRENT_LIST_DIR}/debian.cmake")
