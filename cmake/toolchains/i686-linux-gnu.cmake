# Linux on 32-bit x86, with Debian's compilers (g++-i686-linux-gnu); the kernel of an x86-64 machine
# runs the programs.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR i686)
set(CMAKE_CROSSCOMPILING_EMULATOR /usr/i686-linux-gnu/lib/ld-linux.so.2 --library-path /usr/i686-linux-gnu/lib)
include("${CMAKE_CURRENT_LIST_DIR}/debian.cmake")
