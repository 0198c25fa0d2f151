#!/usr/bin/env python3
"""Links the shared library for older systems: from the static one, with the oldest functions of the C library that there are.

    old_glibc.py LIB.a LIB.so OUT.so

LIB.a is the static library as CMake makes it, one object; LIB.so the shared one, as cargo has linked it, whose name and
options OUT.so gets. The environment variables CC, OBJCOPY, AR and READELF name the tools of the platform.

A C library keeps the versions of a function that programs of older systems were linked with, and a linker takes the newest,
unless the object names another one. So the object is made to name them. Nothing of an older system is needed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The first glibc for 64-bit Arm, and that of the wheels (manylinux2014).
OLDEST = (2, 17)
# Functions that no old version has, since they were macros; what they were, by the processor.
WRAPPERS = """
struct stat64;
int __xstat64(int version, const char *path, struct stat64 *to);
int __fxstat64(int version, int fd, struct stat64 *to);
#ifdef __x86_64__
enum { VERSION = 1 };
#else
enum { VERSION = 0 };
#endif
__attribute__((visibility("hidden"))) int stat64(const char *path, struct stat64 *to) { return __xstat64(VERSION, path, to); }
__attribute__((visibility("hidden"))) int fstat64(int fd, struct stat64 *to) { return __fxstat64(VERSION, fd, to); }
"""
WRAPPED = {"stat64": "__xstat64", "fstat64": "__fxstat64"}
# What became parts of libc.so.6 later, where the old versions of functions are looked for.
FORMERLY_APART = ("libpthread.so.0", "libdl.so.2")


def run(tool, *arguments):
    command = [os.environ.get(tool.upper()) or tool, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def number(version):
    return tuple(map(int, version.split(".")))


def symbols(lib):
    """(name, version or None, whether it is defined, whether it is weak) of each dynamic symbol."""
    for line in run("readelf", "--dyn-syms", "--wide", lib).splitlines():
        words = line.split()
        if len(words) >= 8 and words[0].endswith(":") and words[0][:-1].isdigit():
            match = re.match(r"(\w+)@{1,2}GLIBC_([0-9.]+)$", words[7])
            yield match.group(1) if match else words[7], match and match.group(2), words[6] != "UND", words[4] == "WEAK"


def versions_in(libs):
    """The versions of each function that is defined."""
    versions = {}
    for lib in libs:
        path = run("cc", f"-print-file-name={lib}").strip()
        for name, version, is_defined, _ in symbols(path):
            if is_defined and version:
                versions.setdefault(name, set()).add(version)
    return versions


def old_names(shared, versions):
    """What the object has to call the functions that the shared library takes from newer systems."""

    def old(name):
        known = sorted((number(v), v) for v in versions.get(name, ()) if number(v) <= OLDEST)
        return f"{name}@GLIBC_{known[-1][1]}" if known else None

    for name, version, is_defined, is_weak in symbols(shared):
        if is_defined or version is None or number(version) <= OLDEST:
            continue
        if name in WRAPPED:
            yield WRAPPED[name], old(WRAPPED[name])
        elif old(name):
            yield name, old(name)
        elif is_weak:
            # Rust does without it. No library defines this.
            yield name, f"fa_without_{name}"
        else:
            sys.exit(f"There is no {name} in glibc {'.'.join(map(str, OLDEST))}.")


def main():
    static, shared, out = map(Path, sys.argv[1:])
    dynamic = run("readelf", "--dynamic", "--wide", shared)
    soname = re.search(r"\(SONAME\).*\[(.+)\]", dynamic).group(1)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    renamed = dict(old_names(shared, versions_in([lib for lib in needed if not lib.startswith("libgcc")])))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run("ar", "x", "--output", work, static)
        (work / "wrappers.c").write_text(WRAPPERS)
        run("cc", "-O2", "-fPIC", "-fno-builtin", "-c", work / "wrappers.c", "-o", work / "wrappers.o")
        (work / "names").write_text("".join(f"{name} {old}\n" for name, old in renamed.items()))
        for file in ("flash_attention.o", "wrappers.o"):
            run("objcopy", f"--redefine-syms={work / 'names'}", work / file)
        (work / "exports").write_text("{ global: fa_*; local: *; };\n")
        apart = [run("cc", f"-print-file-name={lib}").strip() for lib in FORMERLY_APART]
        options = "--gc-sections --eh-frame-hdr -znoexecstack -zrelro -znow -znodelete -znodynamic-undefined-weak".split()
        run("cc", "-shared", "-o", out, work / "flash_attention.o", work / "wrappers.o", *(f"-Wl,{o}" for o in options),
            f"-Wl,--version-script={work / 'exports'}", f"-Wl,-soname,{soname}",
            "-Wl,--no-as-needed", *apart, "-Wl,--as-needed", "-lm", "-lgcc_s")
    late = sorted({f"{name}@{version}" for name, version, _, _ in symbols(out) if version and number(version) > OLDEST})
    if late:
        sys.exit(f"{out} still needs {', '.join(late)}.")


if __name__ == "__main__":
    main()
