#!/usr/bin/env bash
# Tests the library as it is built for other platforms: qemu, or this machine's kernel, runs the
# programs.
#
#   test_platforms.sh [PLATFORM...]      aarch64, i686, armv7, musl, windows, wasm; wasm32,
#                                        windows-msvc, windows-arm64, macos, macos-x86_64, ios,
#                                        android; all: all of these; default: aarch64
#
# aarch64 runs on three of qemu's processors: one that has all instructions that kernels ask for,
# and two that lack some, so that the choice of kernels is tested, too. i686, armv7 and wasm have
# the Rust tests alone, musl the C tests; windows runs under wine, and wasm, WebAssembly with its
# vectors, in wasmtime. For the others the library is checked by the compiler, and neither linked
# nor run. Tests take few of their cases (FA_TEST_SHARE, FA_TEST_THIN): an emulator is slow. What
# is left out, and why, is printed. The last line is `platforms: N passed, N failed`, in tests.
#
# With --quick before the names, aarch64 has only some tests that reach every kernel, those of the
# choice, and C tests with the shared library that take seconds: 7 minutes of CPU time, compiling
# included.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
quick=no
if [ "${1:-}" = --quick ]; then
    quick=yes
    shift
fi
[ $# -gt 0 ] || set -- aarch64
. scripts/setup.sh cmake
. scripts/platform.sh
[ "$1" != all ] || set -- "${FA_PLATFORMS[@]}" "${FA_CHECKED[@]}"
export CARGO_INCREMENTAL=0 FA_TEST_SHARE=${FA_TEST_SHARE:-61} FA_TEST_THIN=${FA_TEST_THIN:-61}
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS FA_MAX_ISA

# Those that reach every kernel, and those of what differs between processors: sizes of numbers,
# memory, threads.
kernel_tests=(general types decode adversarial oracle blocks integers scales weights quantize basics numerics)
other_tests=(isas abi parts rust_api memory caches safety panic_hook)
# Those that look at the choice of a kernel.
choice_tests=(isas basics abi)
# Minutes long each in an emulator: rows of 20,000 keys and more.
long_tests=(one_head_is_divided very_long_sequences caches_larger threads_are_woken)
# What else a platform leaves out.
without=()

passed=0
failed=0

# add WORD LOG: what stands before the word in the lines that runners end with.
add() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

# one NAME COMMAND...: a command that counts for one test.
one() {
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "platforms.$name passed"
    else
        failed=$((failed + 1))
        echo "platforms.$name FAILED"
    fi
}

# Builds the Rust tests; arguments for cargo: others than these.
build_rust() {
    local test targets=("$@")
    if [ $# = 0 ]; then
        for test in "${kernel_tests[@]}" "${other_tests[@]}"; do targets+=(--test "$test"); done
    fi
    cargo test --no-run --locked --target-dir "$folder/cargo" --target "$FA_TARGET" "${FA_BUILD_STD[@]}" "${targets[@]}" \
        --message-format=json-render-diagnostics >"$folder/rust.json"
}

# run_rust NAME TEST...: runs test programs that are built.
run_rust() {
    local name=$1 test program log=$folder/rust.log skip=()
    shift
    for test in "${long_tests[@]}" "${without[@]}"; do skip+=(--skip "$test"); done
    for test in "$@"; do
        program=$(sed -n 's/.*"executable":"\([^"]*\/'"$test"'-[^"\/]*\)".*/\1/p' "$folder/rust.json")
        if [ "$test" = isas ]; then
            # It says what the others are about.
            one "$name.isas" "${FA_RUN[@]}" "$program"
            continue
        fi
        if "${FA_RUN[@]}" "$program" "${skip[@]}" >"$log" 2>&1; then
            echo "platforms.$name.$test: $(grep '^test result' "$log")"
        else
            cat "$log"
            echo "platforms.$name.$test FAILED"
            # One that crashed has no line of results.
            grep -q '^test result: ' "$log" || failed=$((failed + 1))
        fi
        passed=$((passed + $(add passed "$log")))
        failed=$((failed + $(add failed "$log")))
    done
}

# Builds the libraries and the C tests, or what arguments of `cmake --build` say, optimised a
# little: gcc 12 for aarch64 fails with more in its vectoriser, on a loop in
# c_tests/api/attention.c.
build_c() {
    cmake -S . -B "$folder/cmake" -DCMAKE_TOOLCHAIN_FILE="$FA_TOOLCHAIN" -DFA_RUSTC="${RUSTC:-}" \
        -DFA_CARGO_ARGS="${FA_BUILD_STD[*]}" -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
        && cmake --build "$folder/cmake" --parallel "$(nproc)" "$@"
}

# run_c NAME ARGUMENT...: runs CTest with arguments of its own.
run_c() {
    local name=$1 log=$folder/c.log wrong of
    shift
    ctest --test-dir "$folder/cmake" --parallel "$(nproc)" --output-on-failure --no-tests=error "$@" >"$log" 2>&1 || cat "$log"
    echo "platforms.$name.c: $(grep '% tests passed' "$log" || echo no tests)"
    read -r wrong of < <(sed -n 's/.*% tests passed, \([0-9]*\) tests failed out of \([0-9]*\)$/\1 \2/p' "$log"; echo 1 1)
    passed=$((passed + of - wrong))
    failed=$((failed + wrong))
}

not_run() {
    echo "platforms.$1: not run: $2"
}

quick_aarch64() {
    local cpu test targets=() tests=(isas basics general types decode adversarial oracle)
    local programs=(isa isa_env append version abi quantize refusals dlopen)
    for test in "${tests[@]}"; do targets+=(--test "$test"); done
    # Side by side: the shared library is compiled by one thread for the most part.
    build_c --target "${programs[@]/%/.shared}" >"$folder/build_c.log" 2>&1 &
    build_rust "${targets[@]}" || { wait && return 1; }
    QEMU_CPU=max run_rust aarch64 "${tests[@]}"
    for cpu in neoverse-n1 cortex-a72; do
        QEMU_CPU=$cpu run_rust "aarch64.$cpu" isas basics
    done
    wait $! || { cat "$folder/build_c.log" && return 1; }
    QEMU_CPU=max run_c aarch64 --tests-regex "^($(IFS='|' && echo "${programs[*]}"))[.]shared\$"
    for cpu in neoverse-n1 cortex-a72; do
        QEMU_CPU=$cpu run_c "aarch64.$cpu" --tests-regex '^(isa|isa_env)[.]shared$'
    done
}

aarch64() {
    local cpu
    if [ "$quick" = yes ]; then
        quick_aarch64
        return
    fi
    not_run aarch64 "Rust tests header, dialects, comments (they are about sources, on this machine), process (it forks and pins \
threads: qemu is a process with threads of its own)"
    not_run aarch64 "Rust tests properties, masks, strided, layers, growth, refusals, real (further cases of what those that are \
run have)"
    build_rust || return 1
    QEMU_CPU=max run_rust aarch64 "${other_tests[@]}" "${kernel_tests[@]}"
    for cpu in neoverse-n1 cortex-a72; do
        QEMU_CPU=$cpu run_rust "aarch64.$cpu" "${choice_tests[@]}"
    done
    # An example in Rust, on the tensors of a real model; those in C and C++ are CTest's.
    cargo build --locked --target-dir "$folder/cargo" --target "$FA_TARGET" --profile test --example real_model \
        && one aarch64.rust.real_model "${FA_RUN[@]}" "$folder/cargo/$FA_TARGET/debug/examples/real_model" examples_c/data
    build_c || return 1
    not_run aarch64 "the longest C tests with the static library (with the shared one they are)"
    QEMU_CPU=max run_c aarch64 --exclude-regex '^(attention|nan|small_stack|load|callers|no_threads|pools|writers|mxcsr|openmp)[.]static$'
    for cpu in neoverse-n1 cortex-a72; do
        QEMU_CPU=$cpu run_c "aarch64.$cpu" --tests-regex '^(isa|isa_env|append|version)[.]'
    done
}

# The scalar kernels with pointers of 32 bits.
small() {
    build_rust || return 1
    run_rust "$1" "${other_tests[@]}" "${kernel_tests[@]}"
}

i686() {
    not_run i686 "C tests (tensors of theirs are larger than 32 bits can address, and layouts those of 64 bits)"
    small i686
}

armv7() {
    not_run armv7 "C tests (as for i686)"
    small armv7
}

# Another C library on the processor and the system that are here.
musl() {
    not_run musl "Rust tests (scripts/test.sh has them; what differs is what the library asks of the system, from C)"
    build_c || return 1
    run_c musl
}

# All kernels: wine takes the place of the system, not of the processor.
windows() {
    not_run windows "Rust tests but those of the library's parts (C tests reach every kernel, and what the system is asked)"
    not_run windows "C tests of memory, process, and some of threads (they use fork, mmap, signals, dlopen; c_tests/windows has \
what stands for dlopen and affinity)"
    build_rust --lib || return 1
    run_rust windows flash_attention
    build_c || return 1
    run_c windows
}

# The kernels of simd128, on one thread; a panic ends the program.
wasm() {
    local test targets=(--lib) without=(pool:: capi:: panic)
    not_run wasm "C tests (they use threads and files, and there is no linker for them)"
    not_run wasm "Rust tests of threads, memory, panics and sources, and those that make pools of several threads"
    for test in "${kernel_tests[@]}" isas; do targets+=(--test "$test"); done
    build_rust "${targets[@]}" || return 1
    run_rust wasm isas flash_attention "${kernel_tests[@]}"
}

# Nothing of it is run.
check() {
    CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false cargo check --lib --locked --target-dir "$folder/cargo" --target "$FA_TARGET" "${FA_BUILD_STD[@]}"
}

for platform in "$@"; do
    folder=$root/build/platforms/$platform
    begin=$SECONDS
    mkdir -p "$folder"
    # What it sets is for this platform alone.
    unset RUSTC RUSTC_BOOTSTRAP LIBRARY_PATH FA_UNWINDER
    fa_platform "$platform"
    case " ${FA_CHECKED[*]} " in
    *" $platform "*) one "$platform.check" check ;;
    *) "$platform" || { failed=$((failed + 1)) && echo "platforms.$platform FAILED: it was not built"; } ;;
    esac
    echo "platforms.$platform: $((SECONDS - begin)) s"
done
echo "platforms: $passed passed, $failed failed"
[ "$failed" = 0 ]
