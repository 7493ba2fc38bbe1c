# The guard of one service directory ($1). It sleeps until the process that started it is gone, which it
# learns from the end of its standard input, and then ends what was launched in the directory and removes it.

# Only the end of the pipe ends the guard: it must outlive a Ctrl-C that ends the tests.
trap '' INT TERM HUP

directory=$1
while read -r _; do :; done

# From here on the launcher refuses. What it started before has its process id listed.
: >"$directory/closed"
set --
for file in "$directory"/pids/*; do
    [ -e "$file" ] && set -- "$@" "${file##*/}"
done
kill_trees "$@"

tries=100
until rm -rf "$directory" 2>/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 0.1
done
