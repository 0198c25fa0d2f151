#!/usr/bin/env bash
# Packs what is installed, the licences of all that is inside, and checksums; CMake's target `dist`
# calls it with the environment it needs. The same libraries give the same archive, byte by byte.
#
#   dist.sh FOLDER SYSTEM ARGUMENT...     SYSTEM: such as linux-x86_64; arguments of CMake, as in the build that calls this

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$1
name=flash_attention-$FA_VERSION-$2
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/$name
# The system's order of names is not the same everywhere; neither are an installer's surroundings.
export LC_ALL=C
unset DESTDIR

# Not installed from the build that calls this: its folders may be those of some system.
"$CMAKE" -S "$root" -B "$work/build" -DCMAKE_INSTALL_LIBDIR=lib -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF "$@" >/dev/null
"$CMAKE" --install "$work/build" --prefix "$stage" >/dev/null
mkdir "$stage/docs"
cp "$root/docs/abi.md" "$stage/docs"
cp "$root"/LICENSE-* "$root/README.md" "$stage"
python3 "$root/scripts/licences.py" "$CARGO" "$root" "$stage/licences" ${FA_TARGET:+"$FA_TARGET"}
(cd "$stage" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum) >"$work/SHA256SUMS"
mv "$work/SHA256SUMS" "$stage"

# 1980 is the first year that every archiver knows.
tar -C "$work" --format=ustar --sort=name --mtime="@${SOURCE_DATE_EPOCH:-315532800}" --owner=0 --group=0 --numeric-owner \
    --mode=u=rwX,go=rX -cf "$work/$name.tar" "$name"
gzip -n "$work/$name.tar"
mkdir -p "$out"
# Those of other versions are in the way of who unpacks `*`.
rm -f "$out"/flash_attention-*.tar.gz*
mv "$work/$name.tar.gz" "$out"
cd "$out"
sha256sum "$name.tar.gz" >"$name.tar.gz.sha256"
echo "$out/$name.tar.gz"
