# To be sourced. Debian's own Rust, unpacked into a folder: a compiler whose standard library is
# there as source, and for other processors. Installing the packages would put another rustc into
# the path, and another architecture into the system.

fa_debian_die() {
    echo "debian_rust: $1" >&2
    exit 1
}

# fa_debian_apt FOLDER PROGRAM ARGUMENT...: with lists of its own, of the security archive, where
# the newest Rust is.
fa_debian_apt() {
    local folder=$1 program=$2
    shift 2
    "$program" -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o APT::Architectures::="$(dpkg --print-architecture)" -o APT::Architectures::=arm64 \
        -o quiet=2 "$@" </dev/null
}

# The archive of the Debian that is installed here, in a list of sources.
fa_debian_sources() {
    local key=/usr/share/keyrings/debian-archive-keyring.gpg archive
    # shellcheck disable=SC2016 # Variables of apt's own.
    archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Label: Debian-Security' | head -n 1)
    [ -n "$archive" ] || return 1
    echo "deb [signed-by=$key] $archive"
}

# fa_debian_rust FOLDER [PART...]: FOLDER/rustc runs the compiler. Parts: src, the source of the
# standard library (for -Zbuild-std); arm64, the standard library for aarch64-unknown-linux-gnu.
fa_debian_rust() {
    local folder=$1
    shift
    mkdir -p "$folder"
    # Scripts that run side by side may want the same one.
    (flock 9 && fa_debian_unpack "$folder" "$@") 9>"$folder/lock" || exit 1
}

fa_debian_unpack() {
    local folder=$1 part parts=() packages=(rustc-web libstd-rust-web-dev) version std llvm temp file
    shift
    for part in "$@"; do
        [ -f "$folder/parts/$part" ] || parts+=("$part")
    done
    [ -x "$folder/rustc" ] && [ ${#parts[@]} = 0 ] && return 0
    command -v apt-get >/dev/null || fa_debian_die "needs apt-get, and Debian's archive"
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
    fa_debian_sources >"$folder/apt/sources.list" \
        || { apt-get update -qq </dev/null && fa_debian_sources >"$folder/apt/sources.list"; } \
        || fa_debian_die "this is not Debian"
    fa_debian_apt "$folder" apt-get update || fa_debian_die "apt-get update failed"
    version=$(fa_debian_apt "$folder" apt-cache policy rustc-web | sed -n 's/.*Candidate: //p')
    if [ -x "$folder/rustc" ] && [ "$version" = "$(cat "$folder/version")" ]; then
        packages=()
    else
        # All parts are of one version.
        [ ! -d "$folder/parts" ] || parts=("$@" $(ls "$folder/parts"))
        rm -rf "$folder"/{usr,parts,rustc}
        std=$(fa_debian_apt "$folder" apt-cache depends libstd-rust-web-dev | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p')
        llvm=$(fa_debian_apt "$folder" apt-cache depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p')
        [ -n "$std" ] && [ -n "$llvm" ] || fa_debian_die "Debian's Rust was not found"
        packages+=("$std" "$llvm")
    fi
    for part in "${parts[@]}"; do
        case $part in
        src) packages+=(rust-web-src) ;;
        arm64) packages+=(libstd-rust-web-dev:arm64) ;;
        *) fa_debian_die "no such part: $part" ;;
        esac
    done
    echo "debian_rust: unpacking ${packages[*]} into $folder" >&2
    temp=$(mktemp -d)
    (cd "$temp" && fa_debian_apt "$folder" apt-get download "${packages[@]}") \
        || fa_debian_die "apt-get could not download ${packages[*]}"
    for file in "$temp"/*.deb; do dpkg-deb -x "$file" "$folder"; done
    rm -rf "$temp"
    mkdir -p "$folder/parts"
    for part in "${parts[@]}"; do touch "$folder/parts/$part"; done
    echo "$version" >"$folder/version"
    # Cargo finds the source of the standard library by the name that the compiler is called by,
    # also through a link.
    cat >"$folder/rustc" <<EOF
#!/bin/sh
here=\$(cd "\$(dirname "\$0")" && pwd)
LD_LIBRARY_PATH=\$here/usr/lib/$(uname -m)-linux-gnu exec "\$here/usr/bin/rustc" --sysroot "\$here/usr" "\$@"
EOF
    chmod +x "$folder/rustc"
}
