#!/bin/bash
# Needles, RULER and perplexity of the trained model: RUN/evaluation. On every node. Options after the script's name
# need a single measure: `MEASURES=ruler 6_evaluate.sh --samples 500`.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

lengths=()
for ((length = TARGET_LENGTH; length >= ORIGINAL_LENGTH; length /= 2)); do lengths=("$length" "${lengths[@]}"); done
for measure in ${MEASURES:-needle ruler perplexity}; do
    of_lengths=(--lengths "${lengths[@]}")
    if [[ $measure == perplexity ]]; then of_lengths=(); fi
    launch evaluate "$measure" --load "$RUN/checkpoints" --books "$HELD_OUT_BOOKS" "${of_lengths[@]}" \
        --output "$RUN/evaluation/$measure" ${PRECISION:+"$PRECISION"} \
        --tensor-model-parallel-size "$TENSOR_PARALLEL" "$@"
done
