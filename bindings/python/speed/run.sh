#!/usr/bin/env bash
# PyTorch's attention and models of Hugging Face's with and without this library, in turns. Prints a
# table of times, and keeps each line as JSON and a figure in build/speed_python. A quarter of an
# hour, and 5 GB to download before it.
#
#   bindings/python/speed/run.sh [--only WORKLOAD,...] [--threads 1,2] [--turns 15]
#                                [--output FOLDER]
#
# --only: workloads by the beginnings of their names; lines of earlier runs in the same folder stay
# beside them. LIBRARY: a shared library in place of the one that CMake builds. PYTHON: one that has
# the packages of bindings/python/requirements/torch.txt.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
cd "$root"
. scripts/setup.sh cmake g++ python3-venv
. scripts/venv.sh

if [ -z "${LIBRARY:-}" ]; then
    echo "speed: building the library" >&2
    cmake -S . -B build >/dev/null
    cmake --build build --target flash_attention_cargo >&2
    LIBRARY=$root/build/cargo/release/libflash_attention.so
fi
if [ -z "${PYTHON:-}" ]; then
    echo "speed: setting up PyTorch and transformers" >&2
    fa_venv "$root/build/venv-torch" bindings/python/requirements/torch.txt
    PYTHON=$root/build/venv-torch/bin/python
fi
exec "$PYTHON" bindings/python/speed/speed.py run "$LIBRARY" --output "$root/build/speed_python" "$@"
