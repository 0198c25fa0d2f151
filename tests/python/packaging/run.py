"""The recipes in packaging/: their versions, their syntax, and what vcpkg's port asks CMake to do.

    run.py CMAKE
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGING = ROOT / "packaging"
VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
OPTIONS = set(re.findall(r"^(?:option|set)\((\w+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)) | {"BUILD_SHARED_LIBS", "FA_CARGO"}
# What vcpkg itself would define: each prints what it was called with.
STUBS = """
set(CURRENT_PACKAGES_DIR "{folder}")
set(PORT flash-attention)
function(say)
  message(STATUS "${{ARGN}}")
endfunction()
foreach(name IN ITEMS cmake_configure cmake_install cmake_config_fixup fixup_pkgconfig install_copyright)
  cmake_language(EVAL CODE "
    function(vcpkg_${{name}})
      say(${{name}} \\${{ARGN}})
    endfunction()")
endforeach()
include("{port}")
"""


def conan_and_spack():
    for file in sorted(PACKAGING.rglob("*.py")):
        compile(file.read_text(), str(file), "exec")


def vcpkg(cmake):
    manifest = json.loads((PACKAGING / "vcpkg/vcpkg.json").read_text())
    assert manifest["version"] == VERSION, f"vcpkg.json says {manifest['version']}, Cargo.toml {VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "stubs.cmake")
        script.write_text(STUBS.format(folder=folder, port=PACKAGING / "vcpkg/portfile.cmake"))
        said = subprocess.run([cmake, "-P", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    calls = [line.split(";") for line in re.findall(r"^-- (.*)$", said, re.MULTILINE)]
    names = [call[0] for call in calls]
    assert names == "cmake_configure cmake_install cmake_config_fixup fixup_pkgconfig install_copyright".split(), names
    assert Path(calls[0][calls[0].index("SOURCE_PATH") + 1]).resolve() == ROOT, calls[0]
    for licence in calls[4][2:]:
        assert Path(licence).is_file(), licence


def options():
    """What recipes set is what CMakeLists.txt reads."""
    for file in PACKAGING.rglob("*"):
        if file.suffix in (".py", ".cmake", ".yaml", ".json", ".txt"):
            found = set(re.findall(r"\b(?:FA_[A-Z_]+|BUILD_SHARED_LIBS)\b", file.read_text()))
            assert found <= OPTIONS, f"{file}: {found - OPTIONS} is no option"


def main():
    conan_and_spack()
    vcpkg(sys.argv[1])
    options()
    print("packaging: 3 passed, 0 failed")


if __name__ == "__main__":
    main()
