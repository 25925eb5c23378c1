#!/usr/bin/env bash
# Runs each argument as a command, all beside each other. Prints the last one's output as it comes, every other one's whole after that. Fails if any
# of them fails, and says which; nothing goes on when it is interrupted.
set -uo pipefail
output=$(mktemp -d)
pids=()
trap 'trap "" INT TERM; for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null; done; wait; rm -rf "$output"' EXIT
trap 'exit 130' INT TERM

set -m # a process group for each, so that all of it can be ended
for command in "${@:1:$#-1}"; do
    bash -c "$command" >"$output/${#pids[@]}" 2>&1 </dev/null &
    pids+=($!)
done
bash -c "${!#}" </dev/null &
last=$!
pids+=("$last")

failed=()
wait "$last" || failed+=("${!#}")
for ((n = 0; n < ${#pids[@]} - 1; n++)); do
    wait "${pids[n]}" || failed+=("${@:n+1:1}")
    printf '\n%s\n' "==== ${*:n+1:1}"
    cat "$output/$n"
done
pids=()
for command in "${failed[@]}"; do echo "FAILED: $command" >&2; done
[ ${#failed[@]} = 0 ]
