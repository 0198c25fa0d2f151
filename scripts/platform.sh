# To be sourced, after scripts/setup.sh. fa_platform NAME sees to it that a bare x86-64 Debian can
# build for another platform, and run what it has built: the compilers and an emulator come from
# apt-get, Rust with its standard library is unpacked into build/debian-rust
# (scripts/debian_rust.sh), unless the installed one has it for this target.
#
# It sets FA_TARGET (Rust's name), FA_TOOLCHAIN (CMake's toolchain file), FA_RUN (the words that run
# a program), FA_BUILD_STD (arguments of cargo, if the standard library is to be built), and exports
# what cargo reads.

# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/debian_rust.sh"
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# The platforms that fa_platform knows. Those of the second list are for `cargo check`: there is no
# linker for them.
FA_PLATFORMS=(aarch64 i686 armv7 musl windows wasm)
FA_CHECKED=(wasm32 windows-msvc windows-arm64 macos macos-x86_64 ios android)

fa_platform() {
    local root name gnu='' cc='' parts=(src) std_features=()
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    FA_RUN=()
    case $1 in
    aarch64)
        FA_TARGET=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu parts=(arm64)
        FA_RUN=(qemu-aarch64-static -L "/usr/$gnu")
        ;;
    armv7)
        FA_TARGET=armv7-unknown-linux-gnueabihf gnu=arm-linux-gnueabihf
        FA_RUN=(qemu-arm-static -L "/usr/$gnu")
        ;;
    i686)
        # An x86-64 kernel runs it.
        FA_TARGET=i686-unknown-linux-gnu gnu=i686-linux-gnu
        FA_RUN=("/usr/$gnu/lib/ld-linux.so.2" --library-path "/usr/$gnu/lib")
        ;;
    musl)
        FA_TARGET=x86_64-unknown-linux-musl gnu=x86_64-linux-musl cc=musl-gcc
        # Not gcc's unwinder, which asks glibc for what is loaded.
        std_features=(panic-unwind backtrace system-llvm-libunwind)
        fa_setup musl-gcc libunwind-14-dev
        fa_unwinder_for_musl "$root/build/platforms/musl/lib"
        ;;
    windows)
        FA_TARGET=x86_64-pc-windows-gnu gnu=x86_64-w64-mingw32
        # Not in PATH: a package that this does not need makes the link.
        FA_RUN=(env WINEDEBUG=-all /usr/lib/wine/wine64)
        fa_setup wine64 x86_64-w64-mingw32-g++
        fa_wine
        ;;
    wasm)
        # With the vectors: a program for WebAssembly cannot ask whether they are there.
        FA_TARGET=wasm32-wasip1
        FA_RUN=("$root/build/venv-wasi/bin/python" "$root/tests/python/wasi/run.py")
        fa_setup python3-venv
        fa_venv "$root/build/venv-wasi" "$root/tests/python/wasi/requirements.txt"
        export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="-C target-feature=+simd128"
        ;;
    windows-msvc) FA_TARGET=x86_64-pc-windows-msvc ;;
    windows-arm64) FA_TARGET=aarch64-pc-windows-msvc ;;
    wasm32) FA_TARGET=wasm32-unknown-unknown ;;
    macos) FA_TARGET=aarch64-apple-darwin ;;
    macos-x86_64) FA_TARGET=x86_64-apple-darwin ;;
    ios) FA_TARGET=aarch64-apple-ios ;;
    android) FA_TARGET=aarch64-linux-android ;;
    *)
        echo "platform: no such platform: $1 (known: ${FA_PLATFORMS[*]} ${FA_CHECKED[*]})" >&2
        exit 1
        ;;
    esac
    FA_BUILD_STD=()
    [ -z "$gnu" ] || [ -n "$cc" ] || fa_setup "$gnu-g++"
    case ${FA_RUN[0]:-} in qemu-*) fa_setup "${FA_RUN[0]}" ;; esac
    if ! ls "$(rustc --print target-libdir --target "$FA_TARGET")"/libstd-*.rlib >/dev/null 2>&1; then
        # What its compiler loads.
        fa_setup libedit2 libxml2 libz3-4
        fa_debian_rust "$root/build/debian-rust" "${parts[@]}"
        [ "$1" != wasm ] || fa_wasi "$root/build/debian-rust"
        export RUSTC=$root/build/debian-rust/rustc
        if [ "${parts[*]}" = src ]; then
            # An unstable option of cargo's: with the compiler's own source there is no other way to
            # a library for this target.
            export RUSTC_BOOTSTRAP=1
            # By name, because some targets end at a panic, and others unwind.
            FA_BUILD_STD=(-Zbuild-std=std,panic_abort)
            [ ${#std_features[@]} = 0 ] || FA_BUILD_STD+=("-Zbuild-std-features=$(IFS=, && echo "${std_features[*]}")")
        fi
    fi
    [ -n "$gnu" ] || return 0
    FA_TOOLCHAIN=$root/cmake/toolchains/$gnu.cmake
    name=CARGO_TARGET_$(echo "$FA_TARGET" | tr '[:lower:]-' '[:upper:]_')
    # With the path that CMake finds: cargo takes another spelling for another linker, and compiles
    # anew.
    export "${name}_LINKER=$(command -v "${cc:-$gnu-gcc}")"
    [ ${#FA_RUN[@]} = 0 ] || export "${name}_RUNNER=${FA_RUN[*]}"
}

# fa_unwinder_for_musl FOLDER: LLVM's unwinder, as Debian has it for glibc, with the one function of
# that which musl lacks; and the compiler and CMake are told of it.
fa_unwinder_for_musl() {
    mkdir -p "$1"
    cp /usr/lib/llvm-14/lib/libunwind.a "$1/libunwind.a"
    printf '%s\n' '#include <stdarg.h>' '#include <stdio.h>' 'int __fprintf_chk(FILE *f, int flag, const char *format, ...);' \
        'int __fprintf_chk(FILE *f, int flag, const char *format, ...) {' '(void)flag; va_list list; va_start(list, format);' \
        'int n = vfprintf(f, format, list); va_end(list); return n; }' | musl-gcc -O1 -fPIC -c -x c - -o "$1/fprintf_chk.o"
    ar -q "$1/libunwind.a" "$1/fprintf_chk.o"
    export LIBRARY_PATH=$1 FA_UNWINDER=unwind
}

# fa_wasi FOLDER: Debian's C library for WASI, where Rust in this folder looks for it, and the
# installed Rust's linker.
fa_wasi() {
    local to=$1/usr/lib/rustlib/wasm32-wasip1/lib/self-contained host
    fa_setup wasi-libc
    mkdir -p "$to"
    cp /usr/lib/wasm32-wasi/{crt1-command.o,crt1-reactor.o,libc.a} "$to"
    # The standard library names them, and the C library is too old to have them: there are no
    # threads that would call them.
    printf 'pthread_%s\n' attr_destroy attr_init attr_setstacksize create detach join >"$to/missing.txt"
    CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS+=" -C link-arg=--allow-undefined-file=$to/missing.txt"
    host=$(rustc -vV | sed -n 's/^host: //p')
    export CARGO_TARGET_WASM32_WASIP1_LINKER="$(rustc --print sysroot)/lib/rustlib/$host/bin/rust-lld"
}

# fa_wine: a folder for what wine remembers, with a library of Windows' in it that Debian's wine
# lacks, and that Rust's takes random numbers from. Not in build/: it has links to everywhere, which
# cargo would follow.
fa_wine() {
    local system
    export WINEPREFIX=${TMPDIR:-/tmp}/flash_attention-wine-$(id -u)
    system=$WINEPREFIX/drive_c/windows/system32
    [ -d "$system" ] || "${FA_RUN[@]}" cmd /c exit >/dev/null 2>&1 || true
    [ -f "$system/bcryptprimitives.dll" ] \
        || printf '%s\n' '#include <stddef.h>' 'unsigned char __stdcall SystemFunction036(void *to, unsigned long bytes);' \
            '__declspec(dllexport) int ProcessPrng(unsigned char *to, size_t bytes);' \
            'int ProcessPrng(unsigned char *to, size_t bytes) { return SystemFunction036(to, (unsigned long)bytes); }' \
        | x86_64-w64-mingw32-gcc -O1 -shared -x c - -o "$system/bcryptprimitives.dll" -ladvapi32
}
