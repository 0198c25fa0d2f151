#!/usr/bin/env bash
# The library within ggml (integrations/ggml), against ggml's own code and against float64: all
# types, head sizes and masks of the operator, and programs that load, unload, fork and have several
# contexts. Builds ggml in build/ggml, of the sources in FA_GGML_SOURCE, or else of the crate that
# benches/peers compares with; and the library, where CMake has not.
#
#   test_ggml.sh [SHARE]      one in SHARE cases of the grid

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake g++

source=${FA_GGML_SOURCE:-$(scripts/ggml_source.sh)}
build=${FA_GGML_BUILD:-$root/build/ggml}
mkdir -p "$build"
# What attention has nothing to do with is left out: it takes a minute to compile.
cmake -S integrations/ggml -B "$build" -DFA_GGML_SOURCE="$source" -DFA_GGML_TESTS=ON -DGGML_CPU_REPACK=OFF -DGGML_LLAMAFILE=OFF \
    ${FA_GGML_CMAKE:-} >"$build/cmake.log" 2>&1 \
    && cmake --build "$build" --parallel 2 >"$build/build.log" 2>&1 || {
    tail -n 40 "$build/cmake.log" "$build/build.log"
    echo "ggml: 0 passed, 1 failed (it does not build)"
    exit 1
}

passed=0
failed=0
run() {
    if timeout 900 "$@" >"$build/test.log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $*"
        tail -n 30 "$build/test.log"
    fi
}

hook=$build/libggml-flash-attention.so
for test in threads positions fallback unload contexts forks off variable api layout memory; do
    run "$build/hosts" "$hook" "$test"
done
run "$build/hosts" "$build/libggml-flash-attention-other.so" version
run "$build/grid" "$hook" "${1:-1}"
cat "$build/test.log"
echo "ggml: $passed passed, $failed failed"
[ "$failed" = 0 ]
