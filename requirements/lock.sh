#!/usr/bin/env bash
# Writes requirements/cpu.txt and gpu.txt from setup.py's bounds. What is pinned and still fits stays.
#
#     make lock            make lock UPGRADE=--upgrade    the newest releases that fit
#
# Needs uv. torch's CPU build comes from PyTorch's own index, or from the folder that UV_FIND_LINKS names.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=() # all but the hardware's
for extra in $(sed -n 's/^        "\([a-z]*\)": \[.*/\1/p' setup.py); do
    case $extra in cpu | gpu) ;; *) extras+=(--extra "$extra") ;; esac
done
form=(--python-platform x86_64-manylinux_2_28 --no-annotate --no-header --no-emit-index-url --no-emit-find-links)

lock() { # lock EXTRA [OPTION...]
    local file=requirements/$1.txt
    # shellcheck disable=SC2086  # no option, or one
    uv pip compile --quiet setup.py --python-version 3.11 --extra "$1" "${extras[@]}" "${form[@]}" \
        --output-file "$file" ${UPGRADE:-} "${@:2}"
    sed -i "1i # The set with setup.py's extra $1, as it was tested. Made by: make lock" "$file"
}

if [ -n "${UV_FIND_LINKS:-}" ]; then lock cpu; else lock cpu --torch-backend cpu; fi
sed -i '/^\(torchvision\|torchaudio\|torchcodec\)==/d' requirements/cpu.txt # requirements/install.sh removes them
lock gpu
