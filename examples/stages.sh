# What the examples share: a script's stages, each of which is done once. It wants SEED and out, the folder of the results.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/children.sh

mkdir -p "$out/stages"
known=$(cat "$out/seed" 2> /dev/null || true)
if [ -n "$known" ] && [ "$known" != "$SEED" ]; then
    echo "error: $out was made with SEED=$known: move it away, or set OUT to another folder" >&2
    exit 2
fi
keep() { # keep FILE: standard input becomes the whole file
    cat > "$1.tmp"
    mv "$1.tmp" "$1"
}
echo "$SEED" | keep "$out/seed"

# A stage's marker holds its seconds, and what it made: a line for each file (bytes and name) under the paths in `made`.
stage() { # stage NAME COMMAND...: run it unless all that it made is still there and whole
    local marker=$out/stages/$1 start=$SECONDS flaw
    if [ -f "$marker" ]; then
        flaw=$(first_flaw "$marker")
        [ -n "$flaw" ] || return 0
        printf '\n%s is missing or not whole: stage %s is done again\n' "$flaw" "$1"
        # the rest of it may be as damaged, and a trainer does not go on from that
        sed -n 's/^made //p' "$marker" | while read -r path; do rm -rf "$path"; done
        rm "$marker"
    fi
    printf '\n== %s\n' "$1"
    made=()
    "${@:2}"
    {
        echo $((SECONDS - start))
        for path in "${made[@]}"; do
            echo "made $path"
            find "$path" -type f -printf '%s %p\n'
        done
    } | keep "$marker"
}

first_flaw() { # first_flaw MARKER: the first file that is not as the stage left it; nothing where all are
    local size path
    [ -s "$1" ] || { echo "$1" && return; }
    while read -r size path; do
        [ "$size" = made ] && continue
        [ "$(stat -c %s "$path" 2> /dev/null)" = "$size" ] || { echo "$path" && return; }
    done < <(tail -n +2 "$1")
}
