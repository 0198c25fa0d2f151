#!/usr/bin/env python3
"""Checks that the code in the README's sections "Use it from ..." is what the tests run: each block must be the
lines between "README begin" and "README end" in the file that the line before it names.

    check_readme.py REPOSITORY
"""

import re
import sys
import textwrap
from pathlib import Path

SECTIONS = re.compile(r"^## Use it from .*?(?=^## )", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"\]\(([^)]+)\):\n\n```(\w+)\n(.*?)```\n", re.DOTALL)
REGION = re.compile(r"^[^\n]*README begin\n(.*?)^[^\n]*README end$", re.DOTALL | re.MULTILINE)


def marked(file, language):
    """What the README has to show of a file; make is the one that needs its tabs."""
    regions = REGION.findall(file.read_text())
    return [textwrap.dedent(r if language == "make" else r.expandtabs(4)).rstrip() + "\n" for r in regions]


def main():
    root = Path(sys.argv[1])
    sections = SECTIONS.findall((root / "README.md").read_text())
    if not sections:
        sys.exit("the README has no section 'Use it from ...'")
    count = 0
    for section in sections:
        blocks = BLOCK.findall(section)
        if not blocks or section.count("```") != 2 * len(blocks):
            sys.exit(f"'{section.splitlines()[0]}' lacks blocks, or has one whose file is not named before it")
        for path, language, shown in blocks:
            if [shown] != marked(root / path, language):
                sys.exit(f"the README's block of {path} is not the marked lines of that file")
        count += len(blocks)
    for folder in [root / "c_tests/consumer", *root.glob("examples_*")]:
        for file in filter(Path.is_file, folder.rglob("*")):
            name = file.relative_to(root).as_posix()
            marked_lines = REGION.search(file.read_text(errors="ignore"))
            if marked_lines and not any(f"]({name}):\n" in section for section in sections):
                sys.exit(f"the marked lines of {name} are not in the README")
    print(f"{count} blocks are as in their files")


if __name__ == "__main__":
    main()
