#!/bin/sh
# How the library is installed; run.sh runs the lines in a copy of the source, with its own prefix.
set -e
# README begin
cmake -S . -B build/package -DFA_BUILD_TESTS=OFF -DFA_BUILD_EXAMPLES=OFF
cmake --build build/package
cmake --install build/package --prefix /usr/local
# README end
