#!/usr/bin/env bash
# The training of this VM, which outlives the connection that starts it:
#     job.sh start ID ARGUMENT...  python -m maft_jax.main ARGUMENT..., unless ID runs already
#     job.sh state                 one line that launch/remote_job.py reads
#     job.sh stop                  has it save and leave
#     job.sh kill                  ends what is left of it
#     job.sh log NUM_LINES         the end of its output
#     job.sh follow NUM_LINES      and what comes after that
set -euo pipefail
run="$HOME/maft_jax_run"
job="$run/job"
mkdir -p "$job"
touch "$job/log"

is_running() {
    ! flock --nonblock "$job/lock" true # training and its children hold the lock
}

start() {
    local id=$1
    shift
    if is_running; then
        if [[ "$(<"$job/id")" != "$id" ]]; then
            echo "another training runs here: $(<"$job/id")" >&2
            exit 3
        fi
    else
        rm -f "$job/code" "$job/stopped" "$job/supervisor"
        echo "$id" >"$job/id"
        setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null >/dev/null 2>&1 &
        for _ in {1..100}; do
            [[ -f "$job/supervisor" ]] && break
            sleep 0.1
        done
    fi
    state
}

supervise() {
    exec 9>"$job/lock"
    flock --timeout 10 9
    echo $$ >"$job/supervisor"
    exec >>"$job/log" 2>&1
    cd "$run/work"
    if [[ -f "$run/secrets.env" ]]; then
        while IFS= read -r line; do
            [[ $line =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] && export "${line?}"
        done <"$run/secrets.env"
    fi
    "$run/venv/bin/python" -m maft_jax.main "$@" &
    echo $! >"$job/pid"
    local code=0
    wait $! || code=$?
    echo "$code" >"$job/code.unfinished"
    mv "$job/code.unfinished" "$job/code"
}

state() {
    local id=- state=absent code=-
    if [[ -f "$job/id" ]]; then
        id=$(<"$job/id")
        if [[ -f "$job/code" ]]; then
            code=$(<"$job/code")
            state=exited
            [[ ! -f "$job/stopped" ]] || state=stopped
        elif is_running; then
            state=running
        else
            state=lost # the VM was restarted
        fi
    fi
    echo "maft_jax host=$(hostname) job=$id state=$state code=$code | $(tail -n 1 "$job/log" | cut -c -200)"
}

case $1 in
start) start "${@:2}" ;;
supervise) supervise "${@:2}" ;;
state) state ;;
stop)
    if is_running; then
        touch "$job/stopped"
        kill -TERM "$(<"$job/pid")"
    fi
    state
    ;;
kill)
    if is_running; then
        kill -KILL -- "-$(<"$job/supervisor")" || true
        flock --timeout 10 "$job/lock" true
        [[ -f "$job/code" ]] || echo 137 >"$job/code"
    fi
    state
    ;;
log) tail -n "$2" "$job/log" ;;
follow) exec tail -n "$2" -F "$job/log" ;;
*)
    echo "job.sh: expected start, state, stop, kill, log or follow, got $1" >&2
    exit 2
    ;;
esac
