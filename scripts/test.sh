#!/usr/bin/env bash
# All tests: those in Rust, then those in C, of packaging, and of the examples, then of the
# documentation, then ONNX's own of its operator Attention, the examples in other languages, the
# wheel for Python, a whole model's, and those of the library within ggml.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# For all of it at once.
. scripts/setup.sh cmake pkg-config g++ ninja python3-venv go doxygen libtbb-dev libpthreadpool-dev

# A failure in one language should not hide what the other has to say.
failed=0
# With the feature, so that all of it is one compilation; the C libraries are built without.
with=(--features flash_attention/rayon)
cargo test --locked "${with[@]}" --no-fail-fast --package flash_attention --package flash_attention_fixed --package fa --test '*' --bin fa || failed=1
cargo test --locked "${with[@]}" --doc || failed=1
# The tests within the library need a compilation of it of their own: not an optimised one, for
# kernels are tested above.
cargo test --locked --lib --config profile.test.opt-level=0 || failed=1
{ cmake -S . -B build && cmake --build build --parallel "$(nproc)" --target check; } || failed=1
scripts/docs.sh || failed=1

# Side by side: each downloads, and then computes on one thread for the most part.
logs=$(mktemp -d)
trap '{ jobs -p | xargs -r kill; } 2>/dev/null || true; rm -rf "$logs"' EXIT
others=(onnx languages python minilm ggml)
for other in "${others[@]}"; do
    scripts/test_"$other".sh >"$logs/$other" 2>&1 &
done
for job in $(jobs -p); do
    wait "$job" || failed=1
done
for other in "${others[@]}"; do
    cat "$logs/$other"
done
# Once more, to be seen: which instruction sets the tests above were about.
cargo test --locked "${with[@]}" --quiet --package flash_attention --package fa --test isas || failed=1
exit $failed
