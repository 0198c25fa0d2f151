#!/usr/bin/env bash
# Times this library against others on this machine. README.md, beside this file, says what is
# compared and how.
#
#   benches/peers/run.sh [--peers NAME,...] [--workloads quick|all] [--threads 1,2]
#                        [--isa avx2] [--output FOLDER] [OPTION...]
#
#   --peers      of onnxruntime, openvino, ggml (these three by default), torch (5 GB to
#                download), rust (candle and ruvector: some minutes to compile); `all`: all five
#   --workloads  quick (default, some minutes), all (three quarters of an hour with all peers),
#                or a group of workloads.py: prefill, gqa, encoder, decode, small, few, latent,
#                masked
#   --isa avx2   as on a processor without AVX-512 and AMX: this library and ggml are told, and from
#                the others these bits of cpuid are hidden (cpuid.py, cpuid.c)
#   --output     where comparison.json, tables.md and the figures go (build/peers)
#   OPTION...    of compare.py: --rounds, --seconds, --only
#
# Sets up a virtual environment in build/venv-peers and compiles in build/peers.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"

peers=onnxruntime,openvino,ggml
out=$root/build/peers
isa=
options=()
while [ $# -gt 0 ]; do
    case $1 in
    --peers) peers=$2 && shift 2 ;;
    --isa) isa=$2 && options+=(--isa "$2") && shift 2 ;;
    --output) mkdir -p "$2" && out=$(cd "$2" && pwd) && shift 2 ;;
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) options+=("$1") && shift ;;
    esac
done
[ "$peers" = all ] && peers=onnxruntime,openvino,ggml,torch,rust
for peer in ${peers//,/ }; do
    case $peer in
    onnxruntime | openvino | ggml | torch | rust) ;;
    *) echo "peers: no such peer: $peer" >&2 && exit 2 ;;
    esac
done
case $isa in
"" | avx2) ;;
*) echo "peers: --isa $isa: avx2 is the one that there is" >&2 && exit 2 ;;
esac

. scripts/setup.sh cmake g++ python3-venv
. scripts/venv.sh
build=$root/build/peers
venv=$root/build/venv-peers
mkdir -p "$build" "$out"

# missing PEER WHY: it is reported, with this reason, instead of being left out.
missing() {
    echo "peers: $1: $2" >&2
    export "PEER_MISSING_${1^^}=$2"
}

say() {
    echo "peers: $1" >&2
}

say "building this library"
cmake -S . -B build >/dev/null
cmake --build build --target flash_attention_cargo >"$build/library.log" 2>&1 || { cat "$build/library.log" >&2 && exit 1; }
export PEER_FLASH_ATTENTION=$root/build/cargo/release/libflash_attention.so

cc -O3 -march=${isa:+x86-64-v3 -mtune=}native -shared -fPIC -pthread "$here/limits.c" -o "$build/liblimits.so"
export PEER_LIMITS=$build/liblimits.so

say "installing Python's packages: $peers"
fa_venv "$venv" "$here/requirements/base.txt"
for peer in onnxruntime openvino torch; do
    case ,$peers, in *",$peer,"*) ;; *) continue ;; esac
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements/$peer.txt" </dev/null \
        || missing "$peer" "pip could not install it"
done

# What is built of this crate is only its copy of ggml.
build_ggml() {
    local source
    source=$(scripts/ggml_source.sh)/ggml || return 1
    cmake -S "$here/ggml" -B "$build/ggml$isa" -DCMAKE_BUILD_TYPE=Release -DGGML_SOURCE="$source" \
        -DGGML_NATIVE=$([ -n "$isa" ] && echo OFF || echo ON) || return 1
    cmake --build "$build/ggml$isa" --target ggml-cpu --parallel 2
}

case ,$peers, in *,ggml,*)
    say "building ggml"
    build_ggml >"$build/ggml.log" 2>&1 || missing ggml "does not build here: see build/peers/ggml.log"
    export PEER_GGML=$build/ggml$isa/ggml/src
    ;;
esac

case ,$peers, in *,rust,*)
    say "building candle and ruvector"
    cargo build --quiet --release --locked --manifest-path "$here/rust/Cargo.toml" --target-dir "$build/rust" \
        || missing rust "does not build here"
    export PEER_RUST=$build/rust/release/peers
    ;;
esac

# Libraries that ask for the vendor or the model, not for what the processor has, are shown with
# that question answered, too.
if grep -q AuthenticAMD /proc/cpuinfo; then
    case ,$peers, in *,torch,*)
        cc -O2 -shared -fPIC "$here/mkl.c" -o "$build/libmkl_check.so" && export PEER_MKL=$build/libmkl_check.so
        ;;
    esac
fi

if [ -n "$isa" ]; then
    say "hiding AVX-512 from the libraries"
    cc -O2 -shared -fPIC "$here/cpuid.c" -o "$build/libcpuid.so"
    rm -rf "$venv-$isa"
    # Files are shared with the first environment, but for those that are rewritten.
    cp -al "$venv" "$venv-$isa"
    venv=$venv-$isa
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements/cpuid.txt" </dev/null
    find "$venv" -name '*.so*' -type f \( -path '*/onnxruntime/capi/*' -o -path '*/openvino/libs/libopenvino.so*' \
        -o -path '*/openvino/libs/*cpu_plugin*' -o -path '*/numpy*' -o -name 'libtorch.so' -o -name 'libtorch_cpu.so' \
        -o -name 'libc10.so' \) -exec "$venv/bin/python" "$here/cpuid.py" {} + >"$build/cpuid.log"
    if [ -n "${PEER_RUST:-}" ]; then
        cp "$PEER_RUST" "$PEER_RUST-$isa"
        PEER_RUST=$PEER_RUST-$isa
        "$venv/bin/python" "$here/cpuid.py" "$PEER_RUST" >>"$build/cpuid.log"
    fi
    export FA_MAX_ISA=$isa LD_PRELOAD=$build/libcpuid.so
fi
# As it is installed: it decides by itself.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
blas=$("$venv/bin/python" -c 'import numpy, threadpoolctl; print(threadpoolctl.threadpool_info()[0]["architecture"])')
if [ -z "$isa" ] && grep -q avx512f /proc/cpuinfo && [ "$blas" = Haswell ]; then
    export PEER_CORETYPE=SkylakeX
fi

"$venv/bin/python" "$here/compare.py" "$out/comparison.json" --peers "$peers" ${options[@]+"${options[@]}"}
"$venv/bin/python" "$here/report.py" "$out/comparison.json" "$out/tables.md"
"$venv/bin/python" "$here/figures.py" "$out/comparison.json" "$out"
say "wrote $out/comparison.json, tables.md and figures"
