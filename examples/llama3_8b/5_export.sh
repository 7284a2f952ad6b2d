#!/bin/bash
# Megatron checkpoint to Hugging Face checkpoint: OUT/hf. One process, no GPU.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

longrope2 export --load-dir "$CHECKPOINTS" --save-dir "$OUT/hf" "$@"
