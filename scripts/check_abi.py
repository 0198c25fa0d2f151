#!/usr/bin/env python3
"""Checks that the header and a built library have the committed binary interface: constants, functions and their
types, and the layout of structures, which C (c_tests/api/abi.c) and Rust (tests/abi.rs) are held to, too.

    check_abi.py LIB.so HEADER TABLE
    check_abi.py --write HEADER TABLE     after an addition; or after a break, with the version raised

docs/abi.md says what is an addition. Anything else is a break, which --write refuses to note down before
FA_ABI_VERSION and the soname (by the version in Cargo.toml) are others.
"""

import argparse
import ctypes
import re
import sys
from pathlib import Path

from c_header import Header
from check_symbols import soname_from_version

COMMENT = """\
# The binary interface. Structures are what C, Rust and Python must agree on (LP64): structure,
# field (- = all of it), offset, size in bytes. Written by scripts/check_abi.py; docs/abi.md is the
# policy."""


def lines_of(header, soname):
    """The table."""
    constants = header.enumerators | header.defines
    yield f"version {constants.pop('FA_ABI_VERSION')} {soname}"
    for name, value in constants.items():
        yield f"constant {name} {value}"
    for name, words in header.functions.items():
        yield f"function {name} {words}"
    for name, fields in header.fields.items():
        for field, words in fields.items():
            yield f"field {name}.{field} {words}"
    for name, structure in header.structures.items():
        yield f"{name} - 0 {ctypes.sizeof(structure)}"
        for field, _ in structure._fields_:
            at = getattr(structure, field)
            yield f"{name} {field} {at.offset} {at.size}"


def committed(table):
    return [line for line in table.read_text().splitlines() if not line.startswith("#")]


def differences(ours, theirs):
    for line in ours:
        if line not in theirs:
            yield f"The table lacks: {line}"
    for line in theirs:
        if line not in ours:
            yield f"The table has, but the header does not: {line}"
    if not ours or sorted(ours) == sorted(theirs) and ours != theirs:
        yield "The table has another order than the header, or there is nothing in either."


def split(lines):
    """What is named, with what is said of it, and the numbers of structures and fields."""
    named, layout = {}, {}
    for line in lines[1:]:
        kind, name, rest = line.split(" ", 2)
        if kind in ("constant", "function", "field"):
            named[kind, name] = rest
        else:
            layout[kind, name] = tuple(map(int, rest.split()))
    return named, layout


def given_a_meaning(named, layout, named_now, layout_now):
    """Reserved fields, which had to be 0, that have a name now, with that: of the same type, at the same place."""
    for structure, field in layout:
        if field.startswith("reserved") and (structure, field) not in layout_now:
            for other, name in layout_now:
                same_type = named.get(("field", f"{structure}.{field}")) == named_now.get(("field", f"{other}.{name}"))
                same_place = (other, layout_now[other, name]) == (structure, layout[structure, field])
                if same_type and same_place and (other, name) not in layout:
                    yield (structure, field), name


def breaks(before, now):
    """What a program that was compiled before would trip over."""
    (named, layout), (named_now, layout_now) = split(before), split(now)
    for (structure, field), name in list(given_a_meaning(named, layout, named_now, layout_now)):
        named["field", f"{structure}.{name}"] = named.pop(("field", f"{structure}.{field}"))
        layout[structure, name] = layout.pop((structure, field))
    for (kind, name), words in named.items():
        if named_now.get((kind, name)) != words:
            yield f"{kind} {name}: {words} has become {named_now.get((kind, name), 'nothing')}"
    for (structure, field), place in layout.items():
        place_now = layout_now.get((structure, field))
        # The caller says how large its own is.
        grows = field == "-" and (structure, "struct_size") in layout
        if place_now != place and not (grows and place_now and place_now > place):
            yield f"{structure} {field}: {place} has become {place_now}"
    for (structure, field), (offset, _) in layout_now.items():
        whole = layout.get((structure, "-"))
        # Also what was padding, since programs left anything there.
        if whole and (structure, field) not in layout and offset < whole[1]:
            yield f"{structure} {field} lies where older programs have nothing"


def write(ours, table):
    """The reasons not to."""
    before = committed(table) if table.exists() else []
    if before:
        (_, version, soname), (_, version_now, soname_now) = before[0].split(), ours[0].split()
        raised = int(version_now) > int(version) and soname_now != soname
        failures = [] if raised else list(breaks(before, ours))
        if failures:
            return [*failures, f"That breaks programs: it needs a FA_ABI_VERSION above {version}, and another soname."]
    table.write_text("\n".join([COMMENT, *ours, ""]))
    return []


def library(path, header):
    """Its number, and one call that fills a structure, read field by field."""
    lib = ctypes.CDLL(path)
    if str(lib.fa_abi_version()) != header.defines["FA_ABI_VERSION"]:
        yield f"fa_abi_version says {lib.fa_abi_version()}, the header {header.defines['FA_ABI_VERSION']}."
    a = header.structures["fa_attention"]()
    ctypes.memset(ctypes.byref(a), 0xA5, ctypes.sizeof(a))
    lib.fa_attention_init.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if lib.fa_attention_init(ctypes.byref(a), ctypes.sizeof(a)) != 0:
        yield "fa_attention_init refuses the size of fa_attention."
        return
    wanted = {"struct_size": ctypes.sizeof(a), "q_pos": -2**63, "window_left": -1, "window_right": -1}
    for field, kind in a._fields_:
        value = getattr(a, field)
        if isinstance(value, (ctypes.Structure, ctypes.Array)):
            value = 0 if bytes(value) == bytes(ctypes.sizeof(kind)) else bytes(value)
        if (value or 0) != wanted.get(field, 0):
            yield f"fa_attention_init sets {field} to {value!r}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table instead")
    parser.add_argument("--soname", default=soname_from_version(), help="else that of the version in Cargo.toml")
    parser.add_argument("lib", nargs="?", metavar="LIB")
    parser.add_argument("header", type=Path, metavar="HEADER")
    parser.add_argument("table", type=Path, metavar="TABLE")
    arguments = parser.parse_args()
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        print("The table is of machines with 64 bits.")
        return 0
    header = Header(arguments.header.read_text())
    ours = list(lines_of(header, arguments.soname))
    if arguments.write:
        failures = write(ours, arguments.table)
    else:
        failures = list(differences(ours, committed(arguments.table)))
        if arguments.lib:
            failures += library(arguments.lib, header)
        if failures:
            failures.append("If that is on purpose: docs/abi.md.")
    for failure in failures:
        print(failure)
    if not failures:
        counts = [sum(re.match(kind, line) is not None for line in ours) for kind in ("function", "fa_.* -", "field")]
        print("{} functions, {} structures, {} fields, all as in the table.".format(*counts))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
