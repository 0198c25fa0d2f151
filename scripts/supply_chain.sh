#!/usr/bin/env bash
# What the libraries are made of, and whether anyone can make them again.
#
#   supply_chain.sh [PART...]      without parts: all of them
#
#   locked        every call of cargo in the project builds what Cargo.lock says, and that fits
#                 Cargo.toml
#   policy        all crates come from the registry, and the libraries contain those that are
#                 listed here; where cargo-deny is installed, licences, sources and versions are
#                 those of deny.toml
#   msrv          the oldest compiler that Cargo.toml allows is the one that is used here
#   minimal       the oldest versions that Cargo.toml names are enough to compile everything, tests
#                 and benches too
#   reproducible  two builds in two folders, with two homes of cargo, have the same bytes
#
# --prove plants a fault for each part, which it has to find. The last line is `supply: N passed, N
# failed`.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake

prove=0
parts=()
for argument in "$@"; do
    case $argument in
    --prove) prove=1 ;;
    locked | policy | msrv | minimal | reproducible) parts+=("$argument") ;;
    *) echo "supply: no such part: $argument" >&2 && exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(locked policy msrv minimal reproducible)
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
out=$root/build/supply
passed=0
failed=0
mkdir -p "$out"

# test_case NAME COMMAND...
test_case() {
    local name=$1 log begin=$SECONDS
    shift
    # Not as a condition: there `set -e` would not count.
    set +e
    log=$(set -e && "$@" 2>&1)
    local status=$?
    set -e
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        echo "supply.$name passed ($((SECONDS - begin)) s)"
    else
        failed=$((failed + 1))
        printf '%s\nsupply.%s FAILED\n' "$log" "$name"
    fi
}

# must_fail NAME COMMAND...: with a planted fault.
must_fail() {
    local name=$1 log
    shift
    set +e
    log=$(set -e && "$@" 2>&1)
    local status=$?
    set -e
    if [ $status != 0 ]; then
        passed=$((passed + 1))
        echo "supply.prove.$name: seen: $(tail -n 1 <<<"$log" | cut -c1-100)"
    else
        failed=$((failed + 1))
        printf '%s\nsupply.prove.%s FAILED: the planted fault was not seen\n' "$log" "$name"
    fi
}

# ---- locked ----

# Lines that end in a backslash go on.
calls() {
    sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$@" | grep -E '\bcargo("?\}?"? |, ")(build|test|run|rustc|check|clippy|bench|metadata|tree)\b' | grep -vE '^ *#'
}

locked_calls() {
    local loose
    loose=$(calls "$@" | grep -v -e --locked || true)
    [ -z "$loose" ] || { printf 'without --locked:\n%s\n' "$loose"; return 1; }
}

