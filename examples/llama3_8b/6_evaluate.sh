#!/bin/bash
# The trained model's measures: OUT/evaluation. On every node. MEASURES names them: needle, ruler, perplexity, and
# the tasks of the paper's Table 4 (short) and Table 3 (long), whose data must be in lm-evaluation-harness's cache.
# Options after the script's name need a single measure: `MEASURES=ruler 6_evaluate.sh --samples 500`.
# shellcheck source=examples/llama3_8b/settings.sh
source "$(dirname "$0")/settings.sh"

read -ra lengths <<<"$LENGTHS"
for measure in ${MEASURES:-needle ruler perplexity}; do
    output=$OUT/evaluation
    case $measure in
    needle) words=(needle --books "$HELD_OUT_BOOKS" --lengths "${lengths[@]}" --needle-wording ruler) ;;
    ruler) words=(ruler --books "$HELD_OUT_BOOKS" --lengths "${lengths[@]}" ${QUESTIONS:+--questions "$QUESTIONS"}) ;;
    perplexity) words=(perplexity --books "$HELD_OUT_BOOKS") ;;
    short) words=(lm-eval --suite short) ;;
    long)
        words=(lm-eval --metric score --tasks infinitebench_longbook_choice_en infinitebench_kv_retrieval
            longbench_triviaqa longbench_trec longbench_lcc longbench_repobench-p)
        output=$OUT/evaluation/long
        ;;
    *)
        echo "error: MEASURES: $measure is not one of needle, ruler, perplexity, short, long" >&2
        exit 2
        ;;
    esac
    launch evaluate "${words[@]}" --load "$CHECKPOINTS" --output "$output" ${PRECISION:+"$PRECISION"} \
        --tensor-model-parallel-size "$TENSOR_PARALLEL" "$@"
done
