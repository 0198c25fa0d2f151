#!/usr/bin/env bash
# Runs the bindings and their examples on the tensors of a real model, against their exact outputs:
# all, or those named (go, python, rust, zig). Installs what they need; uses the libraries that
# CMake builds (but for Rust).

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
[ $# -gt 0 ] || set -- rust python go zig
tools=(cc)
for language in "$@"; do
    case $language in
    go) tools+=(go) ;;
    python | zig) tools+=(python3-venv) ;;
    esac
done
. scripts/setup.sh "${tools[@]}"
. scripts/venv.sh

build=$root/build
data=$root/examples_c/data
shared=$build/cargo/release/libflash_attention.so
static=$build/cargo/release/static/libflash_attention.a

die() {
    echo "test_languages: $1" >&2
    exit 1
}

for lib in "$shared" "$static"; do
    [ -f "$lib" ] || die "$lib is missing; build it: cmake -S . -B build && cmake --build build"
done

suite=example
. "$root/scripts/test_case.sh"

run_rust() {
    # As `cargo test` has built it; with --release Cargo would build anew also what only benchmarks
    # need. In Cargo's own folder: it would put other libraries where CMake has those that the
    # others link.
    local run=(cargo run --quiet --locked --features rayon --profile test)
    test_case rust.real_model "${run[@]}" --example real_model -- "$data"
    test_case rust.paged_decode "${run[@]}" --example paged_decode
    test_case rust.rayon "${run[@]}" --example rayon
}

run_python() {
    # The packages are those of the tests of ONNX's operator, which is compared with.
    # scripts/test_python.sh runs the same tests on the wheel.
    fa_venv "$build/venv-onnx" tests/python/onnx/requirements.txt
    local python=$build/venv-onnx/bin/python
    test_case python.real_model env PYTHONPATH=bindings/python "$python" bindings/python/example/real_model.py "$data" "$shared"
    test_case python.arrays "$python" bindings/python/tests/run.py --library "$shared" "$data"
}

# needs PROGRAM NUMBER: a program that finds the other library by accident would prove nothing.
needs() {
    local needed
    needed=$(readelf --dynamic "$1" | grep -c 'NEEDED.*libflash_attention' || true)
    [ "$needed" = "$2" ] || { echo "$1 needs $needed shared libraries called libflash_attention, not $2."; return 1; }
}

# go_tests static|shared PACKAGE PROGRAM
go_tests() {
    local shared_libraries=1
    [ "$1" = shared ] || shared_libraries=0
    # The program runs where its package is, as with `go test`.
    cd "bindings/go/$2" && [ -z "$(gofmt -l .)" ] && go vet -tags "$1" . && go test -c -tags "$1" -o "$3" . \
        && needs "$3" $shared_libraries && "$3" -test.v
}

run_go() {
    local kind
    export GOCACHE=$build/go/cache GOPATH=$build/go/path GOFLAGS=-trimpath CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$root/include"
    for kind in shared static; do
        # A folder with nothing but the one library, so that the other cannot be linked instead.
        rm -rf "$build/go/$kind"
        mkdir -p "$build/go/$kind"
        ln -s "${!kind}" "$build/go/$kind/"
        export CGO_LDFLAGS="-L$build/go/$kind -Wl,-rpath,$(dirname "$shared")"
        test_case "go.$kind" go_tests "$kind" . "$build/go/$kind.test"
        test_case "go.$kind.real_model" go_tests "$kind" example "$build/go/$kind.real_model.test"
    done
}

# zig_tests static|shared ZIG...
zig_tests() {
    local kind=$1 shared_libraries=1
    shift
    [ "$kind" = shared ] || shared_libraries=0
    cd bindings/zig && "$@" fmt --check . \
        && "$@" build test install --prefix "$build/zig/$kind" -Dlibrary="${!kind}" -Dinclude="$root/include" -Ddata="$data" \
        && needs "$build/zig/$kind/bin/attention_test" $shared_libraries \
        && needs "$build/zig/$kind/bin/real_model" $shared_libraries \
        && cd consumer && "$@" build run install --prefix "$build/zig/$kind" -Dlibrary="${!kind}" \
        && needs "$build/zig/$kind/bin/consumer" $shared_libraries
}

run_zig() {
    fa_venv "$build/venv-zig" bindings/zig/requirements.txt
    # The first use of the compiler builds its own build system and translator, which stay here: for
    # minutes, unless it is told to leave those unoptimised.
    export ZIG_GLOBAL_CACHE_DIR=$build/zig/global ZIG_LOCAL_CACHE_DIR=$build/zig/local ZIG_DEBUG_CMD=1
    local kind
    for kind in shared static; do
        test_case "zig.$kind" zig_tests "$kind" "$build/venv-zig/bin/python" -m ziglang
    done
}

# What each reaches is what docs/bindings.md says, and Go and Zig lack nothing of the header.
test_case bindings python3 scripts/check_bindings.py .
for language in "$@"; do
    case $language in
    go | python | rust | zig) "run_$language" ;;
    *) die "no such language: $language" ;;
    esac
done
echo "languages: $passed passed, $failed failed"
[ "$failed" = 0 ]
