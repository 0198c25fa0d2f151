#!/usr/bin/env bash
# Builds the shared library and the main example, which computes the attention of a real model
# through the C interface; the exit code is the example's.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake

cmake -S . -B build
cmake --build build --target example.real_model.shared
exec build/examples_c/real_model.shared examples_c/data
