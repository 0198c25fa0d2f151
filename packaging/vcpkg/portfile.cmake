# An overlay port that builds the tree it lies in: `vcpkg install flash-attention
# --overlay-ports=packaging/vcpkg`. A registry's port gets the source by vcpkg_from_github or
# vcpkg_download_distfile instead. Rust has to be there.

cmake_path(SET SOURCE_PATH NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../..")
# The library is the same, optimised one in builds of any kind.
set(VCPKG_BUILD_TYPE release)
# vcpkg hides what is in PATH from builds.
find_program(cargo cargo PATHS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin" REQUIRED)

# VCPKG_LIBRARY_LINKAGE is BUILD_SHARED_LIBS.
vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS "-DFA_CARGO=${cargo}" -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(PACKAGE_NAME flash_attention CONFIG_PATH lib/cmake/flash_attention)
vcpkg_fixup_pkgconfig()
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE-MIT" "${SOURCE_PATH}/LICENSE-APACHE")
file(WRITE "${CURRENT_PACKAGES_DIR}/share/${PORT}/usage"
  "find_package(flash_attention CONFIG REQUIRED)\ntarget_link_libraries(main PRIVATE flash_attention::flash_attention)\n")
