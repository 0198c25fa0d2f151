"""Conan 2: `conan create packaging/conan [-o "&:shared=True"]`. Rust has to be there, and CMake."""

import os
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class FlashAttention(ConanFile):
    name = "flash_attention"
    description = "Exact attention on CPUs"
    license = "MIT OR Apache-2.0"
    topics = ("attention", "transformer", "simd", "inference")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False]}
    default_options = {"shared": False}

    @property
    def _root(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        manifest = load(self, os.path.join(self._root, "Cargo.toml"))
        self.version = re.search(r'^version = "(.+)"', manifest, re.MULTILINE).group(1)

    def export_sources(self):
        # Cargo wants all files that the manifest names.
        for part in ("Cargo.*", "CMakeLists.txt", "LICENSE-*", "README.md", "build.rs", "benches/*", "cmake/*",
                     "examples/*", "fixed/*", "include/*", "src/*", "tests/*", "tools/*"):
            copy(self, part, self._root, self.export_sources_folder, excludes="*/target/*")

    def configure(self):
        # The library is one for C.
        self.settings.rm_safe("compiler.libcxx")
        self.settings.rm_safe("compiler.cppstd")

    def package_id(self):
        # The library is the same, optimised one for programs of any kind.
        self.info.settings.rm_safe("build_type")

    def layout(self):
        cmake_layout(self)

    def generate(self):
        # It sets BUILD_SHARED_LIBS as the option says.
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["FA_BUILD_TESTS"] = "OFF"
        toolchain.cache_variables["FA_BUILD_EXAMPLES"] = "OFF"
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE-*", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.libs = ["flash_attention"]
        self.cpp_info.set_property("cmake_file_name", "flash_attention")
        self.cpp_info.set_property("cmake_target_name", "flash_attention::flash_attention")
        self.cpp_info.set_property("pkg_config_name", "flash_attention")
        if self.settings.os == "Linux" and not self.options.shared:
            self.cpp_info.system_libs = ["gcc_s", "util", "rt", "pthread", "m", "dl"]
