#!/usr/bin/env bash
# Random problems from 8 threads in each of two processes, for some minutes (half a minute without
# an argument): see c_tests/soak/soak.c. It prints problems per second, in total, how many were
# wrong, and what memory did.
#
#   soak.sh [MINUTES [SEED]]
#
# --prove plants a wrong result, bits that depend on the way, and leaks of several kinds, into
# copies of the program, each of which has to be reported.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake

# plant NAME WORDS SED: a copy of the program with a fault.
plant() {
    local folder=$root/build/soak log
    mkdir -p "$folder"
    sed "$3" c_tests/soak/soak.c >"$folder/soak.c"
    ! cmp -s c_tests/soak/soak.c "$folder/soak.c" || { echo "soak: there is no place for the fault $1"; return 1; }
    ${CC:-cc} -std=c11 -O2 -Iinclude -Ic_tests/support "$folder/soak.c" build/cargo/release/static/libflash_attention.a \
        -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc -o "$folder/soak.planted"
    # So long that memory is compared on a busy machine, too.
    if ! log=$("$folder/soak.planted" 20 2>&1) && grep -q -e "$2" <<<"$log"; then
        echo "soak.prove.$1: seen: $(grep -m1 -e "$2" <<<"$log")"
    else
        printf '%s\nsoak.prove.%s FAILED: the planted fault was not seen\n' "$log" "$1"
        return 1
    fi
}

cmake -S . -B build >/dev/null
cmake --build build --target soak.static
if [ "${1:-}" = --prove ]; then
    # One bit of one number of every twentieth result; only some rows of each are compared.
    plant wrong 'a row is wrong' 's/^    check_rows(number, &r, &a);/    room->o[3] ^= number % 20 == 0;\n&/'
    plant bits 'other bits' 's/^    memcpy(room->once, room->o, bytes)/    room->o[0] ^= number % 100 == 0;\n&/'
    # Now and then; 16 bytes a call; pages that malloc does not know.
    call='s/^    atomic_fetch_add(&result->problems, 1);/&\n    '
    pages='mmap(NULL, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)'
    plant leak 'memory grows' "${call}if (number % 10 == 0) memset(need(20000), 1, 20000);/"
    plant trickle 'memory grows' "${call}memset(need(16), 1, 16);/"
    plant pages 'memory grows' "${call}memset($pages, 1, 1 << 17);/"
    exit 0
fi
seconds=$(python3 -c 'import sys; print(float(sys.argv[1]) * 60)' "${1:-0.5}")
exec build/c_tests/soak.static "$seconds" "${2:-1}"
