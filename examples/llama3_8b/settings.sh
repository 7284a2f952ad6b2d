# shellcheck shell=bash disable=SC2034
# LLaMA3-8B from 8K to 128K tokens (LongRoPE2, section 4.1) on 64 GPUs of 80 GB. See README.md beside this file.
name=llama3_8b
: "${MODEL:=Meta-Llama-3-8B}"                # Hugging Face folder
: "${ORIGINAL_LENGTH:=8192}"

# The planner's layout for 64 GPUs; data parallelism takes the remaining ones.
: "${TENSOR_PARALLEL:=4}"
: "${CONTEXT_PARALLEL:=8}"

# shellcheck source=examples/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"
