#!/usr/bin/env bash
# Makes the wheel of the package for Python: with the shared library inside, for every Linux with
# glibc 2.17 or later and every Python from 3.10 on.
#
#   wheel.sh [FOLDER [MACHINE]]     FOLDER: where it goes; build/wheel. MACHINE: the processor;
#                                   aarch64, if not this one
#
# The shared library is cargo's static one of CMake's build (the same compilation, if that is up to
# date), linked by Zig, which has the symbols of every glibc. Zig, setuptools and auditwheel, which
# checks the result, come from pip.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
glibc=2.17
machine=${2:-$(uname -m)}
build=$root/build
out=${1:-$build/wheel}
mkdir -p "$out"
out=$(cd "$out" && pwd)

die() {
    echo "wheel: $1" >&2
    exit 1
}

. scripts/setup.sh cc python3-venv
. scripts/venv.sh
fa_venv "$build/venv-zig" bindings/zig/requirements.txt
fa_venv "$build/venv-wheel" bindings/python/requirements/wheel.txt
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
grep -q "^__version__ = \"$version\"$" bindings/python/cpu_attention/_version.py \
    || die "bindings/python/cpu_attention/_version.py does not say $version, as Cargo.toml does"
# Before 1.0 a minor version may break the ABI, as in build.rs.
case $version in
0.*) abi=${version%.*} ;;
*) abi=${version%%.*} ;;
esac

# The command and the folders of CMake's builds, so that nothing is compiled twice.
cargo=$build/cargo static=$build/cargo/release/libflash_attention.a arguments=()
if [ "$machine" != "$(uname -m)" ]; then
    . scripts/platform.sh
    fa_platform "$machine"
    cargo=$build/platforms/$machine/cmake/cargo static=$build/platforms/$machine/cmake/cargo/$FA_TARGET/release/libflash_attention.a
    arguments=(--target "$FA_TARGET" "${FA_BUILD_STD[@]}")
fi
env --unset=CARGO_BUILD_TARGET cargo rustc --quiet --lib --locked --target-dir "$cargo" "${arguments[@]}" \
    --config "build.rustflags=['--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=crates']" \
    --profile release --crate-type cdylib,staticlib

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/stage
mkdir "$stage"
cp -R bindings/python/{cpu_attention,pyproject.toml,setup.py,README.md} LICENSE-APACHE LICENSE-MIT "$stage"
find "$stage" -name __pycache__ -prune -exec rm -rf {} +
# For the extension of cpu_attention.torch, which is compiled where it is used.
mkdir "$stage/cpu_attention/include"
cp include/flash_attention.h "$stage/cpu_attention/include"
lib=$stage/cpu_attention/libflash_attention.so

printf '{\n    global: fa_*;\n    local: *;\n};\n' >"$work/exports.map"
export ZIG_GLOBAL_CACHE_DIR=$build/zig/global ZIG_LOCAL_CACHE_DIR=$build/zig/local
zig=$build/venv-zig/bin/python
# Unwinding is LLVM's, linked in, for panics that end at the C boundary: the C library is all that
# is needed.
"$zig" -m ziglang cc -target "$machine-linux-gnu.$glibc" -shared -o "$lib" -Wl,-s -Wl,--gc-sections \
    -Wl,--whole-archive "$static" -Wl,--no-whole-archive \
    -Wl,--version-script="$work/exports.map" -Wl,-soname,"libflash_attention.so.$abi" -Wl,-z,nodelete \
    -lunwind -lpthread -ldl -lm

python3 scripts/licences.py "$(command -v cargo)" "$root" "$stage/licences" ${FA_TARGET:+"$FA_TARGET"}
"$zig" - "$stage/licences" <<'PYTHON'
import pathlib, shutil, sys, ziglang
zig = pathlib.Path(ziglang.__file__).parent
for name, file in ("zig", zig / "LICENSE"), ("libunwind", zig / "lib/libunwind/LICENSE.TXT"):
    folder = pathlib.Path(sys.argv[1], name)
    folder.mkdir()
    shutil.copyfile(file, folder / file.name)
PYTHON

# 1980 is the first year that every archiver knows.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
FA_WHEEL_PLATFORM=manylinux_${glibc/./_}_$machine "$build/venv-wheel/bin/pip" wheel --quiet --disable-pip-version-check \
    --no-build-isolation --no-deps --wheel-dir "$work" "$stage" </dev/null
wheel=$(echo "$work"/*.whl)
name=$(basename "$wheel")

# What the library needs of a system, not only what the name says.
report=$("$build/venv-wheel/bin/auditwheel" show "$wheel") || die "auditwheel refuses $name"
echo "$report" | tr '\n' ' ' | grep -Eq "(constrains the platform tag to|the following platform tag:) +\"manylinux_${glibc/./_}_$machine\"" \
    || die "the library needs more than glibc $glibc: $report"
python3 scripts/check_symbols.py --stripped "$lib" include/flash_attention.h

# Those of other versions are in the way of who installs `*`.
rm -f "$out"/cpu_attention-*_"$machine".whl
mv "$wheel" "$out"
echo "$out/$name"
