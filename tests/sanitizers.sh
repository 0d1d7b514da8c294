#!/usr/bin/env bash
# Native tests under ASan + UBSan, then process-private state under TSan.
#   tests/sanitizers.sh BUILD_FOLDER
# What crosses processes is invisible to TSan; model_test covers it instead.
set -euo pipefail
build=${1:?usage: tests/sanitizers.sh BUILD_FOLDER}
bin="$(dirname "$0")/../.venv/bin"
export PATH="$bin:$PATH"
source="$(dirname "$0")/../native"

# Names are <room>_<file>; model_test explores its own memory model and gains nothing.
tsan_tests='^(directory_directory_test|gpu_.*_test|master_(ops_log|lookup_waits|master_core|master_copies)_test|net_event_server_test|store_block_store_test|node_(node_core|nvme_tier|put_flow|master_link)_test|client_.*_test|nvme_(log|reclaim|recovery|fault|power_loss)_test)$'

# Compiled in half the time of -O2 -g, and a stack still names its lines. Each source by itself, so
# that an include which it lacks is noticed somewhere.
run() {  # run SANITIZERS CTEST_ARGUMENTS...
    local folder="$build/${1//,/-}" sanitizers=$1
    shift
    cmake -S "$source" -B "$folder" -G Ninja -DKVSTORE_PYTHON=OFF -DKVSTORE_UNITY=OFF \
        -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
        -DKVSTORE_SANITIZE="$sanitizers" >/dev/null
    # Only what these tests run; each has its executable's name, a replay of the corpus with a suffix.
    local programs
    mapfile -t programs < <(ctest --test-dir "$folder" -N "$@" |
        sed -n 's/^ *Test *#[0-9]*: //p' | sed 's/_replay$//')
    ninja -C "$folder" --quiet "${programs[@]}"
    ctest --test-dir "$folder" --output-on-failure "$@"
}

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
run address,undefined -E '^index_model_test$'
run thread -R "$tsan_tests"
