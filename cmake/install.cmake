# Headers, libraries, and what find_package and pkg-config need. Nothing installed knows its prefix,
# so the whole may be moved.

include(CMakePackageConfigHelpers)

set(generated "${CMAKE_CURRENT_BINARY_DIR}/install")
set(soname "libflash_attention.so.${FA_ABI}")
set(real_name "libflash_attention.so.${PROJECT_VERSION}")
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/flash_attention")

file(MAKE_DIRECTORY "${generated}")

# Relative to the folder of the .pc file, which is all that pkg-config knows after a move.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig"
           OUTPUT_VARIABLE FA_PC_PREFIX)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}"
           OUTPUT_VARIABLE FA_PC_INCLUDE)
list(TRANSFORM FA_NATIVE_LIBS PREPEND "-l" OUTPUT_VARIABLE FA_PC_LIBS_PRIVATE)
list(JOIN FA_PC_LIBS_PRIVATE " " FA_PC_LIBS_PRIVATE)
# Where there is no shared library, -lflash_attention is the static one.
set(FA_PC_LIBS "")
if(NOT FA_BUILD_SHARED)
  set(FA_PC_LIBS " ${FA_PC_LIBS_PRIVATE}")
endif()
configure_file(cmake/flash_attention.pc.in "${generated}/flash_attention.pc" @ONLY)
configure_package_config_file(cmake/flash_attention-config.cmake.in
  "${generated}/flash_attention-config.cmake"
  INSTALL_DESTINATION "${config_dir}"
  PATH_VARS CMAKE_INSTALL_BINDIR CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${generated}/flash_attention-config-version.cmake"
  COMPATIBILITY ${FA_COMPATIBILITY})

install(FILES include/flash_attention.h include/flash_attention.hpp DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
if(FA_BUILD_SHARED AND WIN32)
  install(FILES "${FA_SHARED_LIB}" DESTINATION "${CMAKE_INSTALL_BINDIR}")
  install(FILES "${FA_IMPORT_LIB}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
elseif(FA_BUILD_SHARED)
  file(CREATE_LINK "${real_name}" "${generated}/${soname}" SYMBOLIC)
  file(CREATE_LINK "${soname}" "${generated}/libflash_attention.so" SYMBOLIC)
  install(FILES "${FA_SHARED_LIB}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" RENAME "${real_name}")
  install(FILES "${generated}/${soname}" "${generated}/libflash_attention.so" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
if(FA_BUILD_STATIC)
  install(FILES "${FA_STATIC_LIB}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(FILES "${generated}/flash_attention.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(FILES "${generated}/flash_attention-config.cmake"
              "${generated}/flash_attention-config-version.cmake"
        DESTINATION "${config_dir}")

# The name is a usual one for a project to have. What is for development is not released.
if(FA_TOP_LEVEL AND NOT FA_FAST_BUILD)
  string(TOLOWER "${CMAKE_SYSTEM_NAME}-${FA_PROCESSOR}" system)
  if(FA_LIBC STREQUAL "musl")
    string(APPEND system "-musl")
  endif()
  set(environment)
  if(FA_RUSTC)
    list(APPEND environment "RUSTC=${FA_RUSTC}")
  endif()
  # The shared library for older systems, from the static one: not with compilers that want to be
  # told more than their name, nor for processors whose glibc scripts/old_glibc.py does not know.
  set(FA_OLD_GLIBC OFF)
  if(FA_LIBC STREQUAL "gnu" AND FA_PROCESSOR MATCHES "^(x86_64|aarch64)$" AND FA_BUILD_SHARED AND FA_BUILD_STATIC
     AND FA_HIDES_NAMES AND NOT CMAKE_C_COMPILER_TARGET AND NOT CMAKE_SYSROOT)
    set(FA_OLD_GLIBC ON)
  endif()
  set(split OFF)
  if(FA_BUILD_SHARED AND CMAKE_OBJCOPY AND NOT WIN32)
    set(split ON)
  endif()
  add_custom_target(dist
    COMMAND "${CMAKE_COMMAND}" -E env "CMAKE=${CMAKE_COMMAND}" "CARGO=${FA_CARGO}" ${environment}
            "FA_TARGET=${FA_TARGET}" "FA_VERSION=${PROJECT_VERSION}" "FA_OLD_GLIBC=${FA_OLD_GLIBC}" "FA_SPLIT=${split}"
            "CC=${CMAKE_C_COMPILER}" "AR=${CMAKE_AR}" "OBJCOPY=${CMAKE_OBJCOPY}" "READELF=${CMAKE_READELF}"
            "${CMAKE_CURRENT_SOURCE_DIR}/scripts/dist.sh" "${CMAKE_CURRENT_BINARY_DIR}/dist" "${system}"
            "-DCMAKE_TOOLCHAIN_FILE=${CMAKE_TOOLCHAIN_FILE}" "-DCMAKE_C_COMPILER=${CMAKE_C_COMPILER}"
            "-DFA_CARGO_TARGET_DIR=${FA_CARGO_TARGET_DIR}" "-DFA_RUST_TARGET=${FA_TARGET}" "-DFA_RUSTC=${FA_RUSTC}"
            "-DFA_CARGO_ARGS=${FA_CARGO_ARGS}" "-DFA_UNWINDER=${FA_UNWINDER}" "-DFA_BUILD_SHARED=${FA_BUILD_SHARED}" "-DFA_BUILD_STATIC=${FA_BUILD_STATIC}"
    DEPENDS ${FA_LIBRARIES}
    USES_TERMINAL VERBATIM)
endif()
