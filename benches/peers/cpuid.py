"""Rewrites libraries for cpuid.c, in place: cpuid.py LIBRARY...

Each instruction cpuid becomes ud2, which is as long. The two bytes of cpuid occur within other
instructions, too. So what stands before them is decoded, from several starts: code of x86 soon falls
into step whatever the start is.
"""

import os
import sys

import capstone
from elftools.elf.elffile import ELFFile

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
STARTS = range(24, 56)


def is_instruction(decoder, code, at):
    """Whether a quarter of the starts come to an instruction that begins here."""
    hits = 0
    for back in STARTS:
        begin = max(0, at - back)
        hits += any(a == at and name == "cpuid" for a, _, name, _ in decoder.disasm_lite(code[begin : at + 2], begin))
    return 4 * hits >= len(STARTS)


def places(path):
    """Offsets of the instruction in the file."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    with open(path, "rb") as f:
        for section in ELFFile(f).iter_sections():
            # SHF_EXECINSTR
            if not section["sh_flags"] & 4 or section["sh_type"] != "SHT_PROGBITS":
                continue
            code, at = section.data(), -1
            while (at := code.find(CPUID, at + 1)) >= 0:
                if is_instruction(decoder, code, at):
                    yield section["sh_offset"] + at


def main():
    for path in sys.argv[1:]:
        found = list(places(path))
        if not found:
            continue
        # A file of its own: the one that stands here may be shared with another environment.
        with open(path, "rb") as f:
            data = bytearray(f.read())
        for at in found:
            data[at : at + 2] = UD2
        with open(path + ".new", "wb") as f:
            f.write(data)
        os.chmod(path + ".new", os.stat(path).st_mode)
        os.replace(path + ".new", path)
        print(f"{os.path.basename(path)}: {len(found)}")


if __name__ == "__main__":
    main()
