#!/usr/bin/env python3
"""Prints the notes of a release: the section of CHANGELOG.md that has its version. Fails, and says why, if files disagree
about the version, or the section has no date.

    release_notes.py [VERSION]     without VERSION: whether all files say the same
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files that say which version this is, and how.
SAYING = {
    "Cargo.toml": r'^version = "(.*)"',
    "benches/Cargo.toml": r'^version = "(.*)"',
    "fixed/Cargo.toml": r'^version = "(.*)"',
    "tools/fa/Cargo.toml": r'^version = "(.*)"',
    "bindings/python/cpu_attention/_version.py": r'^__version__ = "(.*)"',
    "bindings/zig/build.zig.zon": r'^ *\.version = "(.*)"',
}
HEADING = re.compile(r"^## (\S+) - (.*)$", re.MULTILINE)


def main():
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    found = {}
    for name, pattern in SAYING.items():
        match = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        found[name] = match[1] if match else "no version"
    if len(set(found.values())) > 1:
        sys.exit("Versions differ:\n" + "\n".join(f"  {version}  {name}" for name, version in found.items()))
    version = found["Cargo.toml"]
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = list(HEADING.finditer(text))
    if not headings or headings[0][1] != version:
        sys.exit(f"CHANGELOG.md does not begin with {version}")
    if len(sys.argv) == 1:
        print(f"{len(found)} files and the changelog say {version} ({headings[0][2]})")
        return
    wanted = sys.argv[1].removeprefix("v")
    for heading, end in zip(headings, [*(h.start() for h in headings[1:]), len(text)], strict=True):
        if heading[1] == wanted:
            if not re.fullmatch(r"\d{4}-\d\d-\d\d", heading[2]):
                sys.exit(f"{wanted} has no date in CHANGELOG.md, but '{heading[2]}'")
            print(text[heading.end() : end].strip())
            return
    sys.exit(f"CHANGELOG.md has no section {wanted}")


if __name__ == "__main__":
    main()
