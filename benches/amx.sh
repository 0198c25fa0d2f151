#!/usr/bin/env bash
# What a machine with AMX is to be asked, in one go: whether the kernels on tiles are right, and how
# fast they are. For machines that nobody else has: please send what it prints.
#
#   benches/amx.sh [--tests] [--types] [--peers]       all three without an option
#
#   --tests  Rust and C tests with AMX enabled (FA_AMX=1), and the instructions one by one
#   --types  how many times as fast as f32, against the goals; and against the set below it
#   --peers  PyTorch and OpenVINO, prefill in bf16 and f16, one thread, in turns with this library
#            (5 GB to download)
#
# Results go to build/amx.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=("$@")
[ $# -gt 0 ] || wanted=(--tests --types --peers)
for word in "${wanted[@]}"; do
    case $word in
    --tests | --types | --peers) ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
done
wants() { case " ${wanted[*]} " in *" $1 "*) ;; *) return 1 ;; esac; }

if ! grep -qw amx_tile /proc/cpuinfo; then
    echo "amx: this machine has none; without it cargo test --test emulated tests the kernels" >&2
    exit 1
fi
export FA_AMX=1
out=build/amx
mkdir -p "$out"
lscpu >"$out/machine.txt"
uname -r >>"$out/machine.txt"

# run NAME COMMAND...: prints, and keeps what is printed.
run() {
    local name=$1
    shift
    echo "== $*" >&2
    "$@" 2>&1 | tee "$out/$name.txt"
}

cargo run --release -p fa -- info | tee "$out/info.txt"
grep -qw amx "$out/info.txt" || { echo "amx: the library does not use it: $(cat "$out/info.txt")" >&2 && exit 1; }

if wants --tests; then
    run emulated cargo test --test emulated
    run rust cargo test
    cmake -S . -B build >/dev/null
    run c cmake --build build --target check
fi
if wants --types; then
    run types cargo bench -p benches --bench attention -- types --runs 3
    # The same types without tiles, in the same minutes. Without AMX-FP16 both lines of f16 are
    # f32's.
    for _ in 1 2 3; do
        for dim in 64 128; do
            for what in "amx bf16" "avx512bf16 bf16" "amx f16" "avx512 f16" "amx i8 --fast" "avx512vnni i8 --fast"; do
                read -r isa dtype <<<"$what"
                echo "$isa $dtype $dim"
                # shellcheck disable=SC2086
                cargo bench -q -p benches --bench attention -- --isa "$isa" --heads 8 --len 2048 --dim "$dim" --dtype $dtype
            done
        done
    done 2>&1 | tee "$out/sets.txt"
fi
if wants --peers; then
    run peers benches/peers/run.sh --peers torch,openvino --workloads prefill --threads 1 --output "$out/peers"
fi
echo "amx: all of it is in $out"
