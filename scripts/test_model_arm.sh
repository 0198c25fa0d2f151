#!/usr/bin/env bash
# Builds the library for 64-bit Arm, and asks LLVM's models of three cores how fast its hot loops
# are: scripts/model_arm.py, which fails where one is too slow, has a call or uses the stack.
# Nothing is executed.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh
. scripts/platform.sh
fa_setup
fa_platform aarch64
suffix=-22
if ! command -v "llvm-mca$suffix" >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fa_die "llvm-mca$suffix is missing; it is in Debian's package llvm-22."
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends llvm-22
fi
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS
cargo rustc --locked --target-dir build/model "${FA_CARGO[@]}" --release --config profile.release.lto=false --lib \
    --crate-type staticlib
scripts/model_arm.py "build/model/$FA_TARGET/release/libflash_attention.a" --suffix "$suffix" --check
