# Sourced by demo.sh and test.sh, which have set -euo pipefail and stand in the project's root.
#
# ensure_environment EXTRA makes .venv and installs the package with that extra, unless it has been
# done since pyproject.toml last changed. The package is installed in editable form, so that edits
# count at once. pip is the user's: its configuration and every PIP_* variable are respected.

VENV=.venv

# Threads of torch that wait for each other sleep instead of spinning: on a machine that does
# something else as well, spinning costs more than the work.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    printf '%s\n' \
        "Python 3.11 or later with its venv module is needed; python3 here is" \
        "    $(python3 --version 2>&1 || true)" \
        "Install it (Debian and Ubuntu: python3-venv too), or name it: PYTHON=/path/to/python3.12" >&2
    return 1
}

# Told apart: venv/bin on Linux and macOS, venv/Scripts on Windows under Git Bash.
set_binaries() {
    BIN=$VENV/bin
    if [ -d "$VENV/Scripts" ]; then BIN=$VENV/Scripts; fi
}

ensure_environment() {
    local extra=$1 stamps=$VENV/persam-installed wanted interpreter quiet=()
    set_binaries
    # The folder of stamps is absent while pip works: an interrupted install is done from scratch.
    if ! [ -d "$stamps" ] || ! "$BIN/python" -c '' 2>/dev/null; then
        interpreter=$(find_python)
        echo "making $VENV with $("$interpreter" --version)"
        "$interpreter" -m venv --clear "$VENV"
        mkdir "$stamps"
        set_binaries
    fi
    if cmp -s pyproject.toml "$stamps/$extra.toml"; then
        echo "using $VENV as it is"
        return
    fi
    if ! [ -t 1 ]; then quiet=(--quiet); fi
    echo "installing the package and its '$extra' extra into $VENV (torch is large: some minutes)"
    mv "$stamps" "$stamps.partial"
    "$BIN/python" -m pip install ${quiet[@]+"${quiet[@]}"} --editable ".[$extra]"
    cp pyproject.toml "$stamps.partial/$extra.toml"
    mv "$stamps.partial" "$stamps"
}
