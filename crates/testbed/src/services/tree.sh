# Shell functions that end process trees by the id of their root. They need nothing but a POSIX shell,
# `sleep` with fractions, and /proc.

# Puts into $found the given processes, all their descendants, and every member of a process group whose
# leader is among them. A descendant may have a session of its own (each PostgreSQL backend has), and a
# member of the group may have lost its parent, so neither relation alone is enough.
find_trees() {
    found=" $* "
    grown=yes
    while [ "$grown" ]; do
        grown=
        for stat in /proc/[0-9]*/stat; do
            { read -r line <"$stat"; } 2>/dev/null || continue
            candidate=${line%% *}
            case $found in *" $candidate "*) continue ;; esac
            # After the command name, which may contain anything: state, parent, process group.
            # shellcheck disable=SC2086
            set -- ${line##*) }
            case $found in
            *" $2 "* | *" $3 "*)
                found="$found$candidate "
                grown=yes
                ;;
            esac
        done
    done
}

# Says whether a process runs. A zombie does not: where nobody reaps orphans it stays listed for ever.
is_running() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    case ${line##*) } in Z* | X*) return 1 ;; esac
}

# Kills the trees of the given processes and returns when none of their members runs any more.
kill_trees() {
    [ $# -gt 0 ] || return 0
    find_trees "$@"
    # Stopped processes do not fork, so the search ends with everything.
    known=
    while [ "$found" != "$known" ]; do
        known=$found
        # shellcheck disable=SC2086
        kill -STOP $known 2>/dev/null
        # shellcheck disable=SC2086
        find_trees $known
    done
    # shellcheck disable=SC2086
    kill -KILL $found 2>/dev/null
    for doomed in $found; do
        patience=1000
        while is_running "$doomed"; do
            patience=$((patience - 1))
            [ "$patience" -gt 0 ] || return 1
            sleep 0.01
        done
    done
}

# Sends a signal to every member of one process tree.
signal_tree() {
    signal=$1
    shift
    find_trees "$@"
    # shellcheck disable=SC2086
    kill "-$signal" $found 2>/dev/null || : # One that has just ended needs no signal.
}
