# shellcheck shell=bash disable=SC2034
# LLaMA3-8B from 8K to 128K tokens (LongRoPE2, section 4.1) on 64 GPUs of 80 GB. See README.md beside this file.
name=llama3_8b
: "${MODEL:=Meta-Llama-3-8B}"                # Hugging Face folder
: "${ORIGINAL_LENGTH:=8192}"
: "${TARGET_LENGTH:=131072}"
: "${STEPS:=1192}"                           # x 64 segments x 131072 tokens = 10.0B tokens
: "${GLOBAL_BATCH_SIZE:=64}"

# The planner's layout for 64 GPUs; data parallel is what is left over.
: "${TENSOR_PARALLEL:=4}"
: "${CONTEXT_PARALLEL:=8}"

# shellcheck source=examples/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"
