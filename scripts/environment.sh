# The scripts beside it source this: a virtual environment in .venv with this project and some of its extras.

# environment EXTRA,… : makes it, or brings it up to date, and puts it first on PATH.
environment() {
    local extras=$1 stamp
    if ! [ -x .venv/bin/python ]; then
        make_environment
    fi
    stamp=$(printf '%s %s' "$extras" "$(sha256sum pyproject.toml)")
    if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" >&2
        printf '%s' "$stamp" >.venv/stamp
    fi
    # Where PYTHONDONTWRITEBYTECODE is set, each interpreter that imports the package would compile it once more.
    # What has not changed since is left as it is.
    env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m compileall -q gwsandbox >&2
    PATH=$PWD/.venv/bin:$PATH
}

make_environment() {
    local python
    for python in ${GWSANDBOX_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            break
        fi
        python=
    done
    if [ -z "$python" ]; then
        echo "$0: no Python 3.11 or newer found; install one, or name it in GWSANDBOX_PYTHON" >&2
        exit 1
    fi
    # Debian keeps a part of venv in a package of its own; without it the call fails, and leaves a broken folder.
    if ! "$python" -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq >&2 && apt-get install -y -qq python3-venv >&2
    fi
    "$python" -m venv .venv || {
        echo "$0: cannot make a virtual environment in $PWD/.venv; install python3-venv" >&2
        exit 1
    }
}
