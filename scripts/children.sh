# For shell scripts that start long commands: a signal to the script ends all that it started.
# shellcheck shell=bash
#
#     . children.sh
#     run COMMAND...            wait for a command; a signal to the script does not wait for it
#     background FUNCTION...    go on beside it; its process is $!
#
# When the script is stopped (Ctrl-C, kill, hangup) or ends, every process below it gets SIGTERM, and what is still there
# ten seconds later SIGKILL. The script returns only then, so that its folders are free for the next one.

run() {
    "$@" &
    wait $!
}

background() {
    (
        end_with_script
        "$@"
    ) &
}

end_with_script() {
    trap 'end_descendants $BASHPID' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

descendants() { # descendants PROCESS: the ids of all processes below it that are not over
    cat /proc/[0-9]*/stat 2> /dev/null | awk -v top="$1" '
        {
            process = $1
            sub(/^.*\) /, "") # the name, which may hold anything
            parent[process] = $2
            over[process] = $1 == "Z"
        }
        END {
            for (process in parent)
                for (above = parent[process]; above in parent; above = parent[above])
                    if (above == top) { if (!over[process]) print process; break }
        }' || true
}

end_descendants() { # end_descendants PROCESS: all processes below it, and wait for them
    local processes process left tenths
    trap '' HUP INT TERM
    processes=$(descendants "$1")
    # shellcheck disable=SC2086  # a list of words
    kill -TERM $processes 2> /dev/null || true
    for ((tenths = 0; tenths < 100; tenths++)); do
        left=""
        for process in $processes; do
            case $(cat "/proc/$process/stat" 2> /dev/null) in "" | *") Z "*) ;; *) left="$left $process" ;; esac
        done
        [ -n "$left" ] || return 0
        sleep 0.1
    done
    # shellcheck disable=SC2086
    kill -KILL $left 2> /dev/null || true
}

end_with_script
