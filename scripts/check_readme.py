#!/usr/bin/env python3
"""Checks that the code in the README's section on other languages is what the tests run: each block must be the
lines between "README begin" and "README end" in the file that the line before it names.

    check_readme.py REPOSITORY
"""

import re
import sys
import textwrap
from pathlib import Path

SECTION = "## Use it from "
BLOCK = re.compile(r"\]\(([^)]+)\):\n\n```\w+\n(.*?)```\n", re.DOTALL)
REGION = re.compile(r"^[^\n]*README begin\n(.*?)^[^\n]*README end$", re.DOTALL | re.MULTILINE)


def main():
    root = Path(sys.argv[1])
    _, found, section = (root / "README.md").read_text().partition(SECTION)
    section = section.partition("\n## ")[0]
    blocks = BLOCK.findall(section)
    if not found or not blocks or section.count("```") != 2 * len(blocks):
        sys.exit(f"the section '{SECTION}...' is missing, or has a block whose file is not named before it")
    for path, shown in blocks:
        regions = REGION.findall((root / path).read_text())
        if [shown] != [textwrap.dedent(r.expandtabs(4)).rstrip() + "\n" for r in regions]:
            sys.exit(f"the README's block of {path} is not the marked lines of that file")
    print(f"{len(blocks)} blocks are as in their files")


if __name__ == "__main__":
    main()
