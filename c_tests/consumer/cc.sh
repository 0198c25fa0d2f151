#!/bin/sh
# How a program is compiled without any help; run.sh puts in its own prefix.
set -e
# README begin
prefix=/usr/local
cc program.c -I"$prefix/include" -L"$prefix/lib" -lflash_attention -Wl,-rpath,"$prefix/lib" -o program
cc program.c -I"$prefix/include" "$prefix/lib/libflash_attention.a" \
    -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc -o program_static
# README end
