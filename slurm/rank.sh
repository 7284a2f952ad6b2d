#!/bin/bash
# One rank of a stage, inside the container if there is one: torch.distributed's variables from Slurm's, the
# network's settings, then the command. srun starts it once for each process.
set -euo pipefail

export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${processes_per_node:?}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# shellcheck source=slurm/network.sh
source "${network:?}"
echo "$(date -Is) rank $RANK of $WORLD_SIZE on $(hostname), rendezvous at $MASTER_ADDR:$MASTER_PORT"
exec "${python:?}" "$@"
