#!/bin/sh
# Uses the library as another project would; CTest calls it with the environment it needs. The lines
# between "README begin" and "README end" of the files beside it are those of the README.
#
#   run.sh find_package|make|cc|add_subdirectory|fetch|one_library|install|beside|dist FOLDER
#
# For another processor or system: FA_TOOLCHAIN is CMake's toolchain file, FA_EMULATOR the words
# that run a program, FA_SYSTEM what CMake calls the system (empty: Linux), FA_LIBC its C library
# (empty: glibc).

set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
way=$1
# Nothing may depend on a path without spaces.
work="$2/a path"
prefix="$work/prefix"
# Programs must find the library, and the install step its prefix, without help; make may be what
# started this.
unset LD_LIBRARY_PATH DESTDIR MAKEFLAGS MFLAGS MAKELEVEL CMAKE_PREFIX_PATH CMAKE_GENERATOR CMAKE_BUILD_TYPE

fail() {
    echo "$1" >&2
    exit 1
}

# What the systems call the shared library, and programs, and how they are compiled.
is_windows() { [ "${FA_SYSTEM:-}" = Windows ]; }
shared=libflash_attention.so.$FA_ABI
exe=
cc_lines=cc.sh
if is_windows; then
    shared=flash_attention.dll
    exe=.exe
    cc_lines=cc_windows.sh
fi

# needs PROGRAM NAME: a program that finds the other library by accident would prove nothing.
needs() {
    if is_windows; then
        needed=$("${OBJDUMP:-objdump}" -p "$1$exe" | sed -n 's/.*DLL Name: \(.*flash_attention.*\)/\1/p')
    else
        needed=$(readelf --dynamic --wide "$1" | sed -n 's/.*NEEDED.*\[\(.*libflash_attention.*\)\]/\1/p')
    fi
    [ "$needed" = "$2" ] || fail "$1 needs the shared library '$needed', not '$2'."
}

# The programs in a folder, which print the name of an instruction set and the same numbers
# anywhere.
run_programs() {
    needs "$1/program" "$shared"
    needs "$1/program_static" ""
    for program in program program_static; do
        printed=$(${FA_EMULATOR:-} "$1/$program$exe") || fail "$1/$program does not work."
        ! is_windows || printed=$(printf '%s' "$printed" | tr -d '\r')
        [ "${printed#*: }" = "3.52319 4.52319 5.52319 6.52319" ] || fail "$1/$program prints $printed."
    done
}

# build_cmake FOLDER CMAKE_ARGUMENTS...
build_cmake() {
    build=$1
    shift
    "$CMAKE" -S "$here" -B "$build" -DCMAKE_C_COMPILER="$CC" ${CXX:+"-DCMAKE_CXX_COMPILER=$CXX"} "$@"
    "$CMAKE" --build "$build"
    run_programs "$build"
    [ -n "$CXX" ] || return 0
    needs "$build/header" "$shared"
    ${FA_EMULATOR:-} "$build/header$exe" || fail "$build/header does not work."
}

# use_find_package PREFIX FOLDER CMAKE_ARGUMENTS...
use_find_package() {
    from=$1
    build=$2
    shift 2
    # A toolchain file has CMake look into the root of the other system only.
    build_cmake "$build" -DCMAKE_PREFIX_PATH="$from" ${FA_TOOLCHAIN:+"-Dflash_attention_DIR=$from/lib/cmake/flash_attention"} "$@"
    grep -q "^flash_attention_DIR:[A-Z]*=$from/" "$build/CMakeCache.txt" \
        || fail "CMake has found another library than that in $from."
}

# use_make PREFIX FOLDER: what else is installed on the machine is not seen.
use_make() {
    command -v pkg-config >/dev/null || fail "pkg-config is not installed."
    PKG_CONFIG_LIBDIR=$work/nowhere
    PKG_CONFIG_PATH=$(dirname "$(find "$1" -name flash_attention.pc)")
    export PKG_CONFIG_LIBDIR PKG_CONFIG_PATH
    modversion=$(pkg-config --modversion flash_attention)
    [ "$modversion" = "$FA_VERSION" ] || fail "pkg-config says that the version is $modversion, not $FA_VERSION."
    mkdir "$2"
    cp "$here/program.c" "$here/Makefile" "$2"
    make -C "$2" CC="$CC"
    run_programs "$2"
}

