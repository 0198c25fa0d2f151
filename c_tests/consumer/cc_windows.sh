#!/bin/sh
# How a program for Windows is compiled by MinGW's compiler without any help; run.sh puts in its own
# prefix. The program runs where flash_attention.dll is beside it, or in a folder of PATH.
set -e
# README begin
prefix=/usr/local
cc program.c -I"$prefix/include" -L"$prefix/lib" -lflash_attention -o program.exe
cc program.c -I"$prefix/include" "$prefix/lib/libflash_attention.a" \
    -lkernel32 -lntdll -luserenv -lws2_32 -ldbghelp -o program_static.exe
# README end
