#!/usr/bin/env python3
"""Compares the engine in examples_c/minilm with the model's own tokeniser, and with the model in float64.

    run.py MODEL.bin PROGRAM...
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "examples_c" / "minilm"))

import convert  # noqa: E402
from reference import Reference  # noqa: E402
from texts import TRICKY, alphabet  # noqa: E402

# The largest 1 - cosine between an embedding and the one in float64, of plain sentences and of all
# texts: twice what has been seen with 8 bits. With probabilities of 8 bits, too, many keys of
# little weight each are all lost next to one of great weight: so it is in texts of one word
# repeated.
BOUNDS = {"f32": (1e-9, 1e-9), "i8": (3e-4, 6e-4), "i8-fast": (3e-4, 2.8e-2)}
# What 8 bits cost depends on how a machine multiplies them; one that lacks a set uses the next
# best.
SETS = ("avx512", "avx2", "scalar")
THREADS = ("own", "library", "pthread")
# Of the sanitizers, which would else be taken for a message.
CRASH = 99


class Failures:
    count = 0

    def need(self, condition, what):
        if not condition:
            self.count += 1
            print(f"FAILED  {what}")


def run(*command, isa=None):
    environment = os.environ | {"ASAN_OPTIONS": f"exitcode={CRASH}", "UBSAN_OPTIONS": f"exitcode={CRASH}"}
    if isa is not None:
        environment["FA_MAX_ISA"] = isa
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def write(folder, texts):
    path = folder / "texts.txt"
    path.write_bytes("".join(text + "\n" for text in texts).encode())
    return path


def tokens(failures, model, program, folder, tokenizer, positions):
    """How many texts were compared."""
    texts = [*TRICKY, *alphabet()]
    tokenizer.no_padding()
    tokenizer.enable_truncation(positions)
    # A line of the alphabet has more tokens than fit; each character has to have its turn.
    texts = [part for text in texts for part in halves(tokenizer, text, positions)]
    result = run(program, model, write(folder, texts), "--tokens")
    lines = result.stdout.splitlines()
    failures.need(result.returncode == 0 and len(lines) == len(texts), f"--tokens: {result.stderr.strip()}")
    for text, line, expected in zip(texts, lines, tokenizer.encode_batch(texts)):
        failures.need(line == " ".join(map(str, expected.ids)), f"tokens of {text!r}: {line}, not {expected.ids}")
    return len(texts)


def halves(tokenizer, text, positions):
    """The text, or if it belongs to the alphabet and is too long, its parts."""
    if text in TRICKY or len(tokenizer.encode(text).ids) < positions:
        return [text]
    words = text.split(" ")
    middle = len(words) // 2
    return [x for part in (words[:middle], words[middle:]) for x in halves(tokenizer, " ".join(part), positions)]


def bad_bytes(failures, model, program, folder, tokenizer):
    """What is not UTF-8 is as if it were not there."""
    path = folder / "bytes.txt"
    path.write_bytes(
        b"caf\xe9 au lait\n\xff\xfe\x80\nover\xc0\xafshort\xe0\x80\xaf\nsurro\xed\xa0\x80gate\nend\xf0\x9f\x98\n"
        b"too \xf4\x90\x80\x80 large \xf8\x88\x80\x80\x80 without a line feed \xe4\xb8"
    )
    expected = ["caf au lait", "", "overshort", "surrogate", "end", "too  large  without a line feed "]
    lines = run(program, model, path, "--tokens").stdout.splitlines()
    ids = [" ".join(map(str, e.ids)) for e in tokenizer.encode_batch(expected)]
    failures.need(lines == ids, "texts that are not UTF-8")


def embeddings(failures, model, programs, folder, tokenizer, reference):
    """How many texts were compared; the largest distances of each kind of attention, over all programs and sets."""
    plain = (ROOT / "examples_c" / "minilm" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    # By length, so that batches have little padding, but for a text of nothing next to the longest
    # one; of those that are cut off at the same length one is enough.
    lengths = {text: len(tokenizer.encode(text).ids) for text in TRICKY}
    texts = sorted((text for text in TRICKY if lengths[text] < 255), key=lengths.get)
    texts = [*plain, *texts[1:], TRICKY[-2], TRICKY[-1], texts[0]]
    expected = np.array([reference.embedding(tokenizer.encode(text).ids) for text in texts])
    path, out = write(folder, texts), folder / "embeddings.f32"
    worst = {attention: np.zeros(2) for attention in BOUNDS}
    for attention, bounds in BOUNDS.items():
        bits = {}
        ways = [(programs[0], threads, None) for threads in THREADS]
        ways += [(program, "own", None) for program in programs[1:]]
        ways += [(programs[0], "own", isa) for isa in SETS]
        for program, threads, isa in ways:
            name = f"{Path(program).name} --attention {attention} --threads {threads} ({isa or 'best'})"
            options = "--attention", attention, "--threads", threads, "--embeddings", out
            out.unlink(missing_ok=True)
            result = run(program, model, path, *options, isa=isa)
            if result.returncode != 0 or out.stat().st_size != 4 * expected.size:
                failures.need(False, f"{name}: exit code {result.returncode}, {result.stderr.strip()}")
                continue
            got = np.fromfile(out, "<f4").reshape(expected.shape).astype(np.float64)
            bits.setdefault(isa, []).append(got)
            cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1)
            distances = np.array([1 - cosines[: len(plain)].min(), 1 - cosines.min()])
            text = texts[cosines.argmin()]
            failures.need((distances <= bounds).all(), f"{name}: 1 - cosine is up to {distances}, as for {text[:60]!r}")
            failures.need(np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-6, f"{name}: lengths are not 1")
            worst[attention] = np.maximum(worst[attention], distances)
        same = all(np.array_equal(x, bits[None][0]) for x in bits.get(None, []))
        failures.need(same, f"{attention}: threads change bits")
    return len(texts), worst


def table(failures, model, program):
    """What people see: sentence 2 is closest to sentence 1, 5 to 4, 7 to 6, 9 to 8."""
    result = run(program, model, ROOT / "examples_c" / "minilm" / "sentences.txt")
    rows = [line.split()[1:] for line in result.stdout.split("\n\n")[-1].splitlines()[1:]]
    matrix = np.array(rows, float) - 2 * np.eye(len(rows))
    closest = [int(matrix[i].argmax()) for i in (0, 3, 5, 7)]
    failures.need(closest == [1, 4, 6, 8], f"the table: {closest}")


def damage(failures, model, program, folder):
    """Files that are not the model: a message, and no crash."""
    text, bad = write(folder, ["A text."]), folder / "bad.bin"
    model_bytes = Path(model).stat().st_size
    shutil.copy(model, bad)

    def refused(what):
        result = run(program, bad, text)
        good = result.returncode == 2 and result.stderr.startswith("minilm: ")
        failures.need(good, f"{what}: exit code {result.returncode}, {result.stderr.strip()[:200]}")

    with open(bad, "r+b") as file:

        def patch(at, content):
            file.seek(at)
            before = file.read(len(content))
            file.seek(at)
            file.write(content)
            file.flush()
            return before

        for count in range(8):
            for value in (0, 5, 2**24 - 16, 2**32 - 1):
                before = patch(8 + 4 * count, value.to_bytes(4, "little"))
                refused(f"count {count} = {value}")
                patch(8 + 4 * count, before)
        before = patch(0, b"#!/bin/sh")
        refused("another file")
        patch(0, before)
        # Words that are anything, then floats that are: no crash, whatever comes out.
        noise = np.random.default_rng(0)
        for at in (model_bytes - 240_000, 48_000_000):
            before = patch(at, noise.bytes(240_000))
            result = run(program, bad, text)
            failures.need(result.returncode in (0, 2), f"noise: exit code {result.returncode}")
            patch(at, before)
        patch(model_bytes, b"x")
        refused("a byte too many")
    for size in (model_bytes - 1, model_bytes - 300_000, model_bytes // 2, 5000, 41, 40, 39, 8, 4, 0):
        os.truncate(bad, size)
        refused(f"the first {size} bytes")
    bad.unlink()
    refused("a model that is missing")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, programs = sys.argv[1], sys.argv[2:]
    package = convert.folder()
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    reference = Reference(convert.tensors(package / "model.safetensors"))
    failures = Failures()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = tokens(failures, model, programs[0], folder, tokenizer, 256)
        bad_bytes(failures, model, programs[0], folder, tokenizer)
        texts, worst = embeddings(failures, model, programs, folder, tokenizer, reference)
        table(failures, model, programs[0])
        damage(failures, model, programs[0], folder)
    distances = ", ".join(f"{kind} {plain:.1e} ({every:.1e})" for kind, (plain, every) in worst.items())
    print(f"1 - cosine of plain sentences (of all texts) at most: {distances}")
    print(f"minilm: {cases} texts as tokens, {texts} as embeddings, {failures.count} failed")
    sys.exit(failures.count > 0)


if __name__ == "__main__":
    main()
