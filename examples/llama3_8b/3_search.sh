#!/bin/bash
# Search for the RoPE factors: RUN/search. On every node; continues where it was stopped.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

# The paper: population 64, 40 iterations, mutation probability 0.3, 10 needles at the start of 10 books.
# `--search-space extended` also holds the closed-form methods and cannot end below them.
launch search --load "$RUN/base" --books "$BOOKS" --target-length "$TARGET_LENGTH" \
    --output "$RUN/search" --search-space paper --population 64 --iterations 40 --mutation-probability 0.3 \
    --samples 10 --needle-depths 0 --tensor-model-parallel-size "$TENSOR_PARALLEL" ${PRECISION:+"$PRECISION"} "$@"
