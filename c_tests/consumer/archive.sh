#!/bin/sh
# How a release archive is made, checked and unpacked; run.sh runs the lines after those of
# install.sh.
set -e
# README begin
cmake --build build/package --target dist
cd build/package/dist # or wherever the files were copied to
sha256sum --check flash_attention-*.tar.gz.sha256
tar -xzf flash_attention-*.tar.gz
cd flash_attention-*/
sha256sum --check --quiet SHA256SUMS
# README end
