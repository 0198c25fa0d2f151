# Copyright: MIT OR Apache-2.0, as the project.
"""Spack, in a repository of one's own: `spack repo create REPO fa`, this file as
REPO/packages/flash_attention/package.py, then `spack dev-build flash-attention@main` in the tree."""

from spack.package import *


class FlashAttention(CMakePackage):
    """Exact attention on CPUs, with a C interface."""

    license("MIT OR Apache-2.0")

    # A release is named by `url` and a checksum here.
    version("main")

    variant("shared", default=True, description="The shared library instead of the static one")
    variant("mpi", default=False, description="libflash_attention_mpi, too", when="+shared")

    depends_on("c", type="build")
    depends_on("cmake@3.20:", type="build")
    depends_on("rust@1.95:", type="build")
    depends_on("mpi", when="+mpi")

    conflicts("platform=darwin", msg="Its CMake files know Linux, and Windows with MinGW.")

    def cmake_args(self):
        return [
            self.define_from_variant("BUILD_SHARED_LIBS", "shared"),
            self.define_from_variant("FA_BUILD_MPI", "mpi"),
            self.define("FA_BUILD_TESTS", False),
            self.define("FA_BUILD_EXAMPLES", False),
        ]
