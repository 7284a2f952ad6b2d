#!/bin/bash
# Everything that needs a GPU, on a machine with one: the tests, the benchmarks and the experiment (docs/gpu.md).
#
#   examples/small_gpu/run_on_gpu.sh [tests] [benchmarks] [experiment]      all three, if none is named
#
# What is done is not done again, and an experiment that was cut off continues: run this until it says "all done".
#   PYTHON      interpreter with the package's requirements (default: .venv/bin/python, else python3)
#   MINUTES     stop after this many minutes, for jobs with a time limit (default: no limit)
#   BENCHMARKS  where tests and benchmarks leave their results (default: benchmarks/results/NAME-OF-THE-GPU)
#   RESULTS     where the experiment leaves its results (default: examples/small_gpu/results)
#   RUN         working folder of the experiment (default: runs/small_gpu)
#   LAYERS      layers in the throughput benchmark (default: as many as fit, 16 on an H200: eight minutes)
#   SMALL       if not empty, use tiny sizes on whatever device is there: a test of this script
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if [[ ${MINUTES:-} && ! ${LIMITED:-} ]]; then
    # An interrupt lets the running stage end in order.
    LIMITED=1 exec timeout --signal=INT --kill-after=20 "${MINUTES}m" "$0" "$@"
fi
: "${PYTHON:=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}"
device=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
if [[ ! $device && ! ${SMALL:-} ]]; then
    echo "error: no CUDA device; run this on a machine with an H100 or H200" >&2
    exit 2
fi
name=${device// /-}
: "${BENCHMARKS:=benchmarks/results/${name:-cpu}}" "${RESULTS:=examples/small_gpu/results}" "${RUN:=runs/small_gpu}"
parts=("$@")
((${#parts[@]})) || parts=(tests benchmarks experiment)

tests() {
    local chosen=()
    [[ ${SMALL:-} ]] && chosen=(-k "test_every_kernel")
    if [[ ! -e $BENCHMARKS/tests.txt ]]; then
        # Failures are a result too: the benchmarks run all the same.
        "$PYTHON" -m pytest --no-header tests/gpu "${chosen[@]}" 2>&1 | tee "$BENCHMARKS/tests.partial" || true
        mv "$BENCHMARKS/tests.partial" "$BENCHMARKS/tests.txt"
    fi
    [[ $(tail -n 1 "$BENCHMARKS/tests.txt") =~ passed && ! $(tail -n 1 "$BENCHMARKS/tests.txt") =~ (failed|error) ]] ||
        failed=1
}

benchmark() { # NAME OPTIONS...
    [[ -e $BENCHMARKS/$1.json ]] && return
    "$PYTHON" -m benchmarks "$@" --output "$BENCHMARKS/$1.json" || failed=1
}

benchmarks() {
    local throughput=(--repeats 2 ${LAYERS:+--num-layers "$LAYERS"}) scoring=()
    local train=(--bf16 --length 16384 --original-length 2048 --hidden-size 1024)
    if [[ ${SMALL:-} ]]; then
        local model=(--model examples/tiny_cpu/base --num-layers 1 --repeats 1)
        throughput=("${model[@]}" --vocab-size 512 --lengths 128 512)
        scoring=("${model[@]}" --length 512)
        train=(--length 64 --original-length 16 --num-layers 1 --hidden-size 64 --repeats 1)
    fi
    benchmark throughput "${throughput[@]}" --profile "$BENCHMARKS/profile.txt"
    benchmark scoring "${scoring[@]}"
    benchmark train "${train[@]}"
}

experiment() {
    local quick=()
    [[ ${SMALL:-} ]] && quick=(--quick)
    "$PYTHON" -m examples.small_gpu.run --output "$RUN" --results "$RESULTS" "${quick[@]}"
}

failed=0
mkdir -p "$BENCHMARKS"
for part in "${parts[@]}"; do
    case $part in
    tests | benchmarks | experiment) "$part" ;;
    *)
        echo "error: $part: give tests, benchmarks or experiment" >&2
        exit 2
        ;;
    esac
done
if ((failed)); then
    echo "error: something failed, see above" >&2
    exit 1
fi
echo "all done: $BENCHMARKS, $RESULTS"
