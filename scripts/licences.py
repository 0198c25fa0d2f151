#!/usr/bin/env python3
"""Copies the licences of what the libraries contain besides this project: crates, and Rust's standard library.

    licences.py CARGO REPOSITORY FOLDER [TARGET]

The compiler is the one beside CARGO, or the one that the environment variable RUSTC names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LICENCE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def run(*command, cwd=None):
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates(cargo, target, root):
    """The packages that are linked: not what only builds or tests."""
    answer = json.loads(run(cargo, "metadata", "--locked", "--format-version=1", "--filter-platform", target, cwd=root))
    packages = {package["id"]: package for package in answer["packages"]}
    nodes = {node["id"]: node for node in answer["resolve"]["nodes"]}
    linked, left = set(), [answer["resolve"]["root"]]
    while left:
        for dep in nodes[left.pop()]["deps"]:
            if dep["pkg"] not in linked and any(kind["kind"] is None for kind in dep["dep_kinds"]):
                linked.add(dep["pkg"])
                left.append(dep["pkg"])
    return sorted((packages[i] for i in linked), key=lambda p: (p["name"], p["version"]))


def copy_crate(package, folder):
    files = [f for f in Path(package["manifest_path"]).parent.iterdir() if f.is_file() and LICENCE.match(f.name)]
    if not files:
        sys.exit(f"{package['name']} {package['version']} brings no file with its licence")
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)


def copy_rust(rustc, folder):
    docs = Path(run(rustc, "--print", "sysroot").strip()) / "share/doc/rust"
    page = docs / "COPYRIGHT-library.html"
    debian = sorted(docs.parent.glob("rustc*/copyright"))
    folder.mkdir()
    if not page.is_file() and debian:
        # Debian's list of the whole compiler, with all texts.
        shutil.copyfile(debian[0], folder / "copyright")
        return
    if not page.is_file():
        sys.exit(f"{page} is missing: a release needs a Rust that was installed with rustup, which brings it")
    shutil.copyfile(page, folder / page.name)
    # The page has the texts of most; the others are named only.
    named = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"<b>License:</b> ([^<]+)", page.read_text(encoding="utf-8")))))
    for file in (docs / "licenses").glob("*.txt"):
        if file.stem in named:
            shutil.copyfile(file, folder / file.name)


def main():
    cargo, root, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rustc = os.environ.get("RUSTC") or Path(cargo).with_name("rustc")
    target = sys.argv[4] if len(sys.argv) > 4 else re.search(r"^host: (.+)$", run(rustc, "-vV"), re.MULTILINE).group(1)
    out.mkdir()
    lines = ["Besides flash_attention itself the libraries contain code of", ""]
    for package in crates(cargo, target, root):
        name = f"{package['name']}-{package['version']}"
        copy_crate(package, out / name)
        lines.append(f"{name}: {package['license']}, {package['repository']}")
    copy_rust(rustc, out / "rust")
    lines.append(f"rust: the standard library of {run(rustc, '-V').strip()}, https://www.rust-lang.org")
    lines += ["", "The folders called like them have their licences and notices.", ""]
    (out / "README.txt").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
