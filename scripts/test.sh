#!/usr/bin/env bash
# All tests: those in Rust, then those in C, of packaging, and of the examples, then ONNX's own of its
# operator Attention, then the examples in other languages, then a whole model's.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# For all of it at once.
. scripts/setup.sh cmake pkg-config g++ ninja python3-venv go

# A failure in one language should not hide what the other has to say.
failed=0
cargo test --locked --no-fail-fast || failed=1
{ cmake -S . -B build && cmake --build build --parallel "$(nproc)" --target check; } || failed=1
scripts/test_onnx.sh || failed=1
scripts/test_languages.sh || failed=1
scripts/test_minilm.sh || failed=1
exit $failed
