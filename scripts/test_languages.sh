#!/usr/bin/env bash
# Runs the examples in other languages on the tensors of a real model, against their exact outputs: all, or those
# named (python). Installs what they need; uses the libraries that CMake builds.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
[ $# -gt 0 ] || set -- python
. scripts/venv.sh

build=$root/build
data=$root/examples_c/data
shared=$build/cargo/release/libflash_attention.so
static=$build/cargo/release-static/libflash_attention.a

die() {
    echo "test_languages: $1" >&2
    exit 1
}

for lib in "$shared" "$static"; do
    [ -f "$lib" ] || die "$lib is missing; build it: cmake -S . -B build && cmake --build build"
done

passed=0
failed=0

# test_case NAME COMMAND...
test_case() {
    local name=$1 log
    shift
    if log=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "example.$name passed"
    else
        failed=$((failed + 1))
        printf '%s\nexample.%s FAILED\n' "$log" "$name"
    fi
}

run_python() {
    # The packages are those of the tests of ONNX's operator, which is compared with.
    fa_venv "$build/venv-onnx" tests/onnx/requirements.txt
    local python=$build/venv-onnx/bin/python
    test_case python.real_model "$python" examples_python/real_model.py "$shared" "$data"
    test_case python.arrays "$python" examples_python/test_flash_attention.py "$shared" "$data"
}

for language in "$@"; do
    case $language in
    python) "run_$language" ;;
    *) die "no such language: $language" ;;
    esac
done
echo "languages: $passed passed, $failed failed"
[ "$failed" = 0 ]
