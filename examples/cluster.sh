# shellcheck shell=bash
# What the stages of all recipes share; their settings.sh sources it. Each setting can come from the environment.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

# The lengths, and the training of the paper.
: "${TARGET_LENGTH:=131072}"
: "${LENGTHS:=4096 8192 16384 32768 65536 131072}"  # of evaluation
: "${STEPS:=1192}"                           # x 64 segments x 131072 tokens = 10.0B tokens
: "${GLOBAL_BATCH_SIZE:=64}"

# Where things are.
: "${PYTHON:=python}"                        # a Python that has this package's requirements
: "${RUN:=runs/${name:?}}"                   # everything that the recipe writes; on a disk that all nodes share
: "${OUT:=$RUN}"                             # of it: search, checkpoints, hf, evaluation; one for each row of a table
: "${FACTORS:=$OUT/search/factors.json}"     # what training rescales with
: "${CHECKPOINTS:=$OUT/checkpoints}"         # what training writes, and export and evaluation read
: "${TEXT:=corpora}"                         # a folder for each source of the mix, see docs/data.md
: "${BOOKS:=pg19/validation}"                # books that the search hides needles in; the paper: ten of these
: "${HELD_OUT_BOOKS:=pg19/test}"             # other books, for evaluation
: "${QUESTIONS=ruler_questions}"             # RULER's question files; empty for eleven of its thirteen tasks
: "${MIX:=paper}"                            # a mix file, or the paper's mix

# The machines. A stage that uses GPUs is started once on every node.
: "${GPUS_PER_NODE:=8}"
: "${NODES:=${SLURM_JOB_NUM_NODES:-8}}"
if [[ -z ${HEAD_NODE:-} && -n ${SLURM_JOB_NODELIST:-} ]]; then
    HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
: "${HEAD_NODE:=localhost}"                  # the node at which the others meet
: "${PORT:=29500}"
: "${WORKERS:=$(nproc)}"                     # processes that preprocess
: "${PRECISION=--bf16}"                      # of search, training and evaluation; empty for float32

# One process on this machine.
longrope2() { "$PYTHON" -m megatron_longrope2 "$@"; }

# One process for each GPU of all nodes.
launch() {
    "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD_NODE:$PORT" --rdzv-id "${SLURM_JOB_ID:-longrope2}" \
        -m megatron_longrope2 "$@"
}
