#!/usr/bin/env bash
# Packs what is installed, the licences of all that is inside, and checksums; CMake's target `dist`
# calls it with the environment it needs. The same libraries give the same archive, byte by byte.
#
#   dist.sh FOLDER SYSTEM ARGUMENT...
#
# SYSTEM: such as linux-x86_64; arguments of CMake, as in the build that calls this.
#
# FA_OLD_GLIBC=ON: the shared library is linked for older systems (old_glibc.py). FA_SPLIT=ON: the
# names of its functions, which debuggers and profilers want, go into an archive of their own, in
# FOLDER/debug, to be unpacked over the other.

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
shared=$stage/lib/libflash_attention.so.$FA_VERSION
if [ "${FA_OLD_GLIBC:-}" = ON ]; then
    python3 "$root/scripts/old_glibc.py" "$stage/lib/libflash_attention.a" "$shared" "$work/linked.so"
    mv "$work/linked.so" "$shared"
fi
if [ "${FA_SPLIT:-}" = ON ]; then
    mkdir -p "$work/debug/$name/lib"
    names=$work/debug/$name/lib/$(basename "$shared").debug
    "$OBJCOPY" --only-keep-debug "$shared" "$names"
    "$OBJCOPY" --strip-all --add-gnu-debuglink="$names" "$shared"
fi
mkdir "$stage/docs"
cp "$root/docs/abi.md" "$stage/docs"
cp "$root"/LICENSE-* "$root/README.md" "$stage"
python3 "$root/scripts/licences.py" "$CARGO" "$root" "$stage/licences" ${FA_TARGET:+"$FA_TARGET"}
(cd "$stage" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum) >"$work/SHA256SUMS"
mv "$work/SHA256SUMS" "$stage"

# pack FOLDER ARCHIVE OUT: what is in FOLDER.
pack() {
    # 1980 is the first year that every archiver knows.
    tar -C "$1" --format=ustar --sort=name --mtime="@${SOURCE_DATE_EPOCH:-315532800}" --owner=0 --group=0 --numeric-owner \
        --mode=u=rwX,go=rX -cf "$work/$2.tar" "$name"
    gzip -n "$work/$2.tar"
    mkdir -p "$3"
    # Those of other versions are in the way of who unpacks `*`.
    rm -f "$3"/flash_attention-*.tar.gz*
    mv "$work/$2.tar.gz" "$3"
    (cd "$3" && sha256sum "$2.tar.gz" >"$2.tar.gz.sha256")
    echo "$3/$2.tar.gz"
}

rm -rf "$out/debug"
[ "${FA_SPLIT:-}" != ON ] || pack "$work/debug" "$name-debug" "$out/debug"
pack "$work" "$name" "$out"
