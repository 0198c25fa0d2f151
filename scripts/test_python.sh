#!/usr/bin/env bash
# Builds the wheel of the package for Python, installs it into a fresh environment, and there runs
# the package's tests and examples, and checks its types. Packages of PyPI that are named (jax,
# torch) are installed, too, for the tests on their arrays.
#
#   test_python.sh [PACKAGE...]

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cc python3-venv

suite=test_python
. scripts/test_case.sh
venv=$root/build/venv-python
data=$root/examples_c/data
tests=$root/bindings/python

install() {
    python3 -m venv --clear "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check \
        -r "$tests/requirements/test.txt" "$root"/build/wheel/cpu_attention-*.whl "$@" </dev/null
}

# Somewhere else, where only what is installed is found, without what a compiler's machine has set.
inside() {
    cd / && env --unset=PYTHONPATH --unset=LD_LIBRARY_PATH "$venv/bin/python" "$@"
}

# What is no source of Python's is there, too.
contents() {
    local list
    list=$("$venv/bin/python" -m zipfile --list "$root"/build/wheel/cpu_attention-*.whl)
    for file in cpu_attention/{libflash_attention.so,py.typed,include/flash_attention.h,torch/extension.cpp} licenses/{LICENSE-MIT,licences/README.txt,licences/libunwind/}; do
        grep -q "$file" <<<"$list" || { echo "no $file in the wheel:"; echo "$list"; return 1; }
    done
}

test_case wheel scripts/wheel.sh
if [ "$failed" = 0 ]; then
    test_case install install "$@"
fi
if [ "$failed" = 0 ]; then
    test_case contents contents
    test_case package inside "$tests/tests/run.py" "$data"
    test_case ten_lines inside "$tests/example/ten_lines.py"
    test_case paged_decode inside "$tests/example/paged_decode.py"
    test_case real_model inside "$tests/example/real_model.py" "$data"
    test_case types inside -m mypy --strict --cache-dir "$root/build/mypy" -p cpu_attention
fi
echo "test_python: $passed passed, $failed failed"
[ "$failed" = 0 ]
