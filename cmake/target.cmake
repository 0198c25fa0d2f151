# What is built for: FA_TARGET, the Rust target (empty: the machine that builds, as cargo knows it),
# FA_LIBC (gnu, musl; of Linux alone), and FA_PROCESSOR, as Rust calls it.

set(FA_RUST_TARGET "" CACHE STRING "Rust target (empty: the one that fits the C compiler)")
set(FA_RUSTC "$ENV{RUSTC}" CACHE STRING "Rust compiler (empty: the one that cargo finds)")
set(FA_CARGO_ARGS "$ENV{FA_CARGO_ARGS}" CACHE STRING "Further arguments of cargo, such as -Zbuild-std, as a shell has them")
set(unwinder gcc_s)
if(DEFINED ENV{FA_UNWINDER})
  set(unwinder "$ENV{FA_UNWINDER}")
endif()
set(FA_UNWINDER "${unwinder}" CACHE STRING "With musl: the library that unwinds the stack for Rust (gcc_s, gcc_eh, unwind)")

include(CheckCSourceCompiles)
# Of the C compiler; a function, for a variable of its own: nothing needs to be linked.
function(fa_find_glibc)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  check_c_source_compiles("#include <features.h>
#ifndef __GLIBC__
#error
#endif
" FA_HAS_GLIBC)
endfunction()
set(FA_LIBC "")
if(NOT WIN32)
  fa_find_glibc()
  set(FA_LIBC musl)
  if(FA_HAS_GLIBC)
    set(FA_LIBC gnu)
  endif()
endif()

set(rustc "${FA_RUSTC}")
if(NOT rustc)
  find_program(FA_FOUND_RUSTC rustc PATHS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
  mark_as_advanced(FA_FOUND_RUSTC)
  set(rustc "${FA_FOUND_RUSTC}")
endif()

# What CMake, toolchain files and `uname -m` call a processor, and Rust.
set(FA_PROCESSOR "${CMAKE_SYSTEM_PROCESSOR}")
set(abi "")
if(FA_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(FA_PROCESSOR x86_64)
elseif(FA_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(FA_PROCESSOR aarch64)
elseif(FA_PROCESSOR MATCHES "^(i[3-6]86|x86)$")
  set(FA_PROCESSOR i686)
elseif(FA_PROCESSOR MATCHES "^arm")
  set(FA_PROCESSOR armv7)
  set(abi eabihf)
elseif(FA_PROCESSOR STREQUAL "riscv64")
  set(FA_PROCESSOR riscv64gc)
elseif(FA_PROCESSOR STREQUAL "ppc64le")
  set(FA_PROCESSOR powerpc64le)
endif()

set(FA_TARGET "${FA_RUST_TARGET}")
# A compiler for another libc than this machine's makes a cross build, too: musl-gcc on a system
# with glibc.
set(is_other_libc FALSE)
if(NOT FA_TARGET AND NOT CMAKE_CROSSCOMPILING AND FA_LIBC STREQUAL "musl")
  execute_process(COMMAND "${rustc}" -vV OUTPUT_VARIABLE version)
  if(NOT version MATCHES "host: [^\n]*-musl")
    set(is_other_libc TRUE)
  endif()
endif()
if(NOT FA_TARGET AND WIN32)
  # On Windows, too, where Rust is usually there for another compiler than MinGW's.
  set(FA_TARGET "${FA_PROCESSOR}-pc-windows-gnu")
elseif(NOT FA_TARGET AND (CMAKE_CROSSCOMPILING OR is_other_libc))
  set(FA_TARGET "${FA_PROCESSOR}-unknown-linux-${FA_LIBC}${abi}")
endif()

if(FA_TARGET)
  execute_process(COMMAND "${rustc}" --print target-libdir --target "${FA_TARGET}"
                  OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "Rust has no target ${FA_TARGET}. Name the right one with -DFA_RUST_TARGET=...: `rustc --print target-list`.")
  endif()
  file(GLOB found "${folder}/libstd-*.rlib")
  if(NOT found AND NOT FA_CARGO_ARGS MATCHES "build-std")
    message(FATAL_ERROR "Rust's standard library for ${FA_TARGET} is missing. Install it: rustup target add ${FA_TARGET}\n"
                        "Or name a compiler that has it with -DFA_RUSTC=...")
  endif()
  message(STATUS "The Rust target is ${FA_TARGET}")
endif()
