#!/bin/bash
# Megatron checkpoint to Hugging Face checkpoint: RUN/hf. One process, no GPU.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

longrope2 export --load-dir "$RUN/checkpoints" --save-dir "$RUN/hf" --base-dir "$MODEL" "$@"
