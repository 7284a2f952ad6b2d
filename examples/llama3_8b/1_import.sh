#!/bin/bash
# Hugging Face checkpoint to Megatron checkpoint: RUN/base. One process, no GPU.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

"$PYTHON" -m tools.convert_hf_to_megatron --hf-dir "$MODEL" --save-dir "$RUN/base" \
    --original-length "$ORIGINAL_LENGTH" "$@"
