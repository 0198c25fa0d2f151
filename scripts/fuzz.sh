#!/usr/bin/env bash
# Fuzzes the targets (all of them unless some are named) for so many seconds each, 60 unless said otherwise. What each
# of them asserts: docs/fuzzing.md.
#
#   scripts/fuzz.sh [seconds] [target...]

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# libFuzzer is C++.
. scripts/setup.sh g++

seconds=${1:-60}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(describe attention quantize merge)

# One that Rust 1.95 builds.
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --version 0.13.2 \
    || fa_die "cargo-fuzz could not be installed."

# Coverage and sanitizers are unstable options of the compiler, which this makes a stable one take: one compiler for
# everything, and no nightly.
export RUSTC_BOOTSTRAP=1
# Distributions may leave the runtime out that rustup's compilers bring. Guard pages are there without it.
sanitizer=address
ls "$(rustc --print target-libdir)"/librustc*_rt.asan.a >/dev/null 2>&1 || sanitizer=none
[ "$sanitizer" = address ] || echo "no AddressSanitizer in this compiler: guard pages and oracles only"

passed=0 failed=0
for target in "${targets[@]}"; do
    echo "== $target, $seconds s =="
    # New inputs go to the first folder; the second one is committed.
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    if cargo fuzz run --sanitizer "$sanitizer" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 </dev/null; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" = 0 ]
