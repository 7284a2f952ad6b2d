#!/bin/bash
# Text to tokens by source and length: RUN/data. One node, no GPU; continues where it was stopped.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

longrope2 preprocess --mix "$MIX" --input "$TEXT" --output "$RUN/data" --tokenizer "$MODEL" \
    --original-length "$ORIGINAL_LENGTH" --add-bos --workers "$WORKERS" "$@"
