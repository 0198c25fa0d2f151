#!/usr/bin/env bash
# Builds the documentation, every warning an error: what is in Rust with rustdoc (target/doc), the
# manual of the C interface from its header with Doxygen (build/docs: html, and pages for man), and
# looks at the code, the links and the figures in README.md and docs. Installs Doxygen if it is
# missing.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh doxygen

out=build/docs
header=include/flash_attention.h
suite=docs
. scripts/test_case.sh

rust() {
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --locked --features rayon
}

manual() {
    local version
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
    rm -rf "$out"
    mkdir -p "$out"
    { cat docs/Doxyfile; printf 'PROJECT_NUMBER = %s\nOUTPUT_DIRECTORY = %s\n' "$version" "$out"; } | doxygen - || return 1
    # Doxygen makes a page of every field, too: `man 3 data` would be one of ours.
    find "$out/man/man3" -name '*.3' ! -name 'fa_*' ! -name 'FA_*' ! -name flash_attention.h.3 -delete
}

# Each function, structure, enumeration and constant of the header has its page, but for what its
# helpers are made of.
pages() {
    local name missing=0 names
    names=$(grep -oE '\bfa_[a-z0-9_]+\(' $header | tr -d '('; grep -oE '^} fa_[a-z_]+;' $header | tr -d '} ;'
        grep -oE '\bFA_[A-Z0-9_]+ =' $header | tr -d ' ='; grep -oE '^#define FA_[A-Z0-9_]+' $header | cut -d ' ' -f 2)
    [ "$(wc -l <<<"$names")" -ge 50 ] || { echo "the header has only so many names: $names"; return 1; }
    for name in $(sort -u <<<"$names" | grep -v '^fa_helper_'); do
        [ -f "$out/man/man3/$name.3" ] || { echo "no page: $name"; missing=1; }
    done
    return $missing
}

# A formula is none any more where * or _ has become emphasis, or | a table; Doxygen has no warning
# for that.
formulas() {
    local files
    files=$(grep -lE '<(emphasis|bold|strike|table|heading|superscript|subscript)>' "$out"/xml/*.xml | grep -v index.xml) || return 0
    echo "markup in:"
    grep -nE '<(emphasis|bold|strike|table|heading|superscript|subscript)>' $files
    return 1
}

# Tables and figures of each machine's comparison are those of its numbers.
comparison() {
    local fresh file machine same=0
    for machine in docs/comparison/*/; do
        fresh=$(mktemp -d)
        python3 benches/peers/report.py "$machine/comparison.json" "$fresh/tables.md" \
            && python3 benches/peers/figures.py "$machine/comparison.json" "$fresh" || same=1
        for file in "$fresh"/*; do
            cmp "$file" "$machine/${file##*/}" || same=1
        done
        rm -rf "$fresh"
    done
    fresh=$(mktemp --suffix .svg)
    python3 benches/peers/figures.py docs/comparison/*/comparison.json "$fresh" || same=1
    cmp "$fresh" docs/comparison/machines.svg || same=1
    rm -f "$fresh"
    return $same
}

# So are those of the model in llama.cpp.
llama() {
    local fresh same=0
    fresh=$(mktemp -d)
    python3 integrations/ggml/model.py draw docs/llama.cpp.json "$fresh/table.md" "$fresh/figure.svg" || same=1
    cmp "$fresh/figure.svg" docs/llama.cpp.svg || same=1
    ! grep -Fxvf docs/llama.cpp.md "$fresh/table.md" || same=1
    rm -rf "$fresh"
    return $same
}

# And those of attention over MPI.
beyond() {
    local fresh same=0
    fresh=$(mktemp -d)
    python3 integrations/mpi/model.py docs/beyond-one-machine.csv "$fresh/figure.svg" >"$fresh/table.md" || same=1
    cmp "$fresh/figure.svg" docs/beyond-one-machine.svg || same=1
    ! grep '^|' "$fresh/table.md" | grep -Fxvf docs/beyond-one-machine.md || same=1
    rm -rf "$fresh"
    return $same
}

test_case rust rust
test_case manual manual
test_case pages pages
test_case formulas formulas
test_case code python3 scripts/check_docs.py .
test_case comparison comparison
test_case llama llama
test_case beyond beyond
rm -rf "$out/xml"
echo "docs: $passed passed, $failed failed"
[ "$failed" = 0 ]
