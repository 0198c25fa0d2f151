# Linux on x86-64 with musl, with Debian's wrapper of its C compiler (musl-tools), which has no C++.
# Programs need no emulator.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER musl-gcc)
# Or CMake would take that of the machine, which is for another C library.
set(CMAKE_CXX_COMPILER "")
# The wrapper leaves it out, and without it no panic is caught.
set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,--eh-frame-hdr)
