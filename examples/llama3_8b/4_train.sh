#!/bin/bash
# Mixed context window training: OUT/checkpoints. On every node; continues where it was stopped.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

# The paper: 10B tokens, 64 segments a step, AdamW 2e-5, cosine. Betas, weight decay, clipping and warm-up are
# those of the authors' code.
sequence_parallel=()
if ((TENSOR_PARALLEL > 1)); then sequence_parallel=(--sequence-parallel); fi
launch train \
    --pretrained-checkpoint "$RUN/base" --load "$CHECKPOINTS" --save "$CHECKPOINTS" --save-interval 100 \
    --rope-factors "$FACTORS" --mix "$RUN/data/mix.json" --seq-length "$TARGET_LENGTH" \
    --micro-batch-size 1 --global-batch-size "$GLOBAL_BATCH_SIZE" --train-iters "$STEPS" \
    --lr 2e-5 --min-lr 0 --lr-decay-style cosine --lr-warmup-iters $((STEPS < 400 ? STEPS / 10 : 40)) \
    --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0 --clip-grad 1.0 ${PRECISION:+"$PRECISION"} \
    --tensor-model-parallel-size "$TENSOR_PARALLEL" "${sequence_parallel[@]}" \
    --context-parallel-size "$CONTEXT_PARALLEL" \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --ckpt-format torch_dist --log-interval 1 --tensorboard-dir "$OUT/tensorboard" --exit-signal-handler "$@"
