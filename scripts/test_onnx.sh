#!/usr/bin/env bash
# Runs the ONNX project's tests of the operator Attention through the shared library: the one given,
# else the one that CMake builds. The first run installs their package in build/venv-onnx.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lib=${1:-$root/build/cargo/release/libflash_attention.so}
venv=$root/build/venv-onnx
pins=$root/tests/python/onnx/requirements.txt

die() {
    echo "test_onnx: $1" >&2
    exit 1
}

[ -f "$lib" ] || die "$lib is missing; build it: cmake -S . -B build && cmake --build build"

. "$root/scripts/setup.sh" python3-venv
. "$root/scripts/venv.sh"
fa_venv "$venv" "$pins"

exec "$venv/bin/python" "$root/tests/python/onnx/run.py" "$(realpath "$lib")"
