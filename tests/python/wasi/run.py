"""Runs a program that was compiled for WASI: run.py PROGRAM [ARGUMENT...].

It has these arguments, this process's streams, and what is for tests of the environment, but no
files. Needs the package wasmtime.
"""

import os
import sys

from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig

# Of functions that Rust's standard library names and that Debian's C library for WASI lacks
# (scripts/platform.sh): without threads nothing calls them.
MISSING = "pthread_"


def missing(*_arguments):
    raise RuntimeError("there are no threads")


def main():
    engine = Engine()
    module = Module.from_file(engine, sys.argv[1])
    linker = Linker(engine)
    linker.define_wasi()
    for wanted in module.imports:
        if wanted.module == "env" and wanted.name.startswith(MISSING):
            linker.define_func("env", wanted.name, wanted.type, missing)
    wasi = WasiConfig()
    wasi.argv = sys.argv[1:]
    wasi.env = [(name, value) for name, value in os.environ.items() if name.startswith(("FA_", "RUST"))]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store = Store(engine)
    store.set_wasi(wasi)
    try:
        linker.instantiate(store, module).exports(store)["_start"](store)
    except ExitTrap as end:
        return end.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
