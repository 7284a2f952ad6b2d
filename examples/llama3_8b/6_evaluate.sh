#!/bin/bash
# Needles, RULER and perplexity of the trained model: RUN/evaluation. On every node.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

lengths=()
for ((length = TARGET_LENGTH; length >= ORIGINAL_LENGTH; length /= 2)); do lengths=("$length" "${lengths[@]}"); done
for what in needle ruler; do
    launch -m tools.evaluate "$what" --load "$RUN/checkpoints" --books "$HELD_OUT_BOOKS" \
        --lengths "${lengths[@]}" --output "$RUN/evaluation/$what" \
        --dtype bfloat16 --tensor-model-parallel-size "$TENSOR_PARALLEL" "$@"
done
launch -m tools.evaluate perplexity --load "$RUN/checkpoints" --books "$HELD_OUT_BOOKS" \
    --output "$RUN/evaluation/perplexity" --dtype bfloat16 --tensor-model-parallel-size "$TENSOR_PARALLEL" "$@"
