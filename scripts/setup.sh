#!/usr/bin/env bash
# Sees to it that the tools named as arguments are there: cmake, pkg-config, g++ (none: all three),
# doxygen, go, ninja, python3-venv; libraries that only tests use: libtbb-dev, libpthreadpool-dev;
# compilers for other platforms such as aarch64-linux-gnu-g++, and qemu-aarch64-static and its like,
# or wine64, which run their programs; MPIs: mpicc.mpich, mpirun.mpich, mpicc.openmpi,
# mpirun.openmpi, python3-mpi4py (with numpy, for the system's Python). What is there is left alone.
# The other scripts source this file, for PATH.

fa_die() {
    echo "setup: $1" >&2
    exit 1
}

# fa_has TOOL: whether it is there.
fa_has() {
    case $1 in
    # Not a program: Debian's Python is without what puts pip into a virtual environment.
    python3-venv) python3 -c 'import ensurepip' 2>/dev/null ;;
    python3-mpi4py) /usr/bin/python3 -c 'import mpi4py, numpy' 2>/dev/null ;;
    libtbb-dev) fa_has_header c++ tbb/parallel_for.h ;;
    libpthreadpool-dev) fa_has_header c pthreadpool.h ;;
    lib* | wine64 | wasi-libc) dpkg -s "$1" >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# fa_has_header LANGUAGE HEADER: whether the compiler finds it.
fa_has_header() {
    echo "#include <$2>" | cc -E -x "$1" - >/dev/null 2>&1
}

fa_setup() {
    local build tool pip=yes missing=() packages=()
    [ $# -gt 0 ] || set -- cmake pkg-config g++
    build=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")/build

    # Where rustup puts cargo, and where an earlier run of this script put cmake and ninja.
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:$build/venv/bin
    export PATH

    command -v cargo >/dev/null || fa_die "cargo is missing; install Rust (1.95 or later) with rustup."
    for tool in cc make python3; do
        command -v "$tool" >/dev/null || fa_die "$tool is missing; install it with your package manager."
    done

    for tool in "$@"; do
        fa_has "$tool" || missing+=("$tool")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    # The packages of Debian and its relatives are called like the tools, but for these.
    for tool in "${missing[@]}"; do
        case $tool in
        go) packages+=(golang-go) ;;
        ninja) packages+=(ninja-build) ;;
        # With the threads of POSIX.
        x86_64-w64-mingw32-g++) packages+=(g++-mingw-w64-x86-64-posix) ;;
        *-linux-gnu*-g++) packages+=("g++-${tool%-g++}") ;;
        musl-gcc) packages+=(musl-tools) ;;
        mpirun.mpich) packages+=(mpich) ;;
        mpicc.mpich) packages+=(libmpich-dev) ;;
        mpirun.openmpi) packages+=(openmpi-bin) ;;
        mpicc.openmpi) packages+=(libopenmpi-dev) ;;
        python3-mpi4py) packages+=(python3-mpi4py python3-numpy) ;;
        qemu-*-static) packages+=(qemu-user-static) ;;
        *) packages+=("$tool") ;;
        esac
        case $tool in cmake | ninja | lib*) ;; *) pip=no ;; esac
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing ${packages[*]} with apt-get"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq </dev/null || fa_die "apt-get update failed."
        apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null \
            || fa_die "apt-get could not install ${packages[*]}."
        return 0
    fi

    [ $pip = yes ] || fa_die "missing: ${missing[*]}; as root, on Debian: apt-get install ${packages[*]}"
    # What pip has, too; tests do without libraries, and say so.
    packages=()
    for tool in "${missing[@]}"; do
        case $tool in
        cmake | ninja) packages+=("$tool") ;;
        lib*) echo "setup: $tool is missing; install it with your package manager to have its tests run" ;;
        esac
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    echo "setup: installing ${packages[*]} with pip, in a virtual environment in build/venv"
    { python3 -m venv "$build/venv" && "$build/venv/bin/pip" install --quiet "${packages[@]}"; } </dev/null \
        || fa_die "pip could not install ${packages[*]}; install it with your package manager."
}

fa_setup "$@"
