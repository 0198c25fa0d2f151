#!/usr/bin/env python3
"""Checks deny.toml on what Cargo.lock says: licences, sources, versions. The part of cargo-deny that needs no network.

    policy.py [FOLDER]     of the project, with a Cargo.toml, a Cargo.lock and a deny.toml
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

# All that is in the libraries besides this project and Rust's standard library. What is added has to be added here.
LINKED = set()


def satisfied(expression, allowed):
    """Whether an SPDX expression can be met with these licences. Old manifests write a slash for OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    words = []
    for token in tokens:
        # An exception belongs to the licence before it.
        if words and words[-1].endswith(" WITH"):
            words[-1] += " " + token
        elif token == "WITH":
            words[-1] += " WITH"
        else:
            words.append(token)
    logic = {"OR": "or", "AND": "and", "(": "(", ")": ")"}
    # Nothing but True, False, or, and, brackets.
    return eval(" ".join(logic.get(word) or str(word in allowed) for word in words))


def linked(metadata):
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, left = set(), [metadata["resolve"]["root"]]
    while left:
        for dep in nodes[left.pop()]["deps"]:
            if dep["pkg"] not in found and any(kind["kind"] is None for kind in dep["dep_kinds"]):
                found.add(dep["pkg"])
                left.append(dep["pkg"])
    return found


def problems(root):
    policy = tomllib.loads((root / "deny.toml").read_text(encoding="utf-8"))
    lock = tomllib.loads((root / "Cargo.lock").read_text(encoding="utf-8"))
    command = ["cargo", "metadata", "--locked", "--all-features", "--format-version=1"]
    metadata = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}

    allowed = set(policy["licenses"]["allow"])
    more = {exception["crate"]: set(exception["allow"]) for exception in policy["licenses"]["exceptions"]}
    for package in packages.values():
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if licence is None or not satisfied(licence, allowed | more.get(package["name"], set())):
            yield f"{name}: its licence is {licence}"
        if any(dep["req"] == "*" and dep["source"] for dep in package["dependencies"]) and package["source"] is None:
            yield f"{name}: a dependency of any version"

    versions = defaultdict(set)
    skipped = {tuple(skip["crate"].split("@")) for skip in policy["bans"]["skip"]}
    for package in lock["package"]:
        name, version = package["name"], package["version"]
        if not any(name == skip and (version + ".").startswith(beginning + ".") for skip, beginning in skipped):
            versions[name].add(version)
        source = package.get("source")
        if source is None:
            if name != "flash_attention":
                yield f"{name} {version}: from a folder"
        elif not source.startswith("registry+") or not source.endswith("/crates.io-index"):
            yield f"{name} {version}: from {source}"
        elif not re.fullmatch("[0-9a-f]{64}", package.get("checksum", "")):
            yield f"{name} {version}: without a checksum"
    for name, several in versions.items():
        if len(several) > 1:
            yield f"{name}: {' and '.join(sorted(several))}"

    names = {packages[i]["name"] for i in linked(metadata)}
    if names != LINKED:
        yield f"the libraries contain {', '.join(sorted(names ^ LINKED))}, or no longer do"


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    found = list(problems(root))
    for problem in found:
        print(f"policy: {problem}")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
