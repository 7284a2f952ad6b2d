#!/bin/bash
# Hugging Face checkpoint to Megatron checkpoint: RUN/base. One process, no GPU.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

longrope2 import --hf-dir "$MODEL" --save-dir "$RUN/base" \
    --original-length "$ORIGINAL_LENGTH" "$@"