# run_lines FILE PREFIX: the README's lines with another prefix, in the current folder.
run_lines() {
    # shellcheck disable=SC2016 # they are expanded where they run
    printf '%s\n' 'cmake() { "$CMAKE" "$@"; }' 'cc() { "$CC" "$@"; }' >"$work/lines.sh"
    # The toolchain file that the lines name is an example.
    sed -n "/README begin/,/README end/ { s|/usr/local|'$2'|; s|cmake/toolchains/[a-z0-9_-]*[.]cmake|${FA_TOOLCHAIN:-}|; p }" \
        "$here/$1" >>"$work/lines.sh"
    sh -eu "$work/lines.sh"
}

# use_cc PREFIX FOLDER
use_cc() {
    mkdir "$2"
    cp "$here/program.c" "$2"
    (cd "$2" && run_lines $cc_lines "$1")
    run_programs "$2"
}

# What is in a prefix, besides what the programs use; with further arguments: the shared library is
# not cargo's.
check_tree() {
    lib=$(dirname "$(find "$1" -name libflash_attention.a)")
    # The tests of symbols look at cargo's libraries; these are the same.
    cmp "$lib/libflash_attention.a" "$FA_CARGO_LIBS/static/libflash_attention.a"
    if is_windows; then
        cmp "$1/bin/flash_attention.dll" "$FA_CARGO_LIBS/flash_attention.dll"
        cmp "$lib/libflash_attention.dll.a" "$FA_CARGO_LIBS/libflash_attention.dll.a"
    else
        check_names "$@"
    fi
    for header in "$root"/include/*; do
        cmp "$header" "$1/include/$(basename "$header")"
        # cargo-c has a list of its own.
        grep -q "^asset = .*\"include/$(basename "$header")\"" "$root/Cargo.toml" \
            || fail "cargo-c would not install $(basename "$header"): see Cargo.toml."
    done
}

# The shared library in a folder and its two other names.
check_names() {
    [ $# -gt 1 ] || cmp "$lib/libflash_attention.so.$FA_VERSION" "$FA_CARGO_LIBS/libflash_attention.so"
    [ "$(readlink "$lib/libflash_attention.so.$FA_ABI")" = "libflash_attention.so.$FA_VERSION" ] \
        || fail "libflash_attention.so.$FA_ABI is not a link to libflash_attention.so.$FA_VERSION."
    [ "$(readlink "$lib/libflash_attention.so")" = "libflash_attention.so.$FA_ABI" ] \
        || fail "libflash_attention.so is not a link to libflash_attention.so.$FA_ABI."
}

# Installed, then moved: nothing may depend on the first place.
install_library() {
    "$CMAKE" --install "$FA_BUILD" --prefix "$work/first" >/dev/null
    mv "$work/first" "$prefix"
}

# A copy of what the libraries are built from. With the date of each file, and the cargo folder of
# the main build, cargo has nothing to compile. Where the standard library is built, too, all is
# compiled once more, in another place.
copy_source() {
    source="$work/source"
    mkdir -p "$source/build/package"
    (cd "$root" && cp -pR Cargo.toml Cargo.lock build.rs CMakeLists.txt LICENSE-APACHE LICENSE-MIT README.md \
        benches bindings c_tests cmake docs examples fixed include scripts src tests tools "$source")
    case ${FA_CARGO_ARGS:-} in
    *build-std*) link_compiler ;;
    *) ln -s "$FA_CARGO_TARGET_DIR" "$source/build/package/cargo" ;;
    esac
}

# The place of the standard library below the source goes into the names in it: a compiler inside
# the source is at the same place in the copy.
link_compiler() {
    case ${RUSTC:-} in
    "$root"/*)
        folder=${RUSTC#"$root"/}
        folder=${folder%/*}
        mkdir -p "$source/$(dirname "$folder")"
        ln -s "$root/$folder" "$source/$folder"
        export RUSTC="$source/${RUSTC#"$root"/}"
        ;;
    esac
}

# The crates that left their names in the libraries, such as half-2.7.1, below what CMakeLists.txt
# calls crates.
crates_inside() {
    grep -aohE 'crates/[^/]+/[a-z0-9_-]+-[0-9]+[.][0-9]+[.][0-9]+/' "$1"/lib/*.a | cut -d/ -f3 | sort -u
}

# The shared library of an archive has no names but those that it exports; the others are in another
# archive. It fits older systems than this one.
check_release() {
    library="$1/lib/libflash_attention.so.$FA_VERSION"
    python3 "$root/scripts/check_symbols.py" --stripped "$library" "$1/include/flash_attention.h"
    ! "${READELF:-readelf}" --section-headers --wide "$library" | grep -q '\.symtab' || fail "$library is not stripped."
    "${READELF:-readelf}" --string-dump=.gnu_debuglink "$library" | grep -q "libflash_attention.so.$FA_VERSION.debug" \
        || fail "$library does not name the file of its names."
    tar -C "$work" -xzf "$FA_BUILD"/dist/debug/flash_attention-*-debug.tar.gz
    "${READELF:-readelf}" --symbols --wide "$work"/flash_attention-*/lib/*.debug | grep -q compiled_for \
        || fail "The archive of names has none."
    # The numbers of versions, of which the newest is the last.
    [ -n "$FA_NEWEST_GLIBC" ] || return 0
    newest=$("${READELF:-readelf}" --version-info --wide "$library" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    [ "$(printf '%s\n' "$newest" "GLIBC_$FA_NEWEST_GLIBC" | sort -V | tail -n 1)" = "GLIBC_$FA_NEWEST_GLIBC" ] \
        || fail "$library needs $newest."
}

check_licences() {
    grep -aq 'library/core/src' "$1"/lib/*.a || fail "The static library names no source, so nothing is known about licences."
    ls "$1"/licences/rust/* >/dev/null || fail "The archive lacks the licence of Rust."
    for crate in $(crates_inside "$1"); do
        # The second are those of a standard library that was built from Debian's source: its list
        # of licences has them.
        ls "$1/licences/$crate"/* >/dev/null 2>&1 || grep -qs "vendor/${crate%-*}-[*]" "$1/licences/rust/copyright" \
            || fail "The archive lacks the licence of $crate."
    done
    for file in LICENSE-APACHE LICENSE-MIT README.md docs/abi.md; do
        [ -s "$1/$file" ] || fail "The archive lacks $file."
    done
}

# An archive of the source, and the engine in C++ that fetches it.
copy_engine() {
    [ -n "$CXX" ] || fail "There is no C++ compiler."
    copy_source
    rm -r "$source/build"
    tar -C "$work" -cf "$work/source.tar" source
    mkdir "$work/engine"
    cp "$here/fetch/CMakeLists.txt" "$work/engine"
    cp "$here/header.cpp" "$work/engine/engine.cpp"
}

# build_engine FOLDER CMAKE_ARGUMENTS...: builds, installs into FOLDER/prefix, and runs it there,
# after the build is gone.
build_engine() {
    build=$1
    shift
    "$CMAKE" -S "$work/engine" -B "$build/build" -DCMAKE_CXX_COMPILER="$CXX" -DCMAKE_C_COMPILER="$CC" "$@"
    "$CMAKE" --build "$build/build"
    "$build/build/engine" || fail "$build/build/engine does not work."
    "$CMAKE" --install "$build/build" --prefix "$build/prefix" >/dev/null
    rm -r "$build/build"
    "$build/prefix/bin/engine" || fail "$build/prefix/bin/engine does not work."
}

# beside NAME WORDS RUSTC OPTION...: the static library and another Rust archive in one program, in
# both orders, by each linker that there is, without what is not used, too. WORDS are those of the
# program.
beside() {
    name=$1
    words=$2
    shift 2
    theirs="$work/$name.a"
    "$@" --edition 2018 --crate-type staticlib -O "$here/beside/other.rs" -o "$theirs" || fail "$1 does not work."
    ours="$FA_CARGO_LIBS/static/libflash_attention.a"
    for linker in bfd gold lld; do
        echo 'int main(void) { return 0; }' | "$CC" -fuse-ld=$linker -x c - -o "$work/linked" 2>/dev/null || continue
        for order in first last; do
            set -- "$ours" "$theirs"
            [ $order = first ] || set -- "$theirs" "$ours"
            "$CC" -std=c11 -O1 -Wall -Wextra -Werror -I"$root/include" -fuse-ld=$linker -Wl,--gc-sections -Wl,-z,noexecstack \
                "$here/beside/beside.c" "$@" -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc -o "$work/$name" \
                || fail "$name: $linker does not link the library ($order)."
            # shellcheck disable=SC2086 # words, or none
            "$work/$name" $words || fail "$name: what $linker linked does not work (the library is $order)."
            echo "beside $name: $linker, the library $order"
        done
    done
}

rm -rf "$2"
mkdir -p "$work"
# CMake reads this variable itself.
[ -z "${FA_TOOLCHAIN:-}" ] || export CMAKE_TOOLCHAIN_FILE="$FA_TOOLCHAIN"

case $way in
find_package)
    install_library
    check_tree "$prefix"
    use_find_package "$prefix" "$work/build"
    "$CMAKE" -S "$here/versions" -B "$work/versions" -DCMAKE_PREFIX_PATH="$prefix" -DFA_VERSION="$FA_VERSION"
    ;;
make)
    install_library
    use_make "$prefix" "$work/build"
    ;;
cc)
    install_library
    use_cc "$prefix" "$work/build"
    ;;
add_subdirectory)
    # With the cargo folder of the main build nothing is compiled a second time.
    build_cmake "$work/build" -DFLASH_ATTENTION_SOURCE="$root" -DFA_CARGO_TARGET_DIR="$FA_CARGO_TARGET_DIR"
    ;;
fetch)
    copy_engine
    # Nothing is compiled again.
    fetched() {
        build_engine "$@" -DCMAKE_DISABLE_FIND_PACKAGE_flash_attention=ON -DFLASH_ATTENTION_URL="$work/source.tar" \
            -DFA_CARGO_TARGET_DIR="$FA_CARGO_TARGET_DIR" -DFA_BUILD_SHARED=ON -DFA_BUILD_STATIC=ON
    }
    fetched "$work/shared" -DBUILD_SHARED_LIBS=ON
    needs "$work/shared/prefix/bin/engine" "$shared"
    check_tree "$work/shared/prefix"
    fetched "$work/static"
    needs "$work/static/prefix/bin/engine" ""
    # What the engine has brought along is what find_package finds.
    build_engine "$work/found" -DCMAKE_PREFIX_PATH="$work/shared/prefix" -DBUILD_SHARED_LIBS=ON \
        -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON
    needs "$work/found/prefix/bin/engine" "$shared"
    ;;
one_library)
    # One alone, in a build for development: hardly optimised, which takes seconds.
    copy_engine
    export CARGO_PROFILE_FAST_OPT_LEVEL=0
    for kind in shared static; do
        needed=$shared is_shared=ON
        [ $kind = shared ] || needed='' is_shared=OFF
        build_engine "$work/$kind" -DCMAKE_DISABLE_FIND_PACKAGE_flash_attention=ON -DFLASH_ATTENTION_URL="$work/source.tar" \
            -DFA_CARGO_TARGET_DIR="$FA_CARGO_TARGET_DIR" -DFA_FAST_BUILD=ON -DBUILD_SHARED_LIBS=$is_shared
        needs "$work/$kind/prefix/bin/engine" "$needed"
        case $kind$(cd "$work/$kind/prefix/lib" && echo *.a) in
        shared"*.a" | staticlibflash_attention.a) ;;
        *) fail "Another library than the $kind one was installed." ;;
        esac
        # The other kind is asked for, and not there.
        build_engine "$work/found_$kind" -DCMAKE_PREFIX_PATH="$work/$kind/prefix" -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON
        needs "$work/found_$kind/prefix/bin/engine" "$needed"
    done
    ;;
install)
    command -v ninja >/dev/null || fail "ninja is not installed."
    copy_source
    for CMAKE_GENERATOR in Ninja "Unix Makefiles"; do
        for CMAKE_BUILD_TYPE in Debug Release; do
            export CMAKE_GENERATOR CMAKE_BUILD_TYPE
            rm -rf "$prefix" "$source/build/package/CMakeCache.txt" "$source/build/package/CMakeFiles"
            (cd "$source" && run_lines install.sh "$prefix")
            grep -q "^CMAKE_BUILD_TYPE:.*=$CMAKE_BUILD_TYPE\$" "$source/build/package/CMakeCache.txt" \
                || fail "This was not a build of type $CMAKE_BUILD_TYPE."
            check_tree "$prefix"
            use_find_package "$prefix" "$work/$CMAKE_GENERATOR $CMAKE_BUILD_TYPE"
        done
    done
    # One of the tests' programs, as developers build them.
    "$CMAKE" -S "$source" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DFA_BUILD_EXAMPLES=OFF \
        -DCMAKE_C_COMPILER="$CC" -DFA_CARGO_TARGET_DIR="$source/build/package/cargo"
    # Where there are no libraries yet, Ninja must know who makes them.
    for library in release/libflash_attention.so release/static/libflash_attention.a; do
        ninja -C "$source/build" -t query "package/cargo/$library" | grep -q 'input: CUSTOM_COMMAND' \
            || fail "Ninja does not know who makes $library."
    done
    "$CMAKE" --build "$source/build" --target version.shared version.static
    "$source/build/c_tests/version.shared" && "$source/build/c_tests/version.static"
    ;;
beside)
    # Once by the compiler that made the library, once by others, such as a distribution's.
    beside abort no-panic "$RUSTC" -C panic=abort
    beside unwind '' "$RUSTC"
    beside fat '' "$RUSTC" -C lto=fat -C codegen-units=1 -C embed-bitcode=yes
    for other in ${FA_OTHER_RUSTC:-/usr/bin/rustc}; do
        if [ -x "$other" ] && [ "$("$other" --version)" != "$("$RUSTC" --version)" ]; then
            beside other '' "$other"
            beside other_fat '' "$other" -C lto=fat -C codegen-units=1 -C embed-bitcode=yes
        fi
    done
    ;;
dist)
    "$CMAKE" --build "$FA_BUILD" --target dist
    copy_source
    # Other source, rights and dates of files: the same bytes.
    umask 077
    made=install.sh
    [ -z "${FA_TOOLCHAIN:-}" ] || made=cross.sh
    (cd "$source" && run_lines $made "$prefix" && run_lines archive.sh "$prefix")
    (cd "$source/build/package/dist" && find . -name '*.tar.gz*') | while read -r archive; do
        cmp "$source/build/package/dist/$archive" "$FA_BUILD/dist/$archive"
    done
    # All that is left is what was unpacked.
    mv "$source"/build/package/dist/flash_attention-*/ "$work/unpacked"
    rm -rf "$source" "$prefix"
    if is_windows; then
        check_tree "$work/unpacked"
    else
        check_tree "$work/unpacked" dist
        check_release "$work/unpacked"
    fi
    check_licences "$work/unpacked"
    ! grep -rlaF "$root/" "$work/unpacked" || fail "The archive names the folder that it was built in."
    (cd "$work/unpacked" && find . -type f ! -name SHA256SUMS | while read -r file; do
        grep -q "  ${file#./}\$" SHA256SUMS || fail "$file has no checksum."
    done)
    if is_windows; then
        # It has no such thing as a path in a program: the library lies beside it, or where PATH
        # leads.
        export WINEPATH="$work/unpacked/bin"
    fi
    use_find_package "$work/unpacked" "$work/build"
    use_make "$work/unpacked" "$work/make"
    # Its lines name the libraries of glibc.
    [ "${FA_LIBC:-}" = musl ] || use_cc "$work/unpacked" "$work/cc"
    ;;
*)
    fail "run.sh does not know $way."
    ;;
esac
