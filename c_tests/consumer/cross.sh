#!/bin/sh
# How an archive for another platform is made; run.sh runs the lines in a copy of the source.
set -e
# README begin
cmake -S . -B build/package -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/aarch64-linux-gnu.cmake \
    -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF
cmake --build build/package --target dist
# README end
