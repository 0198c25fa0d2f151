"""Runs programs on an emulated machine: Linux in Bochs, on a processor with AVX-512, VNNI and BF16.

usage: machine.py BOCHS KERNEL ROM INIT [--env NAME=VALUE]... PROGRAM [ARGUMENT...]
           [-- PROGRAM [ARGUMENT...]]...

The output of the programs is passed on. The exit code is that of the first program that failed. The
shared libraries that the programs need are copied to the emulated machine.
"""

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

# The address of the image, as in rom.S. It begins with boot parameters and command line, a page
# each.
IMAGE = 0x100_0000
PAGE = 4096
MEMORY = 1024 << 20

# Switches off what takes long to initialise, or to search for in vain.
COMMAND_LINE = (
    "console=ttyS0 loglevel=3 panic=-1 nokaslr nosmp acpi=off pci=off no5lvl mitigations=off init_on_alloc=0 audit=0 "
    "random.trust_cpu=on no_timer_check lpj=1000000 reboot=t rdinit=/init "
    # Bochs reports fast short REP MOVSB (bit 580) although fast strings are disabled. The kernel's
    # memmove is wrong for that combination.
    "clearcpuid=580 "
    "initcall_blacklist=trace_eval_init,load_system_certificate_list,jent_mod_init,sed_opal_init"
)

CONFIGURATION = """\
config_interface: textconfig
display_library: nogui
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0, exclude_features="amx,amx_int8,amx_bf16"
memory: guest={memory}, host={memory}
romimage: file={rom}
vgaromimage: file=/dev/null
optramimage1: file={image}, address={address:#x}
pci: enabled=0
ata0: enabled=0
ata1: enabled=0
ata2: enabled=0
ata3: enabled=0
com1: enabled=1, mode=file, dev={console}
port_e9_hack: enabled=1
log: {log}
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""


def archive(files):
    """Returns a cpio archive (format "newc") of tuples (path, mode, content)."""
    out = bytearray()
    for number, (path, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def libraries(program):
    """Yields the paths of the shared libraries and the loader that a program needs."""
    found = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for line in found.splitlines():
        path = line.split("=>")[-1].split("(")[0].strip()
        if path.startswith("/"):
            yield path
        elif "not found" in line:
            sys.exit(f"machine: {program}: {line.strip()}")


def stripped(program, folder):
    """Returns a program's content without debug information."""
    to = os.path.join(folder, "stripped")
    strip = subprocess.run(["strip", "--strip-debug", "-o", to, program], capture_output=True, check=False)
    return read(to if strip.returncode == 0 else program)


def file_system(init, programs, environment, folder):
    """Returns the initial file system as an archive."""
    contents = {"init": read(init), "environment": b"".join(x.encode() + b"\0" for x in environment)}
    for number, words in enumerate(programs):
        path = os.path.realpath(shutil.which(words[0]) or words[0])
        contents[path[1:]] = stripped(path, folder)
        for library in libraries(path):
            contents[library[1:]] = read(library)
        contents[f"program.{number}"] = b"".join(os.fsencode(x) + b"\0" for x in [path, *words[1:]])
    folders = {path[:at] for path in contents for at in range(len(path)) if path[at] == "/"}
    files = [(path, 0o40755, b"") for path in sorted(folders, key=len)]
    return archive(files + [(path, 0o100755, content) for path, content in contents.items()])


def boot_image(kernel, initial):
    """Returns the memory from IMAGE on: boot parameters, command line, file system, kernel."""
    # Linux, Documentation/x86/boot.rst. The header begins at 0x1f1; the jump at 0x200 has its
    # length.
    assert kernel[0x202:0x206] == b"HdrS", "not a kernel of Linux"
    sectors = kernel[0x1f1] or 4
    protected = kernel[(sectors + 1) * 512:]
    alignment, = struct.unpack_from("<I", kernel, 0x230)
    end = 0x202 + kernel[0x201]

    parameters = bytearray(PAGE)
    parameters[0x1f1:end] = kernel[0x1f1:end]
    line = COMMAND_LINE.encode() + b"\0"
    start = IMAGE + 2 * PAGE
    entry = -(-(start + len(initial)) // alignment) * alignment
    parameters[0x210] = 0xff  # type of loader: undefined
    parameters[0x211] |= 1  # loaded high
    put = lambda at, value: struct.pack_into("<I", parameters, at, value)
    put(0x1f4, -(-len(protected) // 16))
    put(0x214, entry)
    put(0x218, start)
    put(0x21c, len(initial))
    put(0x228, IMAGE + PAGE)
    # The memory map: below 640 KiB, and from 1 MiB on.
    parameters[0x1e8] = 2
    struct.pack_into("<QQIQQI", parameters, 0x2d0, 0, 0xa0000, 1, 0x10_0000, MEMORY - 0x10_0000, 1)
    before = bytes(parameters) + line.ljust(PAGE, b"\0") + initial
    return before.ljust(entry - IMAGE, b"\0") + protected.ljust(-(-len(protected) // 16) * 16, b"\0")


class Messages:
    """The messages of init.c, which Bochs prints."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for line in self.stream:
            if line == b"@emulated@\n":
                break
        while head := self.stream.read(3):
            kind, length = head[:1], int.from_bytes(head[1:], "little")
            yield kind, self.stream.read(length)
            if kind == b"Q":
                # Further output is Bochs' own.
                self.stream.read()


def main():
    words = sys.argv[1:]
    if len(words) < 5:
        sys.exit(__doc__)
    bochs, kernel, rom, init = map(os.path.realpath, words[:4])
    words = words[4:]
    environment = ["PATH=/usr/bin", "HOME=/"]
    while words[:1] == ["--env"]:
        environment.append(words[1])
        words = words[2:]
    programs = [[]]
    for word in words:
        if word == "--":
            programs.append([])
        else:
            programs[-1].append(word)

    failed = 0
    done = False
    # Bochs must end with this program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)
        with open(at("image"), "wb") as file:
            file.write(boot_image(read(kernel), file_system(init, programs, environment, folder)))
        with open(at("bochsrc"), "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(
                memory=MEMORY >> 20, rom=rom, image=at("image"), address=IMAGE, console=at("console"), log=at("log")))
        command = [bochs, "-q", "-unlock", "-f", at("bochsrc")]
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            for kind, data in Messages(machine.stdout):
                match kind:
                    case b"1":
                        sys.stdout.buffer.write(data)
                        sys.stdout.buffer.flush()
                    case b"2":
                        sys.stderr.buffer.write(data)
                        sys.stderr.buffer.flush()
                    case b"E":
                        failed = failed or int(data)
                    case b"Q":
                        done = True
        finally:
            machine.kill()
            machine.wait()
        if not done:
            sys.stderr.write("machine: stopped before all had run; the end of its console and of Bochs' log:\n")
            for name in ["console", "log"]:
                if os.path.exists(at(name)):
                    sys.stderr.write(read(at(name))[-3000:].decode(errors="replace"))
            sys.exit(1)
    sys.exit(failed)


if __name__ == "__main__":
    main()
