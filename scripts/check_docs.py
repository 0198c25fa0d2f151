#!/usr/bin/env python3
"""Checks the pages of the root and docs/*.md against the files that they speak of.

- Every block of code is in a file that the tests compile or run: the line before it names the file, as a link that
  ends the line ("from [name](path):"). A block of `diff` is lines of that file, in its order, with others left out;
  one of `text` is no code. Indented blocks are commands: their programs are scripts that are there.
- In the sections "Use it from ..." of README.md and docs/using.md a block is all of what lies between "README begin"
  and "README end" in its file, and each such file is there.
- Links lead to files, and to headings, that exist; so do the sources that drawings name. The plot of errors shows the
  numbers beside it. The index, docs/README.md, has every page of the folder.

    check_docs.py REPOSITORY
"""

import re
import sys
import textwrap
import xml.etree.ElementTree
from pathlib import Path

import plot_error_growth
import plot_sparse

# What `cargo test`, CTest and scripts/test_*.sh compile, run, or run with.
TESTED = ("bindings/", "c_tests/", "examples/", "examples_c/", "integrations/", "src/", "tests/")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"\]\(([^)#]+)\):\n\n$")
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:(?:    [^\n]+)\n)+")
REGION = re.compile(r"^[^\n]*README begin\n(.*?)^[^\n]*README end$", re.DOTALL | re.MULTILINE)
SECTION = re.compile(r"^## Use it from .*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
# Pages that have such sections.
USES = ("README.md", "docs/using.md")
HOSTS = ("../../security/advisories/new",)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def plain(code, language):
    """Code without what indents all of it; make is the one that needs its tabs."""
    return textwrap.dedent(code if language == "make" else code.expandtabs(4)).rstrip() + "\n"


def is_in(block, text, language):
    """Whether the lines of a block are lines of a text, one behind the other, indented or not."""
    shown = plain(block, language).splitlines()
    lines = plain(text, language).splitlines()
    for i in range(len(lines) - len(shown) + 1):
        if plain("\n".join(lines[i : i + len(shown)]), language).splitlines() == shown:
            return True
    return False


def are_in_order(block, text):
    """The same for a diff, which leaves out lines; what it takes away is not there."""
    lines = iter(line.strip() for line in text.splitlines())
    shown = [line for line in block.splitlines() if line.strip()]
    return all(line[0] in "+ " and any(line[1:].strip() == other for other in lines) for line in shown)


def anchor(heading):
    """What a heading is called in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def check_blocks(root, page, text, errors):
    """Blocks of code; returns how many there are."""
    count = 0
    for block in FENCED.finditer(text):
        language, code = block.groups()
        if language == "text":
            continue
        count += 1
        where = f"{page}:{text.count(chr(10), 0, block.start()) + 1}"
        named = NAMED.search(text[: block.start()])
        if not named:
            errors.append(f"{where}: the line before this block names no file")
            continue
        file = (root / page).parent.joinpath(named[1]).resolve()
        name = file.relative_to(root).as_posix()
        if not file.is_file() or not name.startswith(TESTED):
            errors.append(f"{where}: {name} is no file that tests compile or run")
        elif not (are_in_order(code, file.read_text()) if language == "diff" else is_in(code, file.read_text(), language)):
            errors.append(f"{where}: this block is not in {name}")
    if text.count("```") != 2 * len(FENCED.findall(text)):
        errors.append(f"{page}: a block does not begin or end at the beginning of a line")
    for block in INDENTED.finditer(FENCED.sub("", text)):
        for command in block[0].splitlines():
            count += 1
            program = root / command.split()[0]
            if not (program.is_file() and program.stat().st_mode & 0o100):
                errors.append(f"{page}: no such script: {command.strip()}")
    return count


def check_regions(root, errors):
    """The blocks that show how to use the library and the marked lines of files are the same."""
    shown = set()
    for page in USES:
        sections = SECTION.findall((root / page).read_text())
        if not sections:
            errors.append(f"{page} has no section 'Use it from ...'")
        for section in sections:
            if not FENCED.search(section):
                errors.append(f"{page}: no code in '{section.splitlines()[0]}'")
            for block in FENCED.finditer(section):
                if not (named := NAMED.search(section[: block.start()])):
                    continue
                file = (root / page).parent.joinpath(named[1]).resolve()
                shown.add(file)
                regions = [plain(region, block[1]) for region in REGION.findall(file.read_text())]
                if regions != [plain(block[2], block[1])]:
                    errors.append(f"{page}: the block of {named[1]} is not the marked lines of that file")
    for folder in map(root.joinpath, ("bindings", "c_tests/consumer", "examples", "examples_c")):
        for file in filter(Path.is_file, folder.rglob("*")):
            if REGION.search(file.read_text(errors="ignore")) and file.resolve() not in shown:
                errors.append(f"the marked lines of {file.relative_to(root)} are on none of the pages {USES}")


def check_links(root, page, text, errors):
    """Links within the repository; returns how many there are."""
    count = 0
    for link in LINK.finditer(FENCED.sub("", text)):
        path, _, heading = link[1].partition("#")
        # Pages of the host's own, beside those of the repository.
        if "://" in path or path in HOSTS:
            continue
        count += 1
        target = (root / page).parent / path if path else root / page
        if not target.exists():
            errors.append(f"{page}: {link[1]} leads nowhere")
        elif heading and heading not in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)):
            errors.append(f"{page}: {link[1]}: no such heading")
    return count


def check_index(root, errors):
    """A page that no index has is found by nobody."""
    index = root / "docs/README.md"
    listed = {(index.parent / link[1].partition("#")[0]).resolve() for link in LINK.finditer(index.read_text())}
    for page in sorted(index.parent.glob("*.md")):
        if page != index and page not in listed:
            errors.append(f"docs/README.md does not list {page.name}")


def check_drawing(root, drawing, errors):
    """Names of files in a drawing are ends of paths of sources; those with * have some."""
    for text in xml.etree.ElementTree.parse(root / drawing).iter("{http://www.w3.org/2000/svg}text"):
        for name in text.text.split() if text.get("class") == "file" else ():
            if not any(file.match(name) for file in (root / "src").rglob("*.rs")):
                errors.append(f"{drawing}: no such source: {name}")


def check_plots(root, errors):
    """The pictures of measured numbers show those that are there."""
    for plot, name in (plot_error_growth, "error-growth"), (plot_sparse, "sparse"):
        drawn = plot.draw(plot.read(root / f"docs/{name}.csv"))
        if drawn != (root / f"docs/{name}.svg").read_text():
            errors.append(f"docs/{name}.svg is not what scripts/{plot.__name__}.py makes of the CSV")


def main():
    root = Path(sys.argv[1]).resolve()
    errors, blocks, links = [], 0, 0
    pages = sorted(page.relative_to(root).as_posix() for folder in (".", "docs") for page in root.joinpath(folder).glob("*.md"))
    for page in pages:
        text = (root / page).read_text()
        blocks += check_blocks(root, page, text, errors)
        links += check_links(root, page, text, errors)
    for drawing in root.glob("docs/*.svg"):
        check_drawing(root, drawing.relative_to(root).as_posix(), errors)
    check_index(root, errors)
    check_plots(root, errors)
    check_regions(root, errors)
    if errors:
        sys.exit("\n".join(errors))
    print(f"{len(pages)} pages: {blocks} blocks of code are as in their files, {links} links lead somewhere")


if __name__ == "__main__":
    main()
