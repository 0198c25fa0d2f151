#!/usr/bin/env python3
"""A model of Hugging Face's on the library: a small one of random weights writes what it writes with PyTorch.

in_transformers.py [LIBRARY.so]
"""

import sys
import tempfile

import torch

import cpu_attention as fa

fa.load(sys.argv[1] if len(sys.argv) == 2 else None)
from transformers import AutoModelForCausalLM, MistralConfig

import cpu_attention.transformers


def load(name):
    return AutoModelForCausalLM.from_pretrained(name, attn_implementation="fa_cpu")


def main():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16, "initializer_range": 0.2}
    made = AutoModelForCausalLM.from_config(MistralConfig(**sizes, **heads))
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        model = load(folder)
    prompt = torch.randint(3, 128, (1, 60))
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ours = model.generate(prompt, **options)
    model.set_attn_implementation("eager")
    same = torch.equal(ours, model.generate(prompt, **options))
    print(f"20 tokens are those of eager: {same}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
