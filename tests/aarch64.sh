#!/usr/bin/env bash
# Native tests compiled for aarch64, run by qemu's user emulation.
#   tests/aarch64.sh BUILD_FOLDER
# It shows that the code compiles there, with its alignments and without x86's instructions. It does
# not show aarch64's memory order: the emulated threads run on this machine's. model_test does.
set -euo pipefail
build=$(realpath -m "${1:?usage: tests/aarch64.sh BUILD_FOLDER}")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
cross=(-G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu")

cmake -S /usr/src/googletest -B "$build/googletest" "${cross[@]}" -DBUILD_GMOCK=OFF \
    -DCMAKE_INSTALL_PREFIX="$build/root" >/dev/null
ninja -C "$build/googletest" --quiet install >/dev/null
cmake -S native -B "$build/native" "${cross[@]}" -DKVSTORE_PYTHON=OFF -DGTest_ROOT="$build/root" >/dev/null
ninja -C "$build/native" --quiet

# What qemu cannot do: start a program of the other architecture from within one (death tests, fault
# points), tell which pages are resident, and keep a mapping from a forked child's /proc/self/mem.
export GTEST_FILTER='-*DeathTest*:FaultPoint.EndsTheProcess*:Segment.AnonymousOneIsReady*:Mapping.WritableOnesDoNotReach*'
ctest --test-dir "$build/native" --output-on-failure --timeout 900
