#!/bin/bash
# Search for the RoPE factors: OUT/search. On every node; continues where it was stopped.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

# The paper: population 64, 40 iterations, mutation probability 0.3, needles with RULER's words at the start of
# ten books. Its authors' code keeps 32 parents, and breeds 16 mutations and 16 crossovers of them an iteration.
# `--search-space extended` also holds the closed-form methods and cannot end below them.
launch search --load "$RUN/base" --books "$BOOKS" --held-out-books "$HELD_OUT_BOOKS" \
    --target-length "$TARGET_LENGTH" --output "$OUT/search" \
    --search-space paper --population 64 --iterations 40 --parents 32 --mutation-probability 0.3 \
    --samples 10 --needle-depths 0 --needle-wording ruler \
    --tensor-model-parallel-size "$TENSOR_PARALLEL" ${PRECISION:+"$PRECISION"} "$@"
