#!/usr/bin/env bash
# The library over MPI (integrations/mpi), under MPICH and Open MPI, on 1 to 4 processes, each run
# with a time limit: random problems against float64 and one process, what is sent, what is refused,
# the example, an installed library, and Python. Builds in build/mpi-mpich and build/mpi-openmpi;
# the library itself, where CMake has not. Installs both MPIs.
#
#   test_mpi.sh [PROBLEMS]      of each kind in each run of random problems

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/setup.sh cmake mpicc.mpich mpirun.mpich mpicc.openmpi mpirun.openmpi python3-mpi4py

problems=${1:-8}
suite=mpi
. scripts/test_case.sh

# More processes than cores, and in containers root.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
library=${FA_CARGO_TARGET_DIR:-$root/build/cargo}

build() {
    cmake -S . -B "$build" -DFA_BUILD_MPI=ON -DFA_BUILD_STATIC=OFF -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF \
        -DFA_CARGO_TARGET_DIR="$library" -DMPI_C_COMPILER="mpicc.$mpi" ${FA_MPI_CMAKE:-} \
        && cmake --build "$build" --parallel 2 --target all mpi_programs
}

# on RANKS COMMAND...
on() {
    local ranks=$1
    shift
    timeout --kill-after 10 240 "mpirun.$mpi" -n "$ranks" "$@"
}

# The example, as another project would build it.
installed() {
    local prefix=$build/prefix
    rm -rf "$prefix" "$build/consumer"
    mkdir "$build/consumer"
    cp integrations/mpi/consumer/CMakeLists.txt integrations/mpi/example.c "$build/consumer"
    cmake --install "$build" --prefix "$prefix" \
        && cmake -S "$build/consumer" -B "$build/consumer/build" -DCMAKE_PREFIX_PATH="$prefix" -DMPI_C_COMPILER="mpicc.$mpi" \
        && cmake --build "$build/consumer/build" && on 2 "$build/consumer/build/example" 500 2
}

# Only what the header declares can be seen.
symbols() {
    local name names
    names=$(nm --dynamic --defined-only "$programs/libflash_attention_mpi.so" | awk '{ print $3 }')
    for name in $names; do
        grep -q "\b$name(" integrations/mpi/flash_attention_mpi.h || { echo "$name is not in the header"; return 1; }
    done
    [ "$(wc -w <<<"$names")" -ge 11 ]
}

for mpi in mpich openmpi; do
    build=$root/build/mpi-$mpi
    programs=$build/integrations/mpi
    log=$(build 2>&1) || { printf '%s\n' "$log" | tail -n 40; echo "mpi: $passed passed, $((failed + 1)) failed ($mpi does not build)"; exit 1; }
    test_case "$mpi.symbols" symbols
    for ranks in 1 2 3 4; do
        test_case "$mpi.random.$ranks" on $ranks "$programs/random" "$problems" $ranks
        test_case "$mpi.random_small.$ranks" on $ranks "$programs/random_small" "$problems" 1$ranks
        test_case "$mpi.threads.$ranks" on $ranks "$programs/threads"
        test_case "$mpi.faults.$ranks" on $ranks "$programs/faults"
        test_case "$mpi.bytes.$ranks" on $ranks "$programs/bytes"
    done
    test_case "$mpi.example.4" on 4 "$programs/example" 2048 3
    test_case "$mpi.installed" installed
done
# Debian's mpi4py is for Open MPI.
python() {
    PYTHONPATH=bindings/python on 3 /usr/bin/python3 integrations/mpi/example.py "$programs/libflash_attention_mpi.so"
}
test_case python python
echo "mpi: $passed passed, $failed failed"
[ "$failed" = 0 ]
