#!/usr/bin/env bash
# Tests cpu_attention.torch and cpu_attention.transformers with the shared library that CMake
# builds, or the one in LIBRARY: the package on tensors of PyTorch, what takes the place of
# PyTorch's kernels, the operator, models of Hugging Face's. Not in scripts/test.sh, for it installs
# PyTorch (5 GB), in build/venv-torch, unless it is given a Python that has the packages of
# bindings/python/requirements/torch.txt.
#
# PYTORCH_TESTS: the folder `test` of PyTorch's source; its tests of attention on the CPU are run,
# too.
#
#   test_torch.sh [PYTHON]

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh g++ python3-venv
. scripts/venv.sh
lib=$(realpath "${LIBRARY:-build/cargo/release/libflash_attention.so}")
[ -f "$lib" ] || { echo "test_torch: $lib is missing; build it: cmake -S . -B build && cmake --build build" >&2; exit 1; }

python=${1:-}
if [ -z "$python" ]; then
    fa_venv "$root/build/venv-torch" bindings/python/requirements/torch.txt
    python=$root/build/venv-torch/bin/python
fi

suite=test_torch
. scripts/test_case.sh
# What was compiled before is not what is tested.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export XDG_CACHE_HOME=$cache

test_case package "$python" bindings/python/tests/run.py --library "$lib" "$root/examples_c/data"
for class in Overrides Samples Operator; do
    test_case "$class" "$python" -W ignore bindings/python/tests/pytorch/test_torch.py --library "$lib" "$class"
done
if [ -n "${PYTORCH_TESTS:-}" ]; then
    test_case pytorch_own "$python" bindings/python/tests/pytorch/own_tests.py --library "$lib" "$PYTORCH_TESTS"
else
    echo "test_torch: PyTorch's own tests are skipped, for PYTORCH_TESTS names no folder"
fi
test_case example env PYTHONPATH=bindings/python "$python" bindings/python/example/in_pytorch.py "$lib"
if "$python" -c 'import transformers' 2>/dev/null; then
    for class in Models Masks Elsewhere; do
        test_case "$class" "$python" -W ignore bindings/python/tests/pytorch/test_transformers.py --library "$lib" "$class"
    done
    test_case in_transformers env PYTHONPATH=bindings/python "$python" bindings/python/example/in_transformers.py "$lib"
else
    echo "test_torch: models of Hugging Face's are skipped, for there is no package transformers"
fi
echo "test_torch: $passed passed, $failed failed"
[ "$failed" = 0 ]
