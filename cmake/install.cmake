# Headers, libraries, and what find_package and pkg-config need. Nothing installed knows its prefix,
# so the whole may be moved.

include(CMakePackageConfigHelpers)

set(generated "${CMAKE_CURRENT_BINARY_DIR}/install")
set(soname "libflash_attention.so.${FA_ABI}")
set(real_name "libflash_attention.so.${PROJECT_VERSION}")
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/flash_attention")

file(MAKE_DIRECTORY "${generated}")
file(CREATE_LINK "${real_name}" "${generated}/${soname}" SYMBOLIC)
file(CREATE_LINK "${soname}" "${generated}/libflash_attention.so" SYMBOLIC)

# Relative to the folder of the .pc file, which is all that pkg-config knows after a move.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig"
           OUTPUT_VARIABLE FA_PC_PREFIX)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}"
           OUTPUT_VARIABLE FA_PC_INCLUDE)
list(TRANSFORM FA_NATIVE_LIBS PREPEND "-l" OUTPUT_VARIABLE FA_PC_LIBS_PRIVATE)
list(JOIN FA_PC_LIBS_PRIVATE " " FA_PC_LIBS_PRIVATE)
configure_file(cmake/flash_attention.pc.in "${generated}/flash_attention.pc" @ONLY)
configure_package_config_file(cmake/flash_attention-config.cmake.in
  "${generated}/flash_attention-config.cmake"
  INSTALL_DESTINATION "${config_dir}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${generated}/flash_attention-config-version.cmake"
  COMPATIBILITY ${FA_COMPATIBILITY})

install(FILES include/flash_attention.h include/flash_attention.hpp DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES "${FA_SHARED_LIB}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" RENAME "${real_name}")
install(FILES "${generated}/${soname}" "${generated}/libflash_attention.so" "${FA_STATIC_LIB}"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${generated}/flash_attention.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(FILES "${generated}/flash_attention-config.cmake"
              "${generated}/flash_attention-config-version.cmake"
        DESTINATION "${config_dir}")

# The name is a usual one for a project to have.
if(FA_TOP_LEVEL)
  add_custom_target(dist
    COMMAND "${CMAKE_COMMAND}" -E env "CMAKE=${CMAKE_COMMAND}" "CC=${CMAKE_C_COMPILER}" "CARGO=${FA_CARGO}"
            "FA_CARGO_TARGET_DIR=${FA_CARGO_TARGET_DIR}" "FA_VERSION=${PROJECT_VERSION}"
            "${CMAKE_CURRENT_SOURCE_DIR}/scripts/dist.sh" "${CMAKE_CURRENT_BINARY_DIR}/dist"
    DEPENDS flash_attention_cargo_shared flash_attention_cargo_static
    USES_TERMINAL VERBATIM)
endif()
