#!/usr/bin/env bash
# Compares the engine in examples_c/minilm with the model's own tokeniser and with the model in
# float64. Needs what CMake builds. The first run downloads the model (80 MB).

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs=("$root"/build/examples_c/minilm.{shared,static})

for program in "${programs[@]}"; do
    [ -x "$program" ] || {
        echo "test_minilm: $program is missing; build it: cmake -S . -B build && cmake --build build" >&2
        exit 1
    }
done

"$root/examples_c/minilm/get_model.sh"
exec "$root/build/venv-minilm/bin/python" "$root/tests/python/minilm/run.py" "$root/build/minilm.bin" "${programs[@]}"
