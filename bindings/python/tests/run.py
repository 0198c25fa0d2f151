#!/usr/bin/env python3
"""Runs the tests of the package, as it is installed, or as it stands beside this folder.

    run.py [--library LIBRARY.so] DIRECTORY

DIRECTORY has the tensors of a real model (examples_c/data).
"""

import argparse
import os
import sys
import unittest
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--library", help="in place of the one in the package")
parser.add_argument("data")
arguments = parser.parse_args()
if arguments.library:
    # What is not installed has no library.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cpu_attention as fa  # noqa: E402

fa.load(arguments.library)
print(f"{fa.__file__}: {fa.version()} ({fa.isa()})")
os.environ["DATA"] = arguments.data
suite = unittest.defaultTestLoader.discover(str(Path(__file__).parent))
result = unittest.TextTestRunner(verbosity=1).run(suite)
skipped, bad = len(result.skipped), len(result.failures) + len(result.errors)
print(f"{result.testsRun - skipped - bad} passed, {bad} failed, {skipped} skipped")
sys.exit(bad > 0 or result.testsRun == 0)
