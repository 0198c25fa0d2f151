#!/usr/bin/env bash
# Fuzzes the targets (all of them unless some are named) for so many seconds each, 60 unless said
# otherwise, two at a time where there are two cores. What each of them asserts: docs/fuzzing.md.
#
#   scripts/fuzz.sh [seconds] [target...] [-- option of libFuzzer...]

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# libFuzzer is C++.
. scripts/setup.sh g++

seconds=60
targets=()
if [ $# -gt 0 ] && [ "$1" != -- ]; then seconds=$1 && shift; fi
while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1") && shift; done
[ $# -eq 0 ] || shift
[ ${#targets[@]} -gt 0 ] || targets=(describe attention quantize append merge fixed partitions)

# What cargo-fuzz would build, without cargo-fuzz, which takes longer to install than a short run
# lasts. Coverage and sanitizers are unstable options of the compiler, which the variable makes a
# stable one take: one compiler for everything, and no nightly.
export RUSTC_BOOTSTRAP=1
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET FA_MAX_ISA
triple=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for option in inline-8bit-counters pc-table trace-compares stack-depth; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$option"
done
flags="$coverage -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing -Cdebug-assertions"
# Distributions may leave the runtime out that rustup's compilers bring. Guard pages are there
# without it.
if ls "$(rustc --print target-libdir)"/librustc*_rt.asan.a >/dev/null 2>&1; then
    flags+=" -Zsanitizer=address"
else
    echo "no AddressSanitizer in this compiler: guard pages and oracles only"
fi
# The sanitizers' options are for the targets, not for build scripts: hence --target.
RUSTFLAGS=$flags cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$triple" \
    "${targets[@]/#/--bin=}" || fa_die "the fuzz targets were not built."
bin=fuzz/target/$triple/release

# fuzz TARGET OPTION...: prints what a run came to.
fuzz() {
    local target=$1 log=build/fuzz/$1.log executed speed found
    shift
    # New inputs go to the first folder; the second one is committed.
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target" "fuzz/artifacts/$target" build/fuzz
    if ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_odr_violation=0 "$bin/$target" \
        -artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" -max_len=2048 -timeout=20 \
        -rss_limit_mb=4096 -print_final_stats=1 "$@" "fuzz/corpus/$target" "fuzz/seeds/$target" </dev/null >"$log" 2>&1; then
        executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
        found=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
        # A target that does nothing finds nothing.
        [ "${executed:-0}" -gt 0 ] && echo "fuzz.$target passed: $executed executions, $speed a second, $found" && return
    fi
    tail -n 100 "$log"
    echo "fuzz.$target FAILED: $log"
    return 1
}

passed=0 failed=0
count() {
    if wait "$1"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
waiting=()
for target in "${targets[@]}"; do
    fuzz "$target" "$@" &
    waiting+=($!)
    if [ ${#waiting[@]} -ge "$(nproc)" ] || [ ${#waiting[@]} -ge 2 ]; then
        count "${waiting[0]}"
        waiting=("${waiting[@]:1}")
    fi
done
for one in "${waiting[@]}"; do count "$one"; done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" = 0 ]
