#!/usr/bin/env python3
"""Checks that the header, as a foreign function interface reads it, and a built library agree with the
committed layout of the public structures, which C (c_tests/abi.c) and Rust (tests/abi.rs) are held to, too.

    check_abi.py LIB.so HEADER TABLE
    check_abi.py --write HEADER TABLE     after a structure has grown
"""

import argparse
import ctypes
import re
import sys
from pathlib import Path

SCALARS = {
    "bool": ctypes.c_bool, "float": ctypes.c_float, "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64,
}
COMMENT = "# What C, Rust and Python must agree on (LP64): structure, field (- = all of it), offset, size in bytes."


def structures(header):
    """A ctypes structure for each one that the header defines."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, flags=re.DOTALL):
        fields = []
        for declaration in filter(None, (part.strip() for part in body.split(";"))):
            match = re.fullmatch(r"(?:const )?(?:struct )?(\w+) (\*?)(\w+)(?:\[(\d+)\])?", declaration)
            function = re.fullmatch(r"\w+ \(\*(\w+)\)\(.*\)", declaration, flags=re.DOTALL)
            if function:
                fields.append((function.group(1), ctypes.c_void_p))
                continue
            if not match:
                sys.exit(f"{name}: cannot read {declaration!r}.")
            base, pointer, field, count = match.groups()
            kind = ctypes.c_void_p if pointer else SCALARS.get(base) or found[base]
            fields.append((field, kind * int(count) if count else kind))
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def layout(structure):
    name = structure.__name__
    yield f"{name} - 0 {ctypes.sizeof(structure)}"
    for field, _ in structure._fields_:
        at = getattr(structure, field)
        yield f"{name} {field} {at.offset} {at.size}"


def differences(ours, table):
    lines = [line for line in table.splitlines() if not line.startswith("#")]
    for line in ours:
        if line not in lines:
            yield f"The table lacks: {line}"
    for line in lines:
        if line not in ours:
            yield f"The table has, but the header does not: {line}"
    if not ours or sorted(ours) == sorted(lines) and ours != lines:
        yield "The table has another order than the header, or there is nothing in either."


def library(lib, found):
    """One call that fills a structure, read field by field."""
    a = found["fa_attention"]()
    ctypes.memset(ctypes.byref(a), 0xA5, ctypes.sizeof(a))
    init = ctypes.CDLL(lib).fa_attention_init
    init.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if init(ctypes.byref(a), ctypes.sizeof(a)) != 0:
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
    parser.add_argument("lib", nargs="?", metavar="LIB")
    parser.add_argument("header", type=Path, metavar="HEADER")
    parser.add_argument("table", type=Path, metavar="TABLE")
    arguments = parser.parse_args()
    found = structures(arguments.header.read_text())
    ours = [line for structure in found.values() for line in layout(structure)]
    if arguments.write:
        arguments.table.write_text("\n".join([COMMENT, *ours, ""]))
        return 0
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        print("The table is of machines with 64 bits.")
        return 0
    failures = list(differences(ours, arguments.table.read_text()))
    if arguments.lib:
        failures += library(arguments.lib, found)
    for failure in failures:
        print(failure)
    if not failures:
        print(f"{len(found)} structures, {len(ours) - len(found)} fields, all as in the table.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
