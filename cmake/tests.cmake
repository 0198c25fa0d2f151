# Every C or C++ file in a folder of c_tests/, in examples_c/ and bindings/cpp/example is a program,
# built once with the shared and once with the static library; CTest runs all of them. The files in
# examples_c/minilm are one program, which needs a model: scripts/test_minilm.sh runs it. On Windows
# those are left out that need POSIX, and c_tests/windows has what stands for some of them.

include(CheckLanguage)

# A compiler that was missing at the last configure may have been installed since.
if(NOT CMAKE_CXX_COMPILER)
  unset(CMAKE_CXX_COMPILER CACHE)
endif()
check_language(CXX)
if(CMAKE_CXX_COMPILER)
  enable_language(CXX)
endif()

# Adds the programs FOLDER/NAME.shared and FOLDER/NAME.static, as targets PREFIX.NAME.KIND, and
# leaves those in `targets`: fa_programs(NAME FOLDER PREFIX SOURCES file... [OPTIONS option of the
# compiler...]).
function(fa_programs name folder prefix)
  cmake_parse_arguments(PARSE_ARGV 3 of "" "" "SOURCES;OPTIONS")
  set(targets)
  set(libraries pthread m dl)
  if(WIN32)
    set(libraries pthread m)
  endif()
  foreach(kind IN ITEMS shared static)
    set(target "${prefix}${name}.${kind}")
    add_executable(${target} ${of_SOURCES})
    target_link_libraries(${target} PRIVATE flash_attention::${kind} ${libraries})
    target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/c_tests/support")
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Werror ${of_OPTIONS}
      -UNDEBUG) # assert() is how a test fails, also in release builds
    target_compile_definitions(${target} PRIVATE
      $<$<BOOL:${FA_FAST_BUILD}>:FA_WITHOUT_AVX512>
      FA_PACKAGE_VERSION="${PROJECT_VERSION}"
      FA_ABI_TABLE="${CMAKE_CURRENT_SOURCE_DIR}/c_tests/abi.txt")
    set_target_properties(${target} PROPERTIES
      C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
      CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
      RUNTIME_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/${folder}"
      OUTPUT_NAME "${name}.${kind}")
    list(APPEND targets ${target})
  endforeach()
  set_property(GLOBAL APPEND PROPERTY FA_PROGRAMS ${targets})
  set(targets ${targets} PARENT_SCOPE)
endfunction()

# Finds the sources in folders, without C++ where it cannot be compiled: fa_sources(FOLDER...).
function(fa_sources)
  set(patterns)
  foreach(folder IN LISTS ARGN)
    list(APPEND patterns "${folder}/*.c" "${folder}/*.cpp")
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS ${patterns})
  if(NOT CMAKE_CXX_COMPILER)
    list(FILTER sources EXCLUDE REGEX "[.]cpp$")
  endif()
  set(sources ${sources} PARENT_SCOPE)
endfunction()

# Takes sources out of `sources`, says which, and why: fa_left_out(REASON NAME...).
function(fa_left_out reason)
  foreach(name IN LISTS ARGN)
    set(found ${sources})
    list(FILTER found INCLUDE REGEX "/${name}[.]cp?p?$")
    if(found)
      list(REMOVE_ITEM sources ${found})
      message(STATUS "Left out: ${name} (${reason})")
    endif()
  endforeach()
  set(sources ${sources} PARENT_SCOPE)
endfunction()

# Whether another processor is imitated; wine, for one, is for another system alone.
set(is_emulated FALSE)
if(CMAKE_CROSSCOMPILING_EMULATOR MATCHES "qemu")
  set(is_emulated TRUE)
endif()

# Says why tests are not run where an emulator runs the programs: fa_not_emulated(REASON NAME...).
function(fa_not_emulated reason)
  if(NOT is_emulated)
    return()
  endif()
  foreach(name IN LISTS ARGN)
    foreach(test IN ITEMS ${name}.shared ${name}.static ${name}.shared.scalar ${name}.static.scalar)
      if(TEST ${test})
        set_tests_properties(${test} PROPERTIES DISABLED ON)
      endif()
    endforeach()
  endforeach()
  list(JOIN ARGN ", " names)
  message(STATUS "Not run in an emulator: ${names} (${reason})")
