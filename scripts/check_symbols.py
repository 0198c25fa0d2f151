#!/usr/bin/env python3
"""Checks a built library against the header, its size, and that its hot loops were compiled as intended.

    check_symbols.py LIB.so HEADER
    check_symbols.py --static LIB.a HEADER        one object without other global names
    check_symbols.py --plain-static LIB.a HEADER  cargo's, where there are no tools to hide names
    check_symbols.py --stripped LIB.so HEADER     what can be seen without names: that of a wheel
    check_symbols.py --dll LIB.dll HEADER

An outlined SIMD intrinsic (a symbol from core_arch) or a call to memcpy in a hot loop gives right
results slowly, so no other test notices it. The environment variables NM, OBJDUMP and READELF name
the tools, as libraries for other processors need.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from c_header import of_library

CARGO_TOML = Path(__file__).resolve().parent.parent / "Cargo.toml"
# How the standard library finds out which instruction sets there are; it is no loop.
STD_DETECT = "core_arch::x86::xsave::"
# Bytes of code in the shared library, at most. Kernels are compiled for each instruction set and
# type, so code grows by multiplication, and so does the time of a build.
MAX_TEXT = 2_970_000


def run(tool, *arguments):
    command = (os.environ.get(tool.upper()) or tool, *arguments)
    # The standard library's objects make nm complain where its plug-ins are older than Rust.
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed; it comes with binutils.")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def declared(header):
    return set(re.findall(r"\b(fa_\w+)\s*\(", of_library(Path(header).read_text())))


def symbols(*nm_arguments):
    """(type, name) of each line `address type name`."""
    for line in run("nm", *nm_arguments).splitlines():
        match = re.match(r"[0-9a-f]* *([A-Za-z]) (.+)", line)
        if match:
            yield match.groups()


def outlined(names):
    return [f"An intrinsic was not inlined: {name}." for name in sorted(set(names))
            if "core_arch" in name and STD_DETECT not in name]


def soname_from_version():
    major, minor = re.search(r'^version = "(\d+)\.(\d+)\.', CARGO_TOML.read_text(), re.MULTILINE).groups()
    return f"libflash_attention.so.0.{minor}" if major == "0" else f"libflash_attention.so.{major}"


def exported_by_dll(lib):
    table = run("objdump", "-p", lib).partition("[Ordinal/Name Pointer] Table")[2].partition("\n\n")[0]
    return set(re.findall(r"\] (?:\+base\[ *\d+\] +[0-9a-f]+ )?(\w+)$", table, re.MULTILINE))


def exports(lib, header, exported=None):
    if exported is None:
        exported = {name.split("@")[0] for _, name in symbols("-D", "--defined-only", lib)}
    for name in sorted(declared(header) - exported):
        yield f"{name} is declared in the header, but the library does not export it."
    for name in sorted(exported - declared(header)):
        yield f"{name} is exported by the library, but the header does not declare it."


def dynamic_section(lib):
    dynamic = run("readelf", "--dynamic", "--wide", lib)
    wanted = soname_from_version()
    if f"[{wanted}]" not in "".join(line for line in dynamic.splitlines() if "(SONAME)" in line):
        yield f"The soname is not {wanted}."
    if "NODELETE" not in dynamic:
        yield "The library is not marked NODELETE; dlclose would unmap code that threads still run."


def hot_loops(lib, is_simd):
    """What the entry points compiled per instruction set refer to. Not only calls are looked at:
    the address of memcpy may be loaded once and called through a register."""
    function, found, bad = None, set(), set()
    for line in run("objdump", "-d", "-C", "--no-show-raw-insn", lib).splitlines():
        start = re.match(r"0*([0-9a-f]+) <(.*)>:$", line)
        if start:
            address, name = start.groups()
            wanted = "flash_attention::simd::" in name and "compiled_for" in name
            # The same name belongs to several instances.
            function = f"{name} (at 0x{address})" if wanted else None
            if function:
                found.add(function)
        elif function:
            target = re.search(r"<(memcpy|memmove|memset)[@>]|<[^\t]*(core_arch)", line)
            if target:
                bad.add((function, target.group(1) or "an intrinsic that was not inlined"))
    if not found and is_simd:
        yield "No function compiled for an instruction set was found, so nothing was checked."
    for function, target in sorted(bad):
        yield f"{function} calls {target}."


def code_size(lib):
    """Bytes of the section .text."""
    sections = run("readelf", "--section-headers", "--wide", lib)
    size = re.search(r" \.text +PROGBITS +[0-9a-f]+ [0-9a-f]+ ([0-9a-f]+)", sections)
    if not size:
        yield "The library has no section .text."
    elif int(size.group(1), 16) > MAX_TEXT:
        yield f".text has {int(size.group(1), 16):,} bytes; the budget is {MAX_TEXT:,}."


def check_shared(lib, header):
    yield from code_size(lib)
    yield from exports(lib, header)
    yield from dynamic_section(lib)
    names = [name for _, name in symbols("-C", lib)]
    if not any("flash_attention::" in name for name in names):
        yield "The symbol table is stripped, so inlining cannot be checked."
        return
    yield from outlined(names)
    # Where there are plain kernels alone, nothing is compiled for an instruction set.
    yield from hot_loops(lib, any(re.search("flash_attention::simd::(avx|neon)", name) for name in names))


def check_stripped(lib, header):
    yield from exports(lib, header)
    yield from dynamic_section(lib)


def check_dll(lib, header):
    yield from exports(lib, header, exported_by_dll(lib))


def check_plain_static(lib, header):
    names = [(kind, name) for kind, name in symbols("-C", "--defined-only", lib)]
    if not any("flash_attention::" in name for _, name in names):
        yield "The symbol table is stripped, so inlining cannot be checked."
    for name in sorted(declared(header) - {name for kind, name in names if kind == "T"}):
        yield f"{name} is declared in the header, but the library does not define it."
    yield from outlined(name for _, name in names if "flash_attention" in name)


def check_static(lib, header):
    yield from check_plain_static(lib, header)
    # What another archive may define, too, weakly or not.
    for name in sorted({name for _, name in symbols("--defined-only", "--extern-only", lib)} - declared(header)):
        yield f"{name} is a global name of the static library, but the header does not declare it."
    members = run("ar", "t", lib).split()
    if members != ["flash_attention.o"]:
        yield f"The static library has {len(members)} members, not one."
    sections = run("readelf", "--section-headers", "--wide", lib)
    # Without the first, programs get stacks that may be executed; without the second no panic is
    # caught; the third would have linkers take parts of other archives for those of this one.
    for section, wanted in (".note.GNU-stack", True), (".eh_frame", True), ("GROUP", False), (".llvmbc", False):
        if bool(re.search(rf"\s{re.escape(section)}\s", sections)) != wanted:
            yield f"The static library {'lacks' if wanted else 'has'} {section}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--static", action="store_true", help="LIB is an archive")
    kind.add_argument("--plain-static", action="store_true", help="LIB is an archive as cargo makes it")
    kind.add_argument("--stripped", action="store_true", help="LIB has no names but those it exports")
    kind.add_argument("--dll", action="store_true", help="LIB is for Windows")
    parser.add_argument("lib", metavar="LIB")
    parser.add_argument("header", metavar="HEADER")
    arguments = parser.parse_args()
    chosen = [(arguments.static, check_static), (arguments.plain_static, check_plain_static),
              (arguments.stripped, check_stripped), (arguments.dll, check_dll)]
    check = next((check for is_chosen, check in chosen if is_chosen), check_shared)
    failures = list(check(arguments.lib, arguments.header))
    if not declared(arguments.header):
        failures.append("The header declares no function.")
    for failure in failures:
        print(failure)
    if not failures:
        print(f"{len(declared(arguments.header))} functions, all as declared.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
