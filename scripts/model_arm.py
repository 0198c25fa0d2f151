#!/usr/bin/env python3
"""What a model of Arm's cores says of the hot loops of prefill: multiply instructions a cycle.

    model_arm.py LIB.a [--tools FOLDER] [--suffix SUFFIX] [--check]

LIB.a is the static library, built for aarch64. FOLDER has LLVM's llvm-objdump and llvm-mca, of version 19 or later; else they
are looked for in the path. Their names end with SUFFIX (-22: those of Debian's package llvm-22). With --check, the exit code says whether each loop reaches its
share of what the multiply pipes allow, without a call and without a vector on the stack.

It is a model, not a measurement: llvm-mca knows of ports, latencies and the width of the front end. It knows nothing of
caches, of the beginning and the end of a loop, of branches that are mispredicted and of the clock. What it says is an upper
bound, but for Neoverse N1, whose model issues fewer instructions a cycle than the core.
"""

import argparse
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

# Cores, and the vectors that their multiply pipes take in a cycle.
LIMITS = {"neoverse-n1": 2, "neoverse-v1": 4, "neoverse-v2": 4}
# The multiplication of each compute type, by lane or of pairs of rows, the cores that have it, and
# how many are in a turn of the loops of the largest register tiles: 8 by 2 vectors by four
# elements, and 12 by 2; of pairs, 6 by 4.
PRODUCTS = {
    "f32": (r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[[0-3]\]", LIMITS, {"scores": 64, "outputs": 24}),
    "bf16": (r"bfmmla\s", ("neoverse-v1", "neoverse-v2"), {"scores": 24, "outputs": 24}),
    # By FEAT_I8MM, and by FEAT_DotProd alone.
    "i8mm": (r"usmmla\s", ("neoverse-v1", "neoverse-v2"), {"scores": 24, "outputs": 24}),
    "dotprod": (r"[su]dot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[[0-3]\]", LIMITS, {"scores": 64, "outputs": 24}),
}
# Shares of the limit that --check demands: what there is. The goals are 0.85, 0.95 and 0.90;
# docs/kernel-log.md has what is missing of them.
LEAST = {"neoverse-n1": 0.83, "neoverse-v1": 0.95, "neoverse-v2": 0.84}
# Of products of pairs of rows, twice as many: the model of V2 charges a load of two vectors thrice.
LEAST_OF_PAIRS = {"neoverse-v1": 0.95, "neoverse-v2": 0.65}
ITERATIONS = 200

Loop = namedtuple("Loop", "compute kind products body")


def run(*command, text=None):
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not there; Debian has it in the package llvm-22.")
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()[:2000]}")
    return done.stdout


def functions(listing):
    """The instructions of each function, as (address, words)."""
    instructions = []
    for line in listing.splitlines():
        if re.match(r"[0-9a-f]+ <.*>:$", line):
            yield instructions
            instructions = []
        elif match := re.match(r"\s*([0-9a-f]+):\s+(\S.*)", line):
            instructions.append((int(match[1], 16), match[2].replace("\t", " ").strip()))
    yield instructions


def innermost(instructions):
    """The bodies of loops that have no loop within them."""
    index = {address: i for i, (address, _) in enumerate(instructions)}
    ranges = []
    for i, (address, words) in enumerate(instructions):
        match = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?0x([0-9a-f]+)", words)
        if match and int(match[1], 16) <= address and int(match[1], 16) in index:
            ranges.append((index[int(match[1], 16)], i))
    for first, last in ranges:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in ranges):
            yield [words for _, words in instructions[first:last + 1]]


def loops(listing):
    """The loops of whole register tiles, each body once."""
    found = {}
    for instructions in functions(listing):
        for body in innermost(instructions):
            for compute, (pattern, _, tiles) in PRODUCTS.items():
                products = sum(re.match(pattern, words) is not None for words in body)
                # Values are prefetched, keys are not.
                kind = "outputs" if any(words.startswith("prfm") for words in body) else "scores"
                if products > 0 and products % tiles[kind] == 0:
                    # Loops that differ in nothing but registers and addresses count once.
                    names = tuple(re.split(r"\s", words)[0] for words in body)
                    found.setdefault((compute, kind, names), Loop(compute, kind, products, body))
    return sorted(found.values())


def cycles(mca, cpu, body):
    # Where a branch leads does not matter.
    text = "\n".join(re.sub(r"0x[0-9a-f]+ <.*>$", "0", words) for words in body)
    out = run(mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+bf16,+i8mm,+dotprod", f"-iterations={ITERATIONS}",
              "--instruction-info=0", "--resource-pressure=0", text=text)
    return int(re.search(r"Total Cycles:\s+(\d+)", out)[1]) / ITERATIONS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--suffix", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", action="store_true", help="the instructions, too")
    given = parser.parse_args()
    def tool(name):
        return str(given.tools / (name + given.suffix)) if given.tools else name + given.suffix

    listing = run(tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--no-leading-headers", str(given.library))
    wrong, seen = [], set()
    print(f"{'loop':<16}{'products':>9}{'others':>8}", *(f"{cpu:>18}" for cpu in LIMITS))
    for loop in loops(listing):
        name = f"{loop.compute} {loop.kind}"
        seen.add(name)
        if any(words.startswith(("bl ", "blr ")) for words in loop.body):
            wrong.append(f"{name}: a call")
        if any(re.match(r"(ldr|ldp|str|stp)\s+q\d+.*\[sp", words) for words in loop.body):
            wrong.append(f"{name}: a vector on the stack")
        columns = []
        for cpu, limit in LIMITS.items():
            if cpu not in PRODUCTS[loop.compute][1]:
                columns.append("-")
                continue
            rate = loop.products / cycles(tool("llvm-mca"), cpu, loop.body)
            columns.append(f"{rate:.2f} ({100 * rate / limit:.0f} %)")
            least = LEAST_OF_PAIRS if "mmla" in PRODUCTS[loop.compute][0] else LEAST
            if rate < least[cpu] * limit:
                wrong.append(f"{name} on {cpu}: {rate:.2f} multiply instructions a cycle of {limit}")
        print(f"{name:<16}{loop.products:>9}{len(loop.body) - loop.products:>8}", *(f"{x:>18}" for x in columns))
        if given.print:
            print("\n".join("    " + words for words in loop.body))
    wrong += [f"{compute} {kind}: no such loop" for compute in PRODUCTS for kind in ("scores", "outputs")
              if f"{compute} {kind}" not in seen]
    if given.check and wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
