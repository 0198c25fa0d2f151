#!/usr/bin/env bash
# Runs Rust tests on an emulated processor (Bochs) that has AVX-512 with VNNI and BF16.
#
#   test_emulated.sh [TEST...]                     files of tests/ without ".rs"; default: kernels
#   test_emulated.sh --run PROGRAM [ARGUMENT...]   passes on a program's output and exit code
#
# The emulated machine has one core, 1 GiB of memory, Linux, and no files but the programs and their
# shared libraries. It is 50 to 100 times as slow as a real one. The tests therefore take one in
# FA_TEST_SHARE samples (default: 61), of the instruction sets whose names begin with FA_TEST_ISA
# (default: avx512). All variables FA_... are passed on to the programs.
#
# The first run builds Bochs and downloads a kernel, both from Debian, into build/emulated. FA_BOCHS
# and FA_KERNEL name others. The last line is `emulated: N passed, N failed`.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$root/build/emulated
sources=$root/tests/emulated
bochs=${FA_BOCHS:-$folder/bochs}
kernel=${FA_KERNEL:-$folder/vmlinuz}
# The release of Debian that both come from: the first whose Bochs has BF16.
release=trixie

die() {
    echo "test_emulated: $1" >&2
    exit 1
}

# mirror: where the Debian that is installed here comes from.
mirror() {
    # shellcheck disable=SC2016 # A variable of apt's own.
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1
}

# apt PROGRAM ARGUMENT...: apt-PROGRAM on that release. The installed system is left alone.
apt() {
    local program=apt-$1 key=/usr/share/keyrings/debian-archive-keyring.gpg from list=$folder/apt/sources.list
    shift
    if ! [ -f "$list" ]; then
        command -v apt-get >/dev/null || die "there is no apt-get; name Bochs and a kernel with FA_BOCHS and FA_KERNEL"
        mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
        from=$(mirror)
        [ -n "$from" ] || { apt-get update -qq </dev/null && from=$(mirror); }
        [ -n "$from" ] || die "this is not Debian; name Bochs and a kernel with FA_BOCHS and FA_KERNEL"
        printf "%s [signed-by=$key] $from $release main\n" deb deb-src >"$list.new"
        apt_on "$list.new" apt-get update -qq
        mv "$list.new" "$list"
    fi
    apt_on "$list" "$program" "$@"
}

# apt_on LIST PROGRAM ARGUMENT...
apt_on() {
    local list=$1 program=$2
    shift 2
    "$program" -o Dir::Etc::sourcelist="$list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$folder/apt/lists" \
        -o Dir::Cache="$folder/apt/cache" -o APT::Sandbox::User=root "$@" </dev/null
}

# Builds Bochs with few devices. Debian's binary has a debugger, which makes it several times as
# slow.
build_bochs() {
    local work=$folder/bochs.build
    rm -rf "$work"
    mkdir -p "$work"
    # Some mirrors lack the .dsc file. apt-get then fails, after it has downloaded and verified the
    # rest.
    (cd "$work" && apt get source -qq --download-only bochs) || true
    tar -C "$work" --strip-components=1 -xf "$work"/bochs_*.orig.tar.xz || die "the source of Bochs was not found"
    (
        cd "$work"
        # Bochs 3.0 takes the memory operand of VDPBF16PS for four bytes: it scales a one-byte
        # displacement by 4, not by the width of the register, and reads from the wrong place.
        local table=cpu/decoder/ia_opcodes_evex.def
        sed -i '/^bx_define_opcode(BX_IA_EVEX_VDPBF16PS_/I s/OP_mVdq32/OP_mVdq/' "$table"
        export CFLAGS="-O2 -w" CXXFLAGS="-O2 -w"
        ./configure --enable-cpu-level=6 --enable-x86-64 --enable-all-optimizations --enable-trace-linking \
            --enable-avx --enable-evex --with-nogui --disable-docbook --disable-cdrom --disable-gameport --disable-xpm
        make -j"$(nproc)" bochs
    ) >"$folder/bochs.log" 2>&1 || die "Bochs was not built; see $folder/bochs.log"
    mv "$work/bochs" "$folder/bochs"
    rm -rf "$work"
}

