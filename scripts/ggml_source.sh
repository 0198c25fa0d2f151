#!/usr/bin/env bash
# Prints where llama.cpp's sources are, ggml's among them: those of the crate that
# benches/peers/ggml names. Sources of registries come by cargo.

set -euo pipefail
manifest=$(cd "$(dirname "${BASH_SOURCE[0]}")/../benches/peers/ggml" && pwd)/Cargo.toml
cargo fetch --quiet --locked --manifest-path "$manifest"
cargo metadata --format-version 1 --locked --manifest-path "$manifest" | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
manifest = next(p["manifest_path"] for p in packages if p["name"] == "llama-cpp-sys-2")
print(os.path.join(os.path.dirname(manifest), "llama.cpp"))'
