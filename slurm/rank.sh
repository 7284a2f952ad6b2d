#!/bin/bash
# One rank of a stage, inside the container if there is one: torch.distributed's variables from Slurm's, the
# network's settings, then the command. srun starts it once for each process.
# A rank that fails leaves its exit status behind: srun gives the highest of all ranks, which is that of those
# that were ended because of the one that failed.
set -euo pipefail

export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${processes_per_node:?}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# shellcheck source=slurm/network.sh
source "${network:?}"
echo "$(date -Is) rank $RANK of $WORLD_SIZE on $(hostname), rendezvous at $MASTER_ADDR:$MASTER_PORT"
status=0
"${python:?}" "$@" || status=$?
if ((status)); then echo "$status" >"${attempt_folder:?}/rank-$RANK.status"; fi
exit "$status"