get_kernel() {
    local package
    package=$(apt cache depends --important linux-image-cloud-amd64 | sed -n 's/.*Depends: //p')
    [ -n "$package" ] || die "Debian's kernel was not found"
    (cd "$folder" && apt get download -qq "$package")
    dpkg-deb --fsys-tarfile "$folder/$package"_*.deb | tar -x -O --wildcards './boot/vmlinuz-*' >"$folder/vmlinuz.new"
    mv "$folder/vmlinuz.new" "$folder/vmlinuz"
    rm "$folder/$package"_*.deb
}

prepare() {
    mkdir -p "$folder"
    [ -x "$bochs" ] || { echo "test_emulated: building Bochs" >&2 && build_bochs; }
    [ -f "$kernel" ] || get_kernel
    as --32 -o "$folder/rom.o" "$sources/rom.S"
    ld -m elf_i386 -Ttext=0 -e 0 --oformat=binary -o "$folder/rom" "$folder/rom.o"
    ${CC:-cc} -O2 -Wall -Wextra -Werror -static -s -o "$folder/init" "$sources/init.c"
}

# machine [--env NAME=VALUE]... PROGRAM [ARGUMENT...] [-- PROGRAM...]: runs programs there, for at
# most $limit seconds (0: any time).
limit=0
machine() {
    timeout $limit python3 "$sources/machine.py" "$bochs" "$kernel" "$folder/rom" "$folder/init" "$@"
}

# passed_on: options of `machine` for the environment variables of the library and its tests.
passed_on() {
    local name
    for name in $(compgen -e FA_ || true); do
        case $name in FA_BOCHS | FA_KERNEL) ;; *) printf -- '--env\0%s=%s\0' "$name" "${!name}" ;; esac
    done
}

if [ "${1:-}" = --run ]; then
    shift
    [ $# -gt 0 ] || die "--run needs a program"
    . "$root/scripts/setup.sh" g++ >&2
    prepare
    mapfile -d '' variables < <(passed_on)
    machine "${variables[@]}" "$@"
    exit
fi

cd "$root"
# The tests of kernels. The others test interfaces, memory limits or files.
[ $# -gt 0 ] || set -- general types blocks integers adversarial basics decode numerics
. scripts/setup.sh g++
prepare

targets=()
for test in "$@"; do
    [ -f "tests/$test.rs" ] || die "there is no tests/$test.rs"
    targets+=(--test "$test")
done

# AVX2 and scalar kernels are tested without emulation. A prime share meets all periods of samples.
export FA_TEST_SHARE=${FA_TEST_SHARE:-61} FA_TEST_ISA=${FA_TEST_ISA:-avx512}

log=$folder/log
cargo test --no-run --locked "${targets[@]}" --message-format=json-render-diagnostics >"$log.json"
cargo build --quiet --locked --profile test -p fa
programs=("$PWD/target/debug/fa" info)
while read -r program; do
    programs+=(-- "$program" --test-threads=1)
    # These need more time or memory than there is.
    for test in one_head_is_divided very_long_sequences caches_larger; do programs+=(--skip "$test"); done
done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$log.json")

mapfile -d '' variables < <(passed_on)
begin=$SECONDS
status=0
limit=3600
machine "${variables[@]}" "${programs[@]}" 2>&1 | tee "$log" || status=$?

# count WORD: the sum of what stands before it in the lines that tests end with.
count() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$log" | awk '{ n += $1 } END { print n + 0 }'
}
passed=$(count passed)
failed=$(count failed)
results=$(grep -c '^test result: ' "$log" || true)
# A test program without a result line did not finish.
unfinished=$((${#targets[@]} / 2 - results))
[ $unfinished -le 0 ] || failed=$((failed + unfinished))
[ $status = 0 ] || [ "$failed" -gt 0 ] || failed=1
for isa in avx512bf16 avx512vnni avx512; do
    grep -q "^ *$isa " "$log" || { echo "emulated: $isa was not there" && failed=$((failed + 1)); }
done
echo "emulated: $((SECONDS - begin)) s on the emulated machine"
echo "emulated: $passed passed, $failed failed"
[ "$failed" = 0 ]
