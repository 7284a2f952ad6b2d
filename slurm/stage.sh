#!/bin/bash
# One attempt at one stage of a chain; the .sbatch files source it after RUN/stages/STAGE/job.sh, which
# tools/submit.py writes and which sets the names below. Exit status: 0 done, 2 bad input, other than that the
# commands' own. A stage that can go on is put back into the queue under the same job id.

: "${run:?}" "${stage:?}" "${root:?}" "${python:?}" "${network:?}" "${processes_per_node:?}"
declare -a container commands
folder=$run/stages/$stage
cd "$root" || exit 2

# Scripts in tools/ find the package, installed or not.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export python network processes_per_node
# From Slurm 22.05 on srun no longer takes a job's CPUs a task over by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# Every rank meets at the first node. The port follows from the job id, below Linux's ephemeral ports (32768 on),
# so that two jobs that share a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# Set once Slurm has warned (--signal=B:USR1@SECONDS, or `scancel --batch --signal=USR1 JOB`).
warned=0
trap 'warned=1' USR1

# Training saves a checkpoint on this signal (Megatron's --exit-signal-handler) and ends. SIGURG because whoever
# does not handle it ignores it: data loaders and the processes that write a checkpoint live on.
# The other stages keep their state on disk all the time, and are simply ended.
stop_signal=TERM
if [[ $stage == train ]]; then stop_signal=URG; fi

# One process on the first node, or one a node: bookkeeping and checks, not the stage itself.
on_head() {
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$MASTER_ADDR" "${container[@]}" "$python" "$@"
}
on_each_node() { srun --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" "${container[@]}" "$python" "$@"; }

# One process a GPU (or as many a node as the settings say), a log for each. When one fails the others are ended
# at once; when one ends well the others get two minutes.
launch() {
    srun --ntasks-per-node="$processes_per_node" --ntasks=$((SLURM_JOB_NUM_NODES * processes_per_node)) \
        --kill-on-bad-exit=1 --wait=120 --output="$attempt_folder/rank-%t.log" --open-mode=append \
        "${container[@]}" bash "$root/slurm/rank.sh" "$@" &
    wait_for $!
}

# Wait for a process and give its exit status; after a warning, tell the ranks to stop until they have.
wait_for() {
    local status=0
    wait "$1" || status=$?
    if ((warned)); then
        # The trapped signal ended `wait`, which says nothing of the process; bash still knows how it ended.
        while kill -0 "$1" 2>/dev/null; do
            echo "$(date -Is) Slurm warns: SIG$stop_signal to the ranks"
            scancel --signal="$stop_signal" "$SLURM_JOB_ID" || true
            sleep 5
        done
        status=0
        wait "$1" || status=$?
    fi
    return "$status"
}

# All the stage's commands; one that an earlier attempt completed is not run again.
run_commands() {
    local number=0 words line mark
    for line in "${commands[@]}"; do
        number=$((number + 1))
        mark=$folder/command-$number.done
        [[ -e $mark && $(<"$mark") == "$line" ]] && continue
        ((warned)) && return 143
        eval "words=($line)"
        echo "$(date -Is) ${words[*]}"
        launch "${words[@]}" || return
        # Training that was told to stop ends well, but is not complete.
        ((warned)) && [[ $stage == train ]] && return 0
        echo "$line" >"$mark"
    done
}

run_stage() {
    local attempt status=0 verdict
    attempt=$(on_head -m megatron_longrope2.launch.attempts begin "$run" "$stage")
    export attempt_folder=$folder/attempt-$attempt
    echo "$(date -Is) $stage, attempt $attempt on $SLURM_JOB_NODELIST; logs in $attempt_folder"

    on_each_node -m megatron_longrope2.launch.preflight "$run" "$stage" \
        --output "$attempt_folder/environment.json" || status=$?
    if ((status == 0)); then run_commands || status=$?; fi

    verdict=$(on_head -m megatron_longrope2.launch.attempts end "$run" "$stage" "$attempt" \
        --status "$status" --warned "$warned")
    if ((verdict == 75)); then
        scontrol requeue "$SLURM_JOB_ID"
        # Slurm ends this script; leaving it would complete the job.
        sleep 300
    fi
    exit "$verdict"
}
