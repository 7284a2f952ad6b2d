#!/bin/bash
# One rank of a stage, inside the container if there is one: sets torch.distributed's variables from Slurm's and the
# network's settings, then runs `longrope2` with the given words. srun starts it once for each process.
# A rank that fails leaves its exit status in a file: srun returns the highest status of all ranks, which is that of
# the ranks that were ended because one of them had failed.
set -euo pipefail

export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${processes_per_node:?}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# shellcheck source=slurm/network.sh
source "${network:?}"
echo "$(date -Is) rank $RANK of $WORLD_SIZE on $(hostname), rendezvous at $MASTER_ADDR:$MASTER_PORT"
status=0
"${python:?}" -m megatron_longrope2 "$@" || status=$?
if ((status)); then echo "$status" >"${attempt_folder:?}/rank-$RANK.status"; fi
exit "$status"
