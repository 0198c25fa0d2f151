#!/usr/bin/env python3
"""Runs PyTorch's own tests of attention on the CPU as it is installed and with the library in the place of its kernels:
what passes with PyTorch alone must pass with the library.

own_tests.py [--library LIBRARY.so] [--every N] [--only TEXT] FOLDER [MODULE...]

FOLDER is `test` of PyTorch's source (the package of Python has none of its tests), MODULE at first test_transformers
and nn.test_multihead_attention, TEXT what the names of tests contain. A test of more than 100 variants runs only each
Nth of them (8). A difference of versions makes tests fail or be missing; they do so both ways.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ["test_transformers", "nn.test_multihead_attention"]
MANY = 100


class Outcomes(unittest.TestResult):
    """What became of each test, by its name."""

    def __init__(self):
        super().__init__()
        self.by_name = {}

    def addSuccess(self, test):
        self.by_name[test.id()] = "passed"

    def addSkip(self, test, reason):
        self.by_name[test.id()] = "skipped"

    def addFailure(self, test, error):
        self.by_name[test.id()] = f"failed: {str(error[1])[-300:]}"

    addError = addFailure

    def addExpectedFailure(self, test, error):
        self.addSuccess(test)


def each(suite):
    for x in suite:
        if isinstance(x, unittest.TestSuite):
            yield from each(x)
        else:
            yield x


def chosen(tests, every, only):
    """Those of the CPU; of a test that has very many variants some."""
    tests = [x for x in tests if ("CPU" in type(x).__name__ or "cpu" in x.id()) and only in x.id()]
    kinds = [x.id().split("_batch_size")[0] for x in tests]
    many = {kind for kind, n in Counter(kinds).items() if n > MANY}
    seen = Counter()
    for test, kind in zip(tests, kinds, strict=True):
        seen[kind] += 1
        if kind not in many or seen[kind] % every == 0:
            yield test


def run(a):
    """In a process of its own: prints the outcomes."""
    if a.library:
        sys.path.insert(0, str(HERE.parents[1]))
    import cpu_attention as fa

    fa.load(a.library)
    import cpu_attention.torch as fat

    if not fat.extension:
        sys.exit("the extension could not be built")
    sys.path.insert(0, a.folder)
    os.chdir(a.folder)
    sys.argv = ["own_tests"]
    if a.run == "ours":
        fat.enable(sdpa=True)
    outcomes = Outcomes()
    for module in a.modules or MODULES:
        suite = unittest.defaultTestLoader.loadTestsFromModule(import_module(module))
        for test in chosen(each(suite), a.every, a.only):
            test.run(outcomes)
    Path(a.into).write_text(json.dumps(outcomes.by_name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="in place of the one in the package")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--run", choices=["theirs", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    parser.add_argument("folder")
    parser.add_argument("modules", nargs="*")
    a = parser.parse_args()
    if a.run:
        return run(a)
    environment = {**os.environ, "PYTORCH_TESTING_DEVICE_ONLY_FOR": "cpu"}
    found = {}
    for way in "theirs", "ours":
        with tempfile.NamedTemporaryFile() as into:
            command = [sys.executable, "-W", "ignore", __file__, "--run", way, "--into", into.name, *sys.argv[1:]]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            found[way] = json.loads(Path(into.name).read_text())
        print(way + ":", dict(Counter(x.split(":")[0] for x in found[way].values())))
    worse = [x for x, outcome in found["theirs"].items() if outcome == "passed" and found["ours"].get(x) != "passed"]
    for name in worse:
        print(f"only PyTorch alone passes {name}: {found['ours'].get(name)}")
    for name, outcome in found["theirs"].items():
        if outcome.startswith("failed"):
            print(f"{name} without us {outcome}")
    passed = sum(x == "passed" for x in found["ours"].values())
    print(f"{passed} passed, {len(worse)} failed")
    sys.exit(bool(worse) or passed == 0)


if __name__ == "__main__":
    main()