project_calls() {
    local files=(.ci/run scripts/*.sh scripts/*.py CMakeLists.txt cmake/* c_tests/consumer/*.sh)
    # The pattern finds what it is meant to find.
    [ "$(calls "${files[@]}" | wc -l)" -ge 5 ] || { echo "hardly any call of cargo was found"; return 1; }
    locked_calls "${files[@]}"
}

locked() {
    test_case locked.lock cargo metadata --locked --format-version=1
    test_case locked.calls project_calls
    [ $prove = 1 ] || return 0
    echo 'cargo'' build --release' >"$out/loose.sh"
    must_fail locked locked_calls "$out/loose.sh"
}

# ---- policy ----

# All that is in the libraries besides Rust's standard library, as CMake builds them: without
# features. What is added has to be added here.
linked="flash_attention"

# sources FOLDER: every crate but those of this repository is the registry's, with a checksum.
sources() {
    awk -v RS= '
        !/^\[\[package/ || /name = "(benches|fa|flash_attention|flash_attention_fixed)"/ { next }
        !/\nsource = "registry\+https:\/\/github.com\/rust-lang\/crates.io-index"/ || !/\nchecksum = "[0-9a-f]+"/ {
            print "not of the registry:", $0; bad = 1 }
        END { exit bad }' "$1/Cargo.lock"
}

# links FOLDER: the library has no dependencies but those.
links() {
    local found
    found=$(cargo tree --locked --manifest-path "$1/Cargo.toml" --package flash_attention --target all \
        --edges normal --prefix none --format '{p}' | cut -d ' ' -f 1 | sort -u | xargs)
    [ "$found" = "$linked" ] || { echo "the libraries contain $found, not $linked"; return 1; }
}

# Of its checks, those that need no database from the network.
deny() {
    cargo-deny --locked --workspace --manifest-path "$1/Cargo.toml" check --config "$1/deny.toml" bans licenses sources
}

policy() {
    test_case policy.sources sources "$root"
    test_case policy.links links "$root"
    if command -v cargo-deny >/dev/null; then
        test_case policy.cargo_deny deny "$root"
    else
        echo "supply.policy.cargo_deny left out: cargo-deny is not installed"
    fi
    [ $prove = 1 ] || return 0
    local copy=$out/policy
    manifest "$copy"
    sed -i '0,/^source = "registry/s//source = "git/' "$copy/Cargo.lock"
    must_fail policy.sources sources "$copy"
    manifest "$copy"
    sed -i 's/^\[dev-dependencies\]/[dependencies]\nlibc = "0.2"\n\n&/' "$copy/Cargo.toml"
    (cd "$copy" && cargo update --quiet --workspace --offline)
    must_fail policy.links links "$copy"
    command -v cargo-deny >/dev/null || return 0
    manifest "$copy"
    sed -i 's/, "Unicode-3.0"//' "$copy/deny.toml"
    must_fail policy.licence deny "$copy"
}

# manifest FOLDER: all that cargo needs to see, but no history and no builds.
manifest() {
    rm -rf "$1"
    mkdir -p "$1"
    cp -r Cargo.toml Cargo.lock deny.toml build.rs src benches examples fixed tools include cbindgen.toml tests CMakeLists.txt cmake "$1"
}

# ---- msrv ----

oldest() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "$1"
}

# What is checked and released here is so with the oldest compiler, or with the newest: then another
# build is due.
is_oldest() {
    local version
    version=$(oldest "$1/Cargo.toml")
    [ -n "$version" ] || { echo "Cargo.toml has no rust-version"; return 1; }
    # No dependency asks for more.
    cargo metadata --locked --format-version=1 --manifest-path "$1/Cargo.toml" | python3 -c '
import json, sys
oldest = tuple(map(int, sys.argv[1].split(".")))
late = [p["name"] for p in json.load(sys.stdin)["packages"]
        if tuple(map(int, (p["rust_version"] or "1.0").split(".")))[:2] > oldest[:2]]
sys.exit(f"want a later compiler: {late}" if late else 0)' "$version"
    case $(rustc --version) in
    "rustc $version."*) ;;
    *)
        command -v rustup >/dev/null || { echo "neither is rustc $version, nor is there rustup to get it"; return 1; }
        rustup run "$version" cargo check --locked --lib --manifest-path "$1/Cargo.toml" --target-dir "$out/msrv"
        ;;
    esac
}

msrv() {
    test_case msrv is_oldest "$root"
    [ $prove = 1 ] || return 0
    manifest "$out/msrv-planted"
    sed -i 's/^rust-version = .*/rust-version = "1.86"/' "$out/msrv-planted/Cargo.toml"
    must_fail msrv is_oldest "$out/msrv-planted"
}

# ---- minimal ----

# The versions that Cargo.toml names, which its users may have, instead of the newest. -Z
# direct-minimal-versions is unstable, but there.
oldest_versions() {
    (cd "$1" && RUSTC_BOOTSTRAP=1 cargo update --quiet -Z direct-minimal-versions)
    grep -A1 -e '^name = "gemm"' -e '^name = "half"' "$1/Cargo.lock"
    cargo check --quiet --locked --workspace --all-targets --manifest-path "$1/Cargo.toml" --target-dir "$out/minimal-target"
}

minimal() {
    manifest "$out/minimal"
    test_case minimal oldest_versions "$out/minimal"
    [ $prove = 1 ] || return 0
    manifest "$out/minimal-planted"
    # Before it had bfloat16.
    sed -i 's/^half = .*/half = "1.0"/' "$out/minimal-planted/Cargo.toml"
    must_fail minimal oldest_versions "$out/minimal-planted"
}

# ---- reproducible ----

# build FOLDER BUILD [HOME OF CARGO]: both libraries, as CMake makes them for an installation.
build() {
    CARGO_HOME=${3:-${CARGO_HOME:-$HOME/.cargo}} cmake -S "$1" -B "$2" -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF >/dev/null
    CARGO_HOME=${3:-${CARGO_HOME:-$HOME/.cargo}} cmake --build "$2" --target flash_attention_static
    shared=$2/cargo/release/libflash_attention.so static=$2/cargo/release/static/libflash_attention.a
}

# same_bytes SOURCES...: the first as they are, where they are; another copy somewhere else.
same_bytes() {
    local other=$out/reproducible/another/folder
    build "$root" "$root/build"
    local first=$shared first_static=$static
    rm -rf "$out/reproducible"
    manifest "$other"
    # Another path to the same crates, which need not be downloaded again.
    ln -s "${CARGO_HOME:-$HOME/.cargo}" "$out/reproducible/cargo_home"
    eval "${1:-:}"
    build "$other" "$other/build" "$out/reproducible/cargo_home"
    sha256sum "$first" "$shared" "$first_static" "$static"
    cmp "$first" "$shared"
    cmp "$first_static" "$static"
    # No path of this machine.
    ! grep -q -F -e "$root" -e "${CARGO_HOME:-$HOME/.cargo}" "$first" "$first_static" \
        || { echo "the libraries contain paths of this machine"; return 1; }
}

reproducible() {
    test_case reproducible same_bytes
    [ $prove = 1 ] || return 0
    # Without what CMakeLists.txt does about paths.
    must_fail reproducible same_bytes "sed -i '/remap-path-prefix/d' '$out/reproducible/another/folder/CMakeLists.txt'"
}

for part in "${parts[@]}"; do $part; done
echo "supply: $passed passed, $failed failed"
[ $failed = 0 ]
