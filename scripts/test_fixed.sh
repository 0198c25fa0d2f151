#!/usr/bin/env bash
# Tests the package in fixed/ (docs/fixed-point.md) where it is meant for: machines without an
# operating system, and without floating point. It is compiled with `core` alone for Armv6-M, and
# for Armv5TE, where qemu runs its tests; and no machine code of it, on those and on x86-64,
# computes with floating-point numbers. The last line is `fixed: N passed, N failed`.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh
. scripts/debian_rust.sh
fa_setup arm-linux-gnueabi-g++ qemu-arm-static
# What the compiler that is unpacked loads.
fa_setup libedit2 libxml2 libz3-4
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS
# Machine code, not what a linker optimises.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_LTO=off
fa_debian_rust "$root/build/debian-rust" src

out=$root/build/fixed
soft=armv5te-unknown-linux-gnueabi
bare=thumbv6m-none-eabi
passed=0
failed=0

# one NAME COMMAND...
one() {
    local name=$1
    shift
    if "$@" >"$out/log" 2>&1; then
        passed=$((passed + 1))
        echo "fixed.$name passed: $(tail -n 1 "$out/log")"
    else
        failed=$((failed + 1))
        cat "$out/log"
        echo "fixed.$name FAILED"
    fi
}

# With the compiler that has its library as source: no other way leads to one for these targets.
with_source() {
    RUSTC=$root/build/debian-rust/rustc RUSTC_BOOTSTRAP=1 "$@"
}

# compile TARGET [ARGUMENT OF CARGO...]: the package, as one object file.
compile() {
    local target=$1
    shift
    # Else cargo would find nothing to do, and the object file of an older one would be there.
    rm -rf "$out/$target/release/deps/"flash_attention_fixed*.o "$out/$target/release/.fingerprint/"flash_attention_fixed*
    cargo rustc --locked --package flash_attention_fixed --lib --release --target "$target" --target-dir "$out" "$@" \
        -- --emit=obj && ls "$out/$target/release/deps/"flash_attention_fixed*.o
}

# has_none DISASSEMBLER TARGET PATTERN: no instruction in the machine code is one of the pattern,
# and there are some; nor is a function called that computes with floating-point numbers in their
# place.
has_none() {
    local object lines names found
    object=$(ls "$out/$2/release/deps/"flash_attention_fixed*.o)
    lines=$("$1" --disassemble --reloc --no-show-raw-insn "$object")
    names=$(sed -nE 's/^ *[0-9a-f]+:\t([a-z][a-z0-9.]*).*/\1/p' <<<"$lines")
    found=$(grep -xE "$3" <<<"$names" | sort -u | xargs || true)
    found+=$(grep -oE '__aeabi_(c?[fd]|u?[il]2|h2)[a-z0-9]*|__(add|sub|mul|div|neg)[sdt]f.*|__(float|fix).*' <<<"$lines" | sort -u | xargs || true)
    [ -z "$found" ] || { echo "floating point: $found"; return 1; }
    [ "$(wc -l <<<"$names")" -gt 500 ] || { echo "hardly any machine code"; return 1; }
    echo "$(wc -l <<<"$names") instructions, none of floating point: $(sort -u <<<"$names" | xargs)"
}

run_tests() {
    CARGO_TARGET_ARMV5TE_UNKNOWN_LINUX_GNUEABI_LINKER=arm-linux-gnueabi-gcc \
        CARGO_TARGET_ARMV5TE_UNKNOWN_LINUX_GNUEABI_RUNNER='qemu-arm-static -L /usr/arm-linux-gnueabi' \
        with_source cargo test --locked --package flash_attention_fixed --lib --tests --target "$soft" --target-dir "$out" \
        -Zbuild-std=std,panic_abort && echo "$(grep -c '^test .* ok$' "$out/log") tests on Armv5TE"
}

# On Arm all instructions of floating point, of vectors and for coprocessors. On x86-64 vectors of
# integers are welcome: what may not be is arithmetic, comparison and conversion of other numbers,
# and the old unit for these.
arm='v.*|f.*|(cdp|ldc|stc|mcr|mrc).*'
x86='v?(add|sub|mul|div|sqrt|min|max|cmp[a-z]*|u?comi|round|rcp|rsqrt|dp|hadd|hsub|addsub)[sp][sd]|v?cvt.*|vf.*|f.*'

# What is looked for is seen where there is some: in code of C.
prove() {
    local compiler seen
    for compiler in arm-linux-gnueabi-gcc cc 'arm-linux-gnueabi-gcc -march=armv5te+fp -mfloat-abi=softfp'; do
        mkdir -p "$out/planted/release/deps"
        # Words, on purpose.
        echo 'float planted(float x, int y) { return x * x + y; }' \
            | $compiler -O1 -x c -c -o "$out/planted/release/deps/flash_attention_fixed.o" -
        case $compiler in
        cc) seen=$(has_none objdump planted "$x86" || true) ;;
        *) seen=$(has_none arm-linux-gnueabi-objdump planted "$arm" || true) ;;
        esac
        echo "$seen" | grep '^floating point: ' || { echo "not seen: $compiler: $seen"; return 1; }
    done
}

mkdir -p "$out"
one core with_source compile "$bare" -Zbuild-std=core
one core.no_float has_none arm-linux-gnueabi-objdump "$bare" "$arm"
one soft with_source compile "$soft" -Zbuild-std=core
one soft.no_float has_none arm-linux-gnueabi-objdump "$soft" "$arm"
one soft.tests run_tests
one x86_64 compile x86_64-unknown-linux-gnu
one x86_64.no_float has_none objdump x86_64-unknown-linux-gnu "$x86"
one prove.no_float prove
one x86_64.tests cargo test --locked --package flash_attention_fixed --target-dir "$out/host"
echo "fixed: $passed passed, $failed failed"
[ "$failed" = 0 ]
