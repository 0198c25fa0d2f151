# To be sourced. fa_venv FOLDER REQUIREMENTS: a virtual environment with these packages.

fa_venv() {
    mkdir -p "$(dirname "$1")"
    # Scripts that run side by side may want the same one. The copy says what was installed to the
    # end; after a change of the pins all is made anew.
    {
        flock 9
        cmp -s "$2" "$1/installed.txt" && return 0
        { python3 -m venv --clear "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"; } </dev/null \
            || { echo "venv: the packages in $2 could not be installed." >&2; exit 1; }
        cp "$2" "$1/installed.txt"
    } 9>"$1.lock"
}
