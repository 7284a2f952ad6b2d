# shellcheck shell=bash
# What the recipes' stages share; their settings.sh sources it. Every setting can come from the environment.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

# Where things are.
: "${PYTHON:=python}"                        # a Python that has this package's requirements
: "${RUN:=runs/${name:?}}"                   # everything that the recipe writes; on a disk that all nodes share
: "${TEXT:=corpora}"                         # a folder for each source of the mix, see docs/data.md
: "${BOOKS:=pg19/validation}"                # books that needles are hidden in: search
: "${HELD_OUT_BOOKS:=pg19/test}"             # others, for evaluation
: "${MIX:=paper}"                            # mix file, or the paper's

# The machines. A stage that uses GPUs is started once on every node.
: "${GPUS_PER_NODE:=8}"
: "${NODES:=${SLURM_JOB_NUM_NODES:-8}}"
if [[ -z ${HEAD_NODE:-} && -n ${SLURM_JOB_NODELIST:-} ]]; then
    HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
: "${HEAD_NODE:=localhost}"                  # where the nodes meet
: "${PORT:=29500}"
: "${WORKERS:=$(nproc)}"                     # processes of preprocessing
: "${PRECISION=--bf16}"                      # of search and training; empty for float32

launch() {
    "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD_NODE:$PORT" --rdzv-id "${SLURM_JOB_ID:-longrope2}" "$@"
}