endfunction()

# An emulator is slow, what makes another system start its programs is slower than this one, and
# another C library may be, too.
set(seconds 120)
if(CMAKE_CROSSCOMPILING)
  set(seconds 1800)
endif()

# Where programs look for the shared library that do not know it from the linker.
set(environment "FA_SHARED_LIBRARY=${FA_SHARED_LIB}")
if(WIN32)
  cmake_path(GET FA_SHARED_LIB PARENT_PATH folder)
  list(APPEND environment "WINEPATH=${folder}")
endif()

# Adds a test that runs `target`; further arguments are for its environment, besides the library
# for tests that load it at run time.
function(fa_test name target)
  add_test(NAME ${name} COMMAND ${target})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${seconds} ENVIRONMENT "${environment};${ARGN}")
endfunction()

set(FA_C_TESTS api memory threads process interop)
if(WIN32)
  set(FA_C_TESTS api threads interop windows)
endif()
if(FA_BUILD_TESTS)
  # By what they are about; support/ is what they share. soak/ and consumer/ are built below.
  list(TRANSFORM FA_C_TESTS PREPEND c_tests/ OUTPUT_VARIABLE folders)
  fa_sources(${folders})
  # Other people's threads: each of these programs, called like what it is about, needs it.
  find_package(OpenMP QUIET COMPONENTS C)
  if(OpenMP_C_FOUND)
    set(needs_openmp OpenMP::OpenMP_C)
  endif()
  find_package(TBB QUIET)
  if(TBB_FOUND)
    set(needs_tbb TBB::tbb)
  endif()
  find_path(FA_PTHREADPOOL_INCLUDE pthreadpool.h)
  find_library(FA_PTHREADPOOL pthreadpool)
  if(FA_PTHREADPOOL_INCLUDE AND FA_PTHREADPOOL)
    set(needs_pthreadpool "${FA_PTHREADPOOL}")
  endif()
  foreach(name IN ITEMS openmp tbb pthreadpool)
    if(NOT needs_${name})
      fa_left_out("there is no ${name} here" ${name})
    endif()
  endforeach()
  if(FA_LIBC STREQUAL "musl")
    fa_left_out("musl has no mallopt" starved reload)
  endif()
  if(FA_FAST_BUILD)
    fa_left_out("a build for development lacks instruction sets that they name" isa isa_env)
  endif()
  if(WIN32)
    message(STATUS "Left out: c_tests/memory, c_tests/process (they are about POSIX)")
    fa_left_out("they are about POSIX" nan affinity callers no_threads threads)
    fa_left_out("OpenMP's library is a DLL of the compiler's, where no program looks" openmp)
  endif()
  foreach(source IN LISTS sources)
    cmake_path(GET source STEM name)
    fa_programs(${name} c_tests "" SOURCES "${source}")
    foreach(target IN LISTS targets)
      if(needs_${name})
        target_link_libraries(${target} PRIVATE ${needs_${name}})
      endif()
      if(CMAKE_CROSSCOMPILING_EMULATOR AND name MATCHES "^(mxcsr|pools)$")
        # Minutes there for each instruction set, and no kernel is what they look at.
        target_compile_definitions(${target} PRIVATE BEST_ISA_ONLY)
      endif()
      if(target MATCHES "^isa_env[.]")
        # It tests what a wrong value does.
        fa_test(${target} ${target} FA_MAX_ISA=nonsense)
        continue()
      endif()
      fa_test(${target} ${target})
      if(target MATCHES "^determinism[.]")
        # It keeps the machine busy on purpose, and others may, too.
        math(EXPR longer "5 * ${seconds}")
        set_tests_properties(${target} PROPERTIES TIMEOUT ${longer})
      endif()
      if(target MATCHES "^forward[.]")
        if(FA_PROCESSOR STREQUAL "x86_64")
          fa_test(${target}.avx2 ${target} FA_MAX_ISA=avx2)
        endif()
        fa_test(${target}.scalar ${target} FA_MAX_ISA=scalar)
      endif()
    endforeach()
  endforeach()

  fa_not_emulated("minutes of CPU time there; Rust tests have the same on few cases" determinism forward types copies)
  fa_not_emulated("they count threads, and qemu has one of its own" threads affinity signals)
  fa_not_emulated("children of a process with threads, which qemu is; hundreds of them" fork allocations)
  fa_not_emulated("qemu does not hold processes to their limit of memory" memory starved quiet)
  fa_not_emulated("qemu's own memory grows" reload)
  fa_not_emulated("more pieces of memory than a process of qemu's can have" guard)
  fa_not_emulated("qemu fills tables for the 100 GiB that are only reserved" far)

  if(FA_LIBC STREQUAL "musl")
    message(STATUS "Left out: soak (musl has no mallinfo2)")
  elseif(NOT WIN32)
    # Runs as long as it is told to: scripts/soak.sh.
    fa_programs(soak c_tests "" SOURCES c_tests/soak/soak.c)
  endif()

  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set(header "${CMAKE_CURRENT_SOURCE_DIR}/include/flash_attention.h")
  set(check_symbols "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_symbols.py")
  # A build for development has code that no release has.
  if(NOT FA_FAST_BUILD)
    set(shared_kind)
    if(WIN32)
      set(shared_kind --dll)
    endif()
    set(static_kind --static)
    if(NOT FA_HIDES_NAMES)
      set(static_kind --plain-static)
    endif()
    add_test(NAME symbols.shared COMMAND ${check_symbols} ${shared_kind} "${FA_SHARED_LIB}" "${header}")
    add_test(NAME symbols.static COMMAND ${check_symbols} ${static_kind} "${FA_STATIC_LIB}" "${header}")
    set_tests_properties(symbols.shared symbols.static PROPERTIES
      ENVIRONMENT "AR=${CMAKE_AR};NM=${CMAKE_NM};OBJDUMP=${CMAKE_OBJDUMP};READELF=${CMAKE_READELF}")
  endif()
  if(NOT CMAKE_CROSSCOMPILING)
    # What is about sources; and what Python loads, or starts.
    add_test(NAME abi.changes COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/tests/python/abi/changes.py")
    add_test(NAME packaging COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/tests/python/packaging/run.py"
      "${CMAKE_COMMAND}")
    add_test(NAME docs COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_docs.py"
      "${CMAKE_CURRENT_SOURCE_DIR}")
    add_test(NAME abi.python COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_abi.py"
      "${FA_SHARED_LIB}" "${header}" "${CMAKE_CURRENT_SOURCE_DIR}/c_tests/abi.txt")
    add_test(NAME fixed.python COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/tests/python/fixed/run.py"
      "${FA_SHARED_LIB}")
    set(refusals)
    foreach(name IN ITEMS attention tensor quant list logit weight argument)
      list(APPEND refusals $<TARGET_FILE:${name}_refusals.shared>)
    endforeach()
    foreach(name IN ITEMS unaligned refusals quantize append fixed partitions)
      list(APPEND refusals $<TARGET_FILE:${name}.shared>)
    endforeach()
    add_test(NAME refusals.complete COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_refusals.py"
      "${header}" ${refusals})
  endif()

  set(newest_glibc)
  if(FA_OLD_GLIBC)
    set(newest_glibc 2.17)
  endif()
  set(environment_of_consumer
    "CMAKE=${CMAKE_COMMAND}"
    "CC=${CMAKE_C_COMPILER}"
    "CXX=${CMAKE_CXX_COMPILER}"
    "FA_BUILD=${CMAKE_CURRENT_BINARY_DIR}"
    "FA_CARGO_TARGET_DIR=${FA_CARGO_TARGET_DIR}"
    "FA_CARGO_LIBS=${FA_CARGO_LIBS}"
    "FA_VERSION=${PROJECT_VERSION}"
    "FA_NEWEST_GLIBC=${newest_glibc}"
    "FA_ABI=${FA_ABI}")
  set(ways find_package make cc)
  if(NOT FA_FAST_BUILD)
    # They have builds of their own, as a user has them.
    list(APPEND ways add_subdirectory fetch one_library install dist)
  endif()
  if(FA_HIDES_NAMES AND FA_LIBC STREQUAL "gnu")
    list(APPEND ways beside)
  endif()
  if(CMAKE_CROSSCOMPILING)
    # The archive is what leaves the machine that builds. Words, for a shell.
    set(ways dist)
    list(JOIN CMAKE_CROSSCOMPILING_EMULATOR " " emulator)
    list(APPEND environment_of_consumer "FA_EMULATOR=${emulator}" "FA_TOOLCHAIN=${CMAKE_TOOLCHAIN_FILE}"
      "FA_RUST_TARGET=${FA_TARGET}" "FA_CARGO_ARGS=${FA_CARGO_ARGS}" "RUSTC=${FA_RUSTC}"
      "FA_SYSTEM=${CMAKE_SYSTEM_NAME}" "FA_LIBC=${FA_LIBC}" "NM=${CMAKE_NM}" "READELF=${CMAKE_READELF}"
      "OBJDUMP=${CMAKE_OBJDUMP}")
    # Built once more, in places, with Rust's standard library.
    set(seconds_of_consumer 1800)
  else()
    list(APPEND environment_of_consumer "RUSTC=${rustc}")
    set(seconds_of_consumer 600)
  endif()
  foreach(way IN LISTS ways)
    add_test(NAME consumer.${way}
      COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/c_tests/consumer/run.sh" ${way}
              "${CMAKE_CURRENT_BINARY_DIR}/consumer/${way}")
    set_tests_properties(consumer.${way} PROPERTIES
      TIMEOUT ${seconds_of_consumer} RESOURCE_LOCK build_tree # that of the libraries, from which all install or build
      ENVIRONMENT "${environment_of_consumer}")
  endforeach()
endif()

if(FA_BUILD_EXAMPLES)
  # Adds the examples in one folder, and runs them: fa_examples(SOURCES_IN FOLDER PREFIX [option of
  # the compiler...]).
  function(fa_examples sources_in folder prefix)
    fa_sources(${sources_in})
    if(WIN32)
      # A function of C11.
      fa_left_out("MinGW lacks timespec_get" continuous_batching)
    endif()
    foreach(source IN LISTS sources)
      cmake_path(GET source STEM name)
      fa_programs(${name} ${folder} ${prefix} SOURCES "${source}" OPTIONS ${ARGN})
      foreach(target IN LISTS targets)
        add_test(NAME ${target} COMMAND ${target} "${CMAKE_CURRENT_SOURCE_DIR}/examples_c/data"
                 WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
        set_tests_properties(${target} PROPERTIES TIMEOUT ${seconds} ENVIRONMENT "${environment}")
      endforeach()
    endforeach()
  endfunction()
  fa_examples(examples_c examples_c example.)
  fa_examples(bindings/cpp/example examples_cpp example.cpp.)
  fa_examples(bindings/cpp/example examples_cpp/no_exceptions example.cpp.no_exceptions. -fno-exceptions)

  if(NOT WIN32)
    fa_sources(examples_c/minilm)
    fa_programs(minilm examples_c example. SOURCES ${sources} OPTIONS -Wshadow)
  endif()
endif()

include(ProcessorCount)
ProcessorCount(cores) # 0 = it could not find out
if(cores EQUAL 0)
  set(cores 1)
endif()
get_property(programs GLOBAL PROPERTY FA_PROGRAMS)
add_custom_target(check
  COMMAND "${CMAKE_CTEST_COMMAND}" --output-on-failure --no-tests=error --parallel ${cores} -C $<CONFIG>
  DEPENDS ${FA_LIBRARIES} ${programs}
  USES_TERMINAL VERBATIM)
