#!/usr/bin/env bash
# Fuzzes each target for a time; what reaches code that its corpus does not reach is added to it.
#   tests/fuzz/run.sh BUILD_FOLDER SECONDS [TARGET...]
# Native targets: libFuzzer below ASan + UBSan, compiled by $CXX (GCC or clang). Python targets:
# Atheris, where it is installed. Without names, all of them. An input that fails stays in
# BUILD_FOLDER/failed; a fixed one belongs into the corpus.
set -euo pipefail
build=${1:?usage: tests/fuzz/run.sh BUILD_FOLDER SECONDS [TARGET...]}
seconds=${2:?usage: tests/fuzz/run.sh BUILD_FOLDER SECONDS [TARGET...]}
shift 2
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$build/failed" "$build/tmp"
build=$(realpath "$build")
TMPDIR=$(mktemp -d "$build/tmp/XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
most_bytes=4096

mapfile -t native < <(basename -as .cpp native/fuzz/fuzz_*.cpp)
mapfile -t python < <(basename -a tests/fuzz/corpus/*)
wanted=("$@")
[ $# -gt 0 ] || wanted=("${native[@]}" "${python[@]}")

# Counts reached places, not how often: else the smallest difference would be worth a file.
fuzz() {  # fuzz NAME CORPUS PROGRAM...
    local name=$1 corpus=$2 found="$build/found/$1"
    shift 2
    mkdir -p "$found"
    echo "$name: $seconds s"
    if ! "$@" -max_total_time="$seconds" -timeout=25 -max_len=$most_bytes -print_final_stats=1 \
        -artifact_prefix="$build/failed/$name-" "$found" "$corpus" >"$build/$name.log" 2>&1; then
        tail -n 60 "$build/$name.log"
        echo "$name failed: its input is in $build/failed, all it said in $build/$name.log" >&2
        return 1
    fi
    grep -E ' DONE |number_of_executed_units' "$build/$name.log"
    "$@" -merge=1 -use_counters=0 -max_len=$most_bytes "$corpus" "$found" >"$build/$name.merge" 2>&1
    grep -E 'MERGE-OUTER: .* new files' "$build/$name.merge" || true
}

programs=()
for name in "${wanted[@]}"; do
    [ ! -f "native/fuzz/$name.cpp" ] || programs+=("$name")
done
if [ ${#programs[@]} -gt 0 ]; then
    cmake -S native -B "$build" -G Ninja -DKVSTORE_PYTHON=OFF -DKVSTORE_FUZZ=ON \
        -DKVSTORE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" >/dev/null
    ninja -C "$build" --quiet "${programs[@]}"
fi
failures=0
for name in "${wanted[@]}"; do
    if [ -f "native/fuzz/$name.cpp" ]; then
        fuzz "$name" "native/fuzz/corpus/${name#fuzz_}" "$build/$name" || failures=$((failures + 1))
    elif [ ! -d "tests/fuzz/corpus/$name" ]; then
        echo "there is no target $name: ${native[*]} ${python[*]}" >&2
        exit 2
    elif python -c 'import atheris' 2>/dev/null; then
        fuzz "$name" "tests/fuzz/corpus/$name" python -m tests.fuzz "$name" ||
            failures=$((failures + 1))
    else
        echo "without $name: Atheris is not installed (pip install atheris)"
    fi
done
exit $((failures > 0))
