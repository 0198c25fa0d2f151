#!/usr/bin/env bash
# The C tests under sanitizers, with the Rust side instrumented where that matters.
#
#   sanitize.sh [--prove] [KIND...]       without kinds: address undefined (what CI has time for);
#                                         all: all of them
#
#   address    reads and writes beyond what belongs to the program, and leaks
#   undefined  undefined behaviour of the C side: the header's types, and what tests do with them
#   leak       leaks alone, at full speed
#   thread     data races; Rust's standard library is built anew, too
#   valgrind   reads of uninitialised memory, on the AVX2 kernels (valgrind hides AVX-512)
#   memory     the same by MemorySanitizer, on the Rust tests that need no C
#   ggml       the library within ggml (integrations/ggml), whose C++ is instrumented together with
#              ggml's: address, and thread
#   debug      all Rust tests, as `cargo test` builds them anyway: with debug assertions and checks
#              of overflow
#
# --prove plants a fault of each kind in a copy of the sources (scripts/sanitize_plants.patch), and
# fails if it is not seen. The last line is `sanitize: N passed, N failed`. docs/trust.md says what
# each kind covers.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

prove=0
kinds=()
for argument in "$@"; do
    case $argument in
    --prove) prove=1 ;;
    all) kinds+=(address undefined leak thread valgrind memory ggml debug) ;;
    address | undefined | leak | thread | valgrind | memory | ggml | debug) kinds+=("$argument") ;;
    *) echo "sanitize: no such kind: $argument" >&2 && exit 2 ;;
    esac
done
[ ${#kinds[@]} -gt 0 ] || kinds=(address undefined)
case " ${kinds[*]} " in
*" valgrind "*) . scripts/setup.sh cmake patch valgrind ;;
*) . scripts/setup.sh cmake patch ;;
esac

# Sanitizers are unstable options of a compiler that has them all the same, and brings their
# runtimes.
export RUSTC_BOOTSTRAP=1
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS FA_MAX_ISA
target=$(rustc -vV | sed -n 's/^host: //p')
out=$root/build/sanitize
native=(-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc)
passed=0
failed=0
mkdir -p "$out"

die() {
    echo "sanitize: $1" >&2
    exit 1
}

# What CTest gives the tests as well.
define=(-DFA_PACKAGE_VERSION="\"$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)\""
    -DFA_ABI_TABLE="\"$root/c_tests/abi.txt\"")

# A program that hangs is a failure; a function of this script calls others, which end.
limited() {
    if [ "$(type -t "$1")" = function ]; then "$@"; else timeout 1800 "$@"; fi
}

# count NAME LOG COMMAND...: runs a test.
count() {
    local name=$1 log=$2 begin=$SECONDS
    shift 2
    if limited "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "sanitize.$name passed ($((SECONDS - begin)) s)"
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
        echo "sanitize.$name FAILED"
    fi
}

# must_see NAME WORDS LOG COMMAND...: runs a test with a planted fault, which has to be reported.
must_see() {
    local name=$1 words=$2 log=$3
    shift 3
    if ! limited "$@" >"$log" 2>&1 && grep -q -e "$words" "$log"; then
        passed=$((passed + 1))
        echo "sanitize.$name: seen: $(grep -m1 -e "$words" "$log" | cut -c1-100)"
    else
        failed=$((failed + 1))
        tail -n 20 "$log"
        echo "sanitize.$name FAILED: the planted fault was not seen"
    fi
}

