# shellcheck shell=bash disable=SC2034
# Phi3-mini from 2K to 128K tokens (LongRoPE2, section 4.1) on 64 GPUs of 80 GB. See README.md beside this file.
name=phi3_mini
: "${MODEL:=Phi-3-mini-4k-instruct}"         # Hugging Face folder
: "${ORIGINAL_LENGTH:=2048}"                 # the paper's; the model attends 2047 tokens back

# The planner's layout for 64 GPUs; data parallelism takes the remaining ones.
: "${TENSOR_PARALLEL:=2}"
: "${CONTEXT_PARALLEL:=4}"

# shellcheck source=examples/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster.sh"
