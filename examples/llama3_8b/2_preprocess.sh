#!/bin/bash
# Text to tokens by source and length: RUN/data. One node, no GPU; goes on where it was stopped.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

"$PYTHON" -m tools.preprocess_data --mix "$MIX" --input "$TEXT" --output "$RUN/data" --tokenizer "$MODEL" \
    --original-length "$ORIGINAL_LENGTH" --add-bos --workers "$WORKERS" "$@"