# file_of TEST: its file, in whichever folder.
file_of() {
    ls c_tests/*/"$1.c"
}

# The C tests but for those named, and for one that needs a library of others.
tests_but() {
    local file name
    for file in c_tests/{api,memory,threads,process,interop}/*.c; do
        name=$(basename "$file" .c)
        case " $* pthreadpool " in *" $name "*) ;; *) echo "$name" ;; esac
    done
}

# library FOLDER SOURCES RUSTFLAGS [ARGUMENT OF CARGO...]: the static library in FOLDER. Hardly
# optimised, and without the checks that `cargo test` has anyway: instrumented kernels take the
# compiler minutes, and access the same memory.
library() {
    local folder=$1 sources=$2 flags=$3
    shift 3
    (cd "$sources" && RUSTFLAGS=$flags cargo rustc --quiet --locked --lib --release --crate-type staticlib \
        --target "$target" --target-dir "$folder" --config 'profile.release.lto=false' --config 'profile.release.codegen-units=8' \
        --config 'profile.release.opt-level=1' --config 'profile.release.debug="line-tables-only"' \
        "$@")
    static=$folder/$target/release/libflash_attention.a
    [ -f "$static" ] || die "$static was not built"
}

# program KIND NAME SOURCE LIBRARY [OPTION...]: one C program.
program() {
    local kind=$1 name=$2 source=$3 lib=$4
    shift 4
    mkdir -p "$out/$kind/bin"
    # c11 without extensions, as in CMake; not -O2, which would hide faults by using them.
    ${CC:-cc} -std=c11 -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Wpedantic -Werror -UNDEBUG -Iinclude -Ic_tests/support "${define[@]}" \
        "$source" -o "$out/$kind/bin/$name" "$lib" "$@" "${native[@]}"
}

# planted KIND: sources with faults in them, which the variable FA_PLANT chooses from.
planted() {
    local copy=$out/$1-planted/sources
    rm -rf "$copy"
    mkdir -p "$copy"
    # Cargo wants all files that the manifest names.
    cp -r Cargo.toml Cargo.lock build.rs src benches examples tools "$copy"
    patch --quiet --directory "$copy" --strip 1 <scripts/sanitize_plants.patch || die "scripts/sanitize_plants.patch does not fit"
    echo "$copy"
}

# ---- address ----

address() {
    local kind=address flags=-Zsanitizer=address test
    local gcc=(-fsanitize=address)
    # Left out: `memory` and `starved` limit the address space, which shadow memory takes all of;
    # `small_stack` limits the stack; `far` has terabytes of address space of its own; `dlopen`,
    # `reload`, `copies`, `load` and `quiet` load the shared library that is released, or count what
    # the process has; `isa_env` is about one variable.
    local tests
    tests=$(tests_but memory starved small_stack far dlopen reload copies load quiet isa_env openmp fork)
    library "$out/$kind" "$root" $flags
    export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1
    for test in $tests; do
        program $kind "$test" "$(file_of "$test")" "$static" "${gcc[@]}"
        count "address.$test" "$out/$kind/$test.log" "$out/$kind/bin/$test" $(repetitions $kind "$test")
    done
    [ $prove = 1 ] || return 0
    library "$out/$kind-planted" "$(planted $kind)" $flags
    program $kind-planted attention c_tests/api/attention.c "$static" "${gcc[@]}"
    must_see prove.address.overread 'heap-buffer-overflow' "$out/$kind/plant.log" \
        env FA_PLANT=overread "$out/$kind-planted/bin/attention"
    # Only the three calls for dense arrays allocate.
    program $kind-planted forward c_tests/api/forward.c "$static" "${gcc[@]}"
    must_see prove.address.leak 'LeakSanitizer' "$out/$kind/plant.log" env FA_PLANT=leak "$out/$kind-planted/bin/forward"
    # The same program has no other fault.
    count prove.address.nothing "$out/$kind/plant.log" env FA_PLANT=nothing "$out/$kind-planted/bin/attention"
}

# What keeps a test within minutes where everything is slow: what is repeated has been run once
# before.
repetitions() {
    case $1.$2 in
    undefined.determinism) echo 50 ;;
    *.determinism) echo 10 ;;
    esac
}

# ---- undefined ----

undefined() {
    local kind=undefined test
    # Not recoverable, so that a report is a failure. Alignment is part of it: what C tests pass may
    # be misaligned, what they read may not.
    local gcc=(-fsanitize=undefined,float-cast-overflow -fno-sanitize-recover=all)
    # The Rust side is the one that is released: what C can do wrong is on the C side.
    plain
    local lib=$static
    for test in $(tests_but memory starved small_stack openmp isa_env fork dlopen reload copies load quiet); do
        program $kind "$test" "$(file_of "$test")" "$lib" "${gcc[@]}"
        count "undefined.$test" "$out/$kind/$test.log" "$out/$kind/bin/$test" $(repetitions $kind "$test")
    done
    [ $prove = 1 ] || return 0
    mkdir -p "$out/planted-c"
    sed 's/int main(void) {/&\n    volatile int32_t most = INT32_MAX; most += fa_abi_version() > 0;/' c_tests/api/version.c \
        >"$out/planted-c/version.c"
    program $kind planted "$out/planted-c/version.c" "$lib" "${gcc[@]}"
    must_see prove.undefined.overflow 'signed integer overflow' "$out/$kind/plant.log" "$out/$kind/bin/planted"
}

# The static library that is released, as CMake builds it.
plain() {
    cmake -S "$root" -B "$root/build" >/dev/null
    cmake --build "$root/build" --target flash_attention_static >/dev/null
    static=$root/build/cargo/release/static/libflash_attention.a
}

# ---- leak ----

leak() {
    local kind=leak test
    plain
    local lib=$static
    # Without determinism, whose many threads end gcc 12's runtime in its own list of threads.
    for test in threads pools callers writers attention forward quantize append; do
        program $kind "$test" "$(file_of "$test")" "$lib" -fsanitize=leak
        count "leak.$test" "$out/$kind/$test.log" "$out/$kind/bin/$test" $(repetitions $kind "$test")
    done
    [ $prove = 1 ] || return 0
    plain_planted
    program $kind planted c_tests/api/forward.c "$static" -fsanitize=leak
    must_see prove.leak 'LeakSanitizer' "$out/$kind/plant.log" env FA_PLANT=leak "$out/$kind/bin/planted"
}

# The faulty sources without a sanitizer.
plain_planted() {
    library "$out/plain-planted" "$(planted plain)" ""
}

# ---- thread ----

# A compiler whose standard library is there as source: Debian's, with the runtimes of the installed
# one beside it.
std_sources() {
    local file lib
    std=$root/build/debian-rust
    . scripts/debian_rust.sh
    fa_setup libedit2 libxml2 libz3-4
    fa_debian_rust "$std" src
    lib=$std/usr/lib/rustlib/$target/lib
    for file in asan lsan msan tsan; do
        cp "$(rustc --print target-libdir)"/librustc-*_rt.$file.a "$lib/librustc-stable_rt.$file.a"
    done
}

thread() {
    local kind=thread flags=-Zsanitizer=thread test
    std_sources
    # gcc's runtime lacks what newer compilers call.
    native=(-Wl,--whole-archive "$std/usr/lib/rustlib/$target/lib/librustc-stable_rt.tsan.a" -Wl,--no-whole-archive
        -lgcc_s -lutil -lrt -lpthread -lm -ldl -lresolv -lc)
    local tests=(threads pools callers writers determinism attention)
    # Left out of those that have threads: `fork` (the runtime cannot follow a child of many
    # threads), `copies`, `reload` (the second library is not instrumented), `starved` (no address
    # space for the runtime), `openmp` (its runtime is not instrumented: reports about its
    # barriers), `affinity` and `signals` (nothing that the others do not share).
    RUSTC=$std/rustc library "$out/$kind" "$root" $flags -Zbuild-std=std,panic_abort
    export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1"
    for test in "${tests[@]}"; do
        thread_program "$kind" "$test" "$static"
        count "thread.$test" "$out/$kind/$test.log" "$out/$kind/bin/$test" $(repetitions $kind "$test")
    done
    if [ $prove = 1 ]; then
        RUSTC=$std/rustc library "$out/$kind-planted" "$(planted $kind)" $flags -Zbuild-std=std,panic_abort
        thread_program "$kind-planted" pools "$static"
        must_see prove.thread.race 'data race' "$out/$kind/plant.log" env FA_PLANT=race "$out/$kind-planted/bin/pools"
    fi
    native=(-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc)
}

# gcc would link its own runtime: it only compiles. Who computes what is the same under each
# instruction set; the plain one would take most of an hour.
thread_program() {
    local kind=$1 test=$2
    mkdir -p "$out/$kind/bin"
    ${CC:-cc} -std=c11 -g -O1 -UNDEBUG -Iinclude -Ic_tests/support "${define[@]}" -DBEST_ISA_ONLY -fsanitize=thread -c "$(file_of "$test")" -o "$out/$kind/$test.o"
    ${CC:-cc} "$out/$kind/$test.o" -o "$out/$kind/bin/$test" "$3" "${native[@]}"
}

# ---- valgrind ----

valgrind_() {
    local kind=valgrind test
    local memcheck=(valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite)
    plain
    local lib=$static
    # Those that are not minutes long at a fiftieth of the speed; without `mxcsr`, as valgrind has
    # only part of that register, and `allocations`, which brings its own malloc.
    for test in version abi refusals {attention,tensor,quant,list,logit,weight,argument}_refusals unaligned attention quantize append; do
        program $kind "$test" "$(file_of "$test")" "$lib"
        count "valgrind.$test" "$out/$kind/$test.log" env FA_MAX_ISA=avx2 "${memcheck[@]}" "$out/$kind/bin/$test"
    done
    [ $prove = 1 ] || return 0
    plain_planted
    program $kind planted c_tests/api/attention.c "$static"
    must_see prove.valgrind.uninitialised 'uninitialised' "$out/$kind/plant.log" \
        env FA_PLANT=uninitialised "${memcheck[@]}" "$out/$kind/bin/planted"
}

# ---- memory ----

memory() {
    local kind=memory
    std_sources
    # C compilers here have no such runtime, and what C has written would count as uninitialised: so
    # a Rust test, in which all that runs is instrumented. Its workspaces are as they were
    # allocated, and it looks at every output. Goes on after a report, so that one run shows all of
    # them; it fails at its end.
    local isa flags="-Zsanitizer=memory -Zsanitizer-memory-track-origins -Zsanitizer-recover=memory"
    mkdir -p "$out/$kind"
    for isa in scalar avx2 avxvnni avx512 avx512vnni avx512bf16; do
        FA_MAX_ISA=$isa count "memory.rust_api.$isa" "$out/$kind/$isa.log" rust_test $kind "$root" "$flags" rust_api
    done
    [ $prove = 1 ] || return 0
    FA_PLANT=uninitialised must_see prove.memory 'use-of-uninitialized-value' "$out/$kind/plant.log" \
        rust_test $kind-planted "$(planted $kind)" "$flags" rust_api
}

# rust_test KIND SOURCES FLAGS TEST: a test in tests/, instrumented, with the standard library. In a
# package of its own, since cargo would build all that the project's other tests and benches need.
rust_test() {
    local crate=$out/$1/crate
    mkdir -p "$crate/src"
    touch "$crate/src/lib.rs"
    cat >"$crate/Cargo.toml" <<END
[package]
name = "instrumented"
version = "0.0.0"
edition = "2024"
[dependencies]
flash_attention = { path = "$2" }
$(grep '^half = ' Cargo.toml)
[profile.test]
opt-level = 1
debug = "line-tables-only"
debug-assertions = false
overflow-checks = false
[[test]]
name = "$4"
path = "$root/tests/$4.rs"
[workspace]
END
    cp Cargo.lock "$crate"
    (cd "$crate" && cargo update --quiet --workspace --offline \
        && RUSTC=$std/rustc RUSTFLAGS=$3 cargo test --quiet --locked -Zbuild-std --target "$target" --test "$4")
}

# ---- ggml ----

# within KIND LIBRARY SHARE: what scripts/test_ggml.sh does, with ggml, the hook and the tests
# instrumented. ggml's own threads, since those of OpenMP have a runtime that is not.
within() {
    env FA_GGML_BUILD="$out/ggml-$1" TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_leaks=0 FA_GGML_CMAKE="-DFA_GGML_LIBRARY=$2
        -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGGML_OPENMP=OFF -DCMAKE_C_FLAGS=-fsanitize=$1 -DCMAKE_CXX_FLAGS=-fsanitize=$1" \
        scripts/test_ggml.sh "$3"
}

ggml() {
    local kind=ggml
    mkdir -p "$out/$kind"
    # Under address the Rust side is instrumented, too, as above. Leaks are left out: ggml keeps
    # what it has loaded.
    library "$out/address" "$root" -Zsanitizer=address
    count ggml.address "$out/$kind/address.log" within address "$static" 20
    # Under thread it is not, so what it writes is not seen; who enters it when, and what threads
    # tell each other, is.
    plain
    count ggml.thread "$out/$kind/thread.log" within thread "$static" 20
    [ $prove = 1 ] || return 0
    # The hook without its second barrier.
    local copy=$out/ggml-planted
    rm -rf "$copy" && mkdir -p "$copy" && cp -r integrations include scripts benches Cargo.toml "$copy"
    sed -i '/fa_attention_part(/{n;d}' "$copy/integrations/ggml/ggml-flash-attention.cpp"
    must_see prove.ggml.race 'data race' "$out/$kind/plant.log" within_copy "$copy" thread "$static"
}

within_copy() {
    (cd "$1" && root=$1 out=$1/out within "$2" "$3" 1000)
}

# ---- debug ----

# Whether cargo builds every target of ours for tests with both kinds of checks, whatever it
# optimises.
is_checked() {
    cargo test --locked --workspace --unit-graph -Z unstable-options "$@" | python3 -c '
import json, sys
units = [u for u in json.load(sys.stdin)["units"] if "flash_attention" in u["pkg_id"] and u["mode"] != "run-custom-build"]
loose = {u["target"]["name"] for u in units if not (u["profile"]["debug_assertions"] and u["profile"]["overflow_checks"])}
sys.exit(f"without checks: {loose}" if loose or len(units) < 20 else 0)'
}

debug() {
    local kind=debug
    mkdir -p "$out/$kind"
    count debug.profile "$out/$kind/profile.log" is_checked
    count debug.tests "$out/$kind/tests.log" cargo test --locked --workspace --no-fail-fast
    [ $prove = 1 ] || return 0
    must_see prove.debug 'without checks' "$out/$kind/plant.log" is_checked --release
}

for kind in "${kinds[@]}"; do
    # There is a program of that name.
    if [ "$kind" = valgrind ]; then valgrind_; else $kind; fi
done
echo "sanitize: $passed passed, $failed failed"
[ $failed = 0 ]
