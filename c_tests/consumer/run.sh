#!/bin/sh
# Uses the library as another project would; CTest calls it with the environment it needs.
#
#   run.sh find_package|pkg_config|add_subdirectory FOLDER

set -eu
here=$(cd "$(dirname "$0")" && pwd)
way=$1
work=$2
# Programs must find the library, and the install step its prefix, without help.
unset LD_LIBRARY_PATH DESTDIR

fail() {
    echo "$1" >&2
    exit 1
}

install_library() {
    "$CMAKE" --install "$FA_BUILD" --prefix "$1" >/dev/null
}

# A program that finds the other library by accident would prove nothing.
run() {
    needed=$(readelf --dynamic "$1" | grep -c 'NEEDED.*libflash_attention' || true)
    [ "$needed" = "$2" ] || fail "$1 depends on $needed shared libraries called libflash_attention, not on $2."
    "$1" || fail "$1 does not work."
}

# build_and_run FOLDER CMAKE_ARGUMENTS...
build_and_run() {
    folder=$1
    shift
    "$CMAKE" -S "$here" -B "$folder" -DCMAKE_C_COMPILER="$CC" ${CXX:+"-DCMAKE_CXX_COMPILER=$CXX"} -DFA_VERSION="$FA_VERSION" "$@"
    "$CMAKE" --build "$folder"
    run "$folder/shared" 1
    run "$folder/static" 0
    [ -z "$CXX" ] || run "$folder/cxx" 1
}

rm -rf "$work"
mkdir -p "$work"

case $way in
find_package)
    install_library "$work/prefix"
    build_and_run "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix"
    mv "$work/prefix" "$work/moved"
    build_and_run "$work/build_moved" -DCMAKE_PREFIX_PATH="$work/moved"
    ;;
pkg_config)
    command -v pkg-config >/dev/null || fail "pkg-config is not installed."
    install_library "$work/original"
    mv "$work/original" "$work/prefix"
    libdir=$(dirname "$(find "$work/prefix" -name libflash_attention.a)")
    export PKG_CONFIG_PATH="$libdir/pkgconfig"
    # shellcheck disable=SC2046 # pkg-config prints separate words
    "$CC" "$here/main.c" $(pkg-config --cflags --libs flash_attention) -Wl,-rpath,"$libdir" -o "$work/shared"
    run "$work/shared" 1
    # Where both libraries are, the linker takes the shared one.
    rm "$libdir"/libflash_attention.so*
    # shellcheck disable=SC2046
    "$CC" "$here/main.c" $(pkg-config --cflags --static --libs flash_attention) -o "$work/static"
    run "$work/static" 0
    ;;
add_subdirectory)
    # With the cargo folder of the main build nothing is compiled a second time.
    build_and_run "$work/build" -DFA_SOURCE_DIR="$here/../.." -DFA_CARGO_TARGET_DIR="$FA_CARGO_TARGET_DIR"
    ;;
*)
    fail "run.sh does not know $way."
    ;;
esac
