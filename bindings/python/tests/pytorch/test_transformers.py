#!/usr/bin/env python3
"""Tests of cpu_attention.transformers on small models of random weights, against transformers' "eager".

test_transformers.py [--library LIBRARY.so] [--table] [TEST...]

--table prints the largest differences of logits that Models finds, as docs/python.md has them.
"""

import argparse
import sys
import unittest
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--library", help="in place of the one in the package, which need not be installed then")
parser.add_argument("--table", action="store_true")
parser.add_argument("tests", nargs="*")
arguments = parser.parse_args() if __name__ == "__main__" else parser.parse_args([])
if find_spec("transformers") is None:
    print("test_transformers: skipped, for there is no package transformers")
    sys.exit(0)
if arguments.library:
    sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
import transformers as hf  # noqa: E402
from transformers import masking_utils as masks  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

import cpu_attention as fa  # noqa: E402

fa.load(arguments.library)
import cpu_attention.transformers as fat  # noqa: E402

hf.logging.set_verbosity_error()
BOUND = 3e-5
TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that a key more or less is seen in the logits.
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WINDOW = {"sliding_window": 16}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOW}
GEMMA3 = GEMMA | {"layer_types": 3 * ["sliding_attention"] + ["full_attention"]}
EXPERTS = {"head_dim": 16, "num_local_experts": 4}
# Models that write text, what is special in them, and whether "sdpa" has them.
DECODERS = {
    "Llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}, True),
    "Qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {"head_dim": 16}, True),
    "Mistral": (hf.MistralConfig, hf.MistralForCausalLM, WINDOW, True),
    "Gemma 2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, GEMMA | {"attn_logit_softcapping": 3.0}, False),
    "Gemma 3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, GEMMA3, True),
    "GPT-OSS": (hf.GptOssConfig, hf.GptOssForCausalLM, EXPERTS | WINDOW | {"num_experts_per_tok": 2}, False),
    "DeepSeek-V3": (hf.DeepseekV3Config, hf.DeepseekV3ForCausalLM, DEEPSEEK, True),
    "Llama 4": (
        hf.Llama4TextConfig,
        hf.Llama4ForCausalLM,
        EXPERTS | {"num_experts_per_tok": 1, "intermediate_size_mlp": 96, "attention_chunk_size": 16},
        True,
    ),
}
differences = {}


def decoder(name, **more):
    config, model, special, _ = DECODERS[name]
    torch.manual_seed(0)
    made = model(config(**TEXT | special | more)).eval()
    for key, x in made.named_parameters():
        if "sinks" in key:
            torch.nn.init.normal_(x, std=2.0)
    return made


def in_parts(model, cache):
    room = {"max_cache_len": 64} if cache is hf.StaticCache else {}
    past = cache(config=model.config, **room)
    return torch.cat([model(x, past_key_values=past).logits for x in tokens().split(17, 1)], 1)


def gradients(model, mask):
    """Of a loss, and that."""
    labels = tokens()
    if mask is not None:
        # Nor is the first token after padding foretold by a row that sees something.
        begun = torch.cat((torch.zeros(3, 1, dtype=torch.long), mask[:, :-1]), 1)
        labels = torch.where(begun.bool(), labels, -100)
    model.zero_grad()
    loss = model(tokens(), attention_mask=mask, labels=labels, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters()}}


def tokens(batch=3, rows=50):
    return torch.randint(3, 128, (batch, rows), generator=torch.Generator().manual_seed(1))


def padding(side, rows=50):
    """1 for each token, 0 before or behind them."""
    mask = torch.ones(3, rows, dtype=torch.long)
    mask[0, 30:] = mask[1, 44:] = 0
    return mask.flip(1) if side == "left" else mask


class Case(unittest.TestCase):
    def setUp(self):
        torch.set_grad_enabled(False)
        self.addCleanup(torch.set_grad_enabled, True)
        # What the library was asked for.
        self.calls = []
        real = fat.attention

        def watched(q, k, v, **options):
            self.calls.append({"q": q, "k": k, **{x: y for x, y in options.items() if y is not None}})
            return real(q, k, v, **options)

        fat.attention, self.unwatched = watched, real
        self.addCleanup(setattr, fat, "attention", real)

    def by(self, name, model, compute, *given, **inputs):
        """What a model computes with an implementation."""
        model.set_attn_implementation(name)
        self.calls.clear()
        return compute(*given, **inputs)

    def both(self, model, compute, *given, **inputs):
        return [self.by(name, model, compute, *given, **inputs) for name in ("eager", "fa_cpu")]

    def logits(self, model, keep=None, calls=None, compare=None, **inputs):
        """Ours are those of eager, and every layer was ours. Returns the largest difference."""
        want = self.by("eager", model, model, **inputs).logits
        keep = torch.ones(want.shape[:-1], dtype=torch.bool) if keep is None else keep.bool()
        got = {}
        for name in [compare, "fa_cpu"] if compare else ["fa_cpu"]:
            got[name] = float((self.by(name, model, model, **inputs).logits - want)[keep].abs().max())
        self.assertEqual(len(self.calls), calls or model.config.get_text_config().num_hidden_layers)
        self.assertLess(got["fa_cpu"], BOUND)
        self.assertGreater(float(want.abs().max()), 1.0)
        return got

    def tell(self, name, got):
        differences.setdefault(name, []).append(got)

    def said(self, name):
        """Each different value of an argument of the calls."""
        values = [x.get(name) for x in self.calls]
        values = [x.tolist() if isinstance(x, torch.Tensor) else x for x in values]
        return [x for i, x in enumerate(values) if x not in values[:i]]


class Models(Case):
    def test_logits(self):
        for name, (*_, sdpa) in DECODERS.items():
            model = decoder(name)
            for side in None, "left", "right":
                with self.subTest(name, padding=side):
                    mask = None if side is None else padding(side)
                    inputs = {"input_ids": tokens(), "attention_mask": mask, "use_cache": False}
                    self.tell(name, self.logits(model, mask, compare="sdpa" if sdpa else None, **inputs))

    def test_tokens(self):
        for name in DECODERS:
            model = decoder(name)
            for side in None, "left":
                for cache in None, "static":
                    with self.subTest(name, padding=side, cache=cache):
                        options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
                        options["attention_mask"] = None if side is None else padding(side)
                        want, got = self.both(model, model.generate, tokens(), **options)
                        self.assertEqual(want.tolist(), got.tolist())
                        self.assertEqual(got.shape[1], 62)
                        self.assertEqual(len(self.calls), 12 * model.config.num_hidden_layers)

    def test_prompt_in_parts(self):
        # Rows that come after others, more than one at a time.
        for name in DECODERS:
            model = decoder(name)
            for cache in hf.DynamicCache, hf.StaticCache:
                with self.subTest(name, cache=cache.__name__):
                    want, got = self.both(model, in_parts, model, cache)
                    self.assertLess(float((want - got).abs().max()), BOUND)

    def test_half_precision(self):
        for dtype, bound in (torch.bfloat16, 0.3), (torch.float16, 0.03):
            model = decoder("Llama").to(dtype)
            want, got = (x.logits for x in self.both(model, model, tokens()))
            self.assertEqual({x["q"].dtype for x in self.calls}, {dtype})
            self.assertLess(float((want - got).float().abs().max()), bound)

    def test_encoders(self):
        torch.manual_seed(0)
        special = {"local_attention": 16, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2}
        models = {
            "BERT": hf.BertForMaskedLM(hf.BertConfig(**TEXT)),
            "ModernBERT": hf.ModernBertForMaskedLM(hf.ModernBertConfig(**TEXT | special)),
        }
        for name, model in models.items():
            for side in None, "right", "left":
                with self.subTest(name, padding=side):
                    mask = None if side is None else padding(side)
                    inputs = {"input_ids": tokens(), "attention_mask": mask}
                    self.tell(name, self.logits(model.eval(), mask, compare="sdpa", **inputs))
                    self.assertEqual(self.said("mask"), [None])
                    # A fourth of the layers sees all.
                    windows = [None] if name == "BERT" else [None, 8]
                    self.assertEqual(self.said("window_left"), windows)
                    self.assertEqual(self.said("window_right"), windows)

    def test_images(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
        config = hf.ViTConfig(image_size=32, patch_size=4, initializer_range=0.3, **sizes)
        model = hf.ViTForImageClassification(config).eval()
        self.tell("ViT", self.logits(model, compare="sdpa", pixel_values=torch.randn(2, 3, 32, 32)))

    def test_whisper(self):
        torch.manual_seed(0)
        sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 96}
        config = hf.WhisperConfig(
            **{f"{side}_{x}": n for side in ("encoder", "decoder") for x, n in sides.items()},
            **{x: TEXT[x] for x in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
            d_model=64,
            max_source_positions=50,
            max_target_positions=64,
            num_mel_bins=8,
            init_std=0.2,
            decoder_start_token_id=1,
            begin_suppress_tokens=None,
            suppress_tokens=None,
        )
        model = hf.WhisperForConditionalGeneration(config).eval()
        sound = torch.randn(2, 8, 100)
        inputs = {"input_features": sound, "decoder_input_ids": tokens(2, 20)}
        # The encoder's, and two of each layer of the decoder.
        self.tell("Whisper", self.logits(model, calls=6, compare="sdpa", **inputs))
        for cache in None, "static":
            options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
            want, got = self.both(model, model.generate, input_features=sound, **options)
            self.assertEqual(want.tolist(), got.tolist())

    def test_position_bias(self):
        torch.manual_seed(0)
        config = hf.T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0)
        model = hf.T5ForConditionalGeneration(config).eval()
        inputs = {"input_ids": tokens(), "attention_mask": padding("right"), "decoder_input_ids": tokens(3, 12)}
        want, got = (x.logits for x in self.both(model, model, **inputs))
        self.assertEqual(len(self.calls), 6)
        self.assertLess(float((want - got).abs().max() / want.abs().max()), 1e-5)


class Masks(Case):
    """What becomes of masks: fields, where they say it all."""

    def test_fields(self):
        for name in "Llama", "Mistral", "Gemma 2", "Gemma 3", "GPT-OSS", "Llama 4":
            # As long as there is one chunk it is no mask.
            model = decoder(name, **{"attention_chunk_size": 50} if name == "Llama 4" else {})
            windows = [None] if "Llama" in name else [15] if name == "Mistral" else [15, None]
            for side in None, "left", "right":
                mask = None if side is None else padding(side)
                with self.subTest(name, padding=side):
                    self.by("fa_cpu", model, model, tokens(), attention_mask=mask, use_cache=False)
                    self.assertEqual(self.said("mask"), [None])
                    self.assertEqual(self.said("window_left"), windows)
                    self.assertEqual(self.said("window_right"), [0])
                    self.assertEqual(self.said("kv_starts"), [[20, 6, 0] if side == "left" else None])
                    self.assertEqual(self.said("kv_lens"), [[30, 44, 50] if side == "right" else None])
            self.assertEqual(self.said("softcap"), [3.0 if name == "Gemma 2" else 0.0])
            self.assertEqual("sinks" in self.calls[0], name == "GPT-OSS")

    def test_chunks(self):
        # Beyond the first chunk of a prompt there is a mask, of a token there is none.
        model = decoder("Llama 4")
        self.by("fa_cpu", model, model.generate, tokens(), max_new_tokens=2, do_sample=False)
        prompt, token = self.calls[:4], self.calls[4:]
        self.assertEqual(["mask" in x for x in prompt], [True, True, True, False])
        self.assertFalse(any("mask" in x for x in token))
        self.assertTrue(any("kv_starts" in x for x in token))

    def test_static_cache(self):
        model = decoder("Llama")
        options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
        for side in None, "left":
            mask = None if side is None else padding(side)
            self.by("fa_cpu", model, model.generate, tokens(), attention_mask=mask, **options)
            self.assertEqual(self.said("mask"), [None])
            # The last one fills it.
            self.assertEqual(self.said("kv_lens"), [[50] * 3, [51] * 3, [52] * 3, None])
            self.assertEqual(self.said("kv_starts"), [None] if side is None else [[20, 6, 0]])
            self.assertEqual({x["k"].shape[2] for x in self.calls}, {53})

    def test_packed(self):
        positions = torch.cat([torch.arange(n) for n in (20, 13, 17)])[None]
        for name in "Llama", "Mistral", "Gemma 2":
            for batch in 1, 3:
                with self.subTest(name, batch=batch):
                    model = decoder(name)
                    inputs = {"position_ids": positions.expand(batch, -1), "use_cache": False}
                    self.logits(model, input_ids=tokens(batch), **inputs)
                    self.assertEqual(self.said("mask"), [None])
                    ends = [0, *(50 * b + n for b in range(batch) for n in (20, 33, 50))]
                    self.assertEqual(self.said("cu_len_q"), [ends])
                    self.assertEqual(self.said("cu_len_kv"), [ends])
        # Each sequence has what it has alone.
        model = decoder("Mistral")
        whole = self.by("fa_cpu", model, model, tokens(1), position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(x).logits for x in tokens(1).split((20, 13, 17), 1)], 1)
        self.assertLess(float((whole - alone).abs().max()), BOUND)

    def test_others_masks(self):
        model = decoder("Mistral")
        hole = padding("right")
        hole[2, 5] = 0
        self.logits(model, hole, input_ids=tokens(), attention_mask=hole)
        self.assertTrue(all("mask" in x for x in self.calls))
        # One of four axes, of numbers that are added: the window is the mask's.
        mask = torch.zeros(3, 1, 50, 50).masked_fill(torch.ones(50, 50).tril(-3).bool(), -2.0)
        mask = mask.masked_fill(torch.ones(50, 50).triu(1).bool(), torch.finfo(torch.float32).min)
        self.logits(model, input_ids=tokens(), attention_mask=mask)
        self.assertTrue(all("mask" in x for x in self.calls))

    def test_functions_of_masks(self):
        """Random ones: fields hide what the mask hides, if they are fields."""
        generator = torch.Generator().manual_seed(0)

        def less(n):
            return int(torch.randint(n, (), generator=generator))

        window, both = masks.sliding_window_causal_mask_function, masks.sliding_window_bidirectional_mask_function
        fields = 0
        for _ in range(400):
            batch, q_length, kv_offset = 1 + less(3), 1 + less(2) * less(12), less(2) * less(5)
            q_offset = kv_offset + less(2) * less(20)
            kv_length = q_offset - kv_offset + q_length + less(2) * less(6)
            padded, seen = None, torch.ones(batch, kv_offset + kv_length - less(2), dtype=torch.bool)
            for b in range(batch):
                seen[b, : less(2) * less(8)] = False
                seen[b, seen.shape[1] - less(2) * less(8) :] = False
            if less(2):
                padded = seen
            left = (seen.cumsum(-1) == 0).sum(-1) if padded is not None else torch.zeros(batch, dtype=torch.int)
            functions = [masks.causal_mask_function, masks.bidirectional_mask_function]
            functions += [window(1 + less(9)), both(less(9)), masks.chunked_causal_mask_function(1 + less(40), left)]
            function = functions[less(len(functions))]
            sizes = {"batch_size": batch, "q_length": q_length, "kv_length": kv_length}
            sizes |= {"q_offset": q_offset, "kv_offset": kv_offset}
            want = masks.sdpa_mask(**sizes, mask_function=function, attention_mask=padded, allow_is_causal_skip=False)
            got = fat.attention_mask(**sizes, mask_function=function, attention_mask=padded)
            self.assertEqual(got.shape, want.shape)
            if not isinstance(got, fat.Mask):
                self.assertTrue(torch.equal(got, want))
                continue
            told = got.fields
            p, j = told.q_pos + torch.arange(q_length)[:, None], torch.arange(kv_length)
            allowed = torch.ones(batch, 1, q_length, kv_length, dtype=torch.bool)
            if told.window_left is not None:
                allowed &= j >= p - told.window_left
            if told.window_right is not None:
                allowed &= j <= p + told.window_right
            if told.kv_lens is not None:
                self.assertTrue(bool((told.kv_lens <= kv_length).all()) and told.kv_lens.dtype == torch.int32)
                allowed &= (j < told.kv_lens[:, None])[:, None, None]
            if told.kv_starts is not None:
                ends = kv_length if told.kv_lens is None else told.kv_lens
                self.assertTrue(bool((told.kv_starts <= ends).all()) and told.kv_starts.dtype == torch.int32)
                allowed &= (j >= told.kv_starts[:, None])[:, None, None]
            self.assertTrue(torch.equal(allowed, want), (sizes, told, padded))
            self.assertTrue(torch.equal(got & True, want))
            fields += 1
        self.assertGreater(fields, 250)

    def test_read_by_others(self):
        sizes = {"batch_size": 1, "q_length": 3, "kv_length": 3}
        mask, want = fat.attention_mask(**sizes), torch.ones(3, 3).tril().bool()[None, None]
        self.assertTrue(torch.equal(mask[:, :, -1:], want[:, :, -1:]))
        self.assertIsNotNone(mask.fields)
        # Who writes has a mask of his own.
        mask.logical_and_(torch.tensor([False, True, True]))
        self.assertIsNone(mask.fields)
        self.assertTrue(torch.equal(mask.made(), want & torch.tensor([False, True, True])))
        # One that nobody knows is a mask.
        own = masks.and_masks(masks.causal_mask_function, lambda b, h, q, k: k != 1)
        self.assertEqual(fat.attention_mask(**sizes, mask_function=own)[0, 0].tolist()[2], [True, False, True])


class Elsewhere(Case):
    """What PyTorch computes, what is compiled, what is batched."""

    def test_gradients(self):
        torch.set_grad_enabled(True)
        for name in "Llama", "Mistral", "Gemma 2", "GPT-OSS", "Llama 4":
            model = decoder(name)
            for side in None, "left":
                with self.subTest(name, padding=side):
                    mask = None if side is None else padding(side)
                    want, got = self.both(model, gradients, model, mask)
                    self.assertEqual(len(self.calls), 0)
                    for key, x in want.items():
                        error = float((x - got[key]).abs().max()) / max(float(x.abs().max()), 1e-3)
                        self.assertLess(error, 1e-4, key)
                    if name == "GPT-OSS":
                        self.assertTrue(any("sinks" in x and bool(want[x].any()) for x in want))

    def test_dropout_and_float64(self):
        model = decoder("Gemma 2", attention_dropout=0.5).train()
        torch.manual_seed(0)
        self.by("fa_cpu", model, model, tokens(), use_cache=False)
        self.assertEqual(len(self.calls), 0)
        for name in "Mistral", "Gemma 2":
            model = decoder(name).double()
            want, got = (x.logits for x in self.both(model, model, tokens()))
            self.assertEqual(len(self.calls), 0)
            # The models' own norms and tables are float32.
            self.assertLess(float((want - got).abs().max()), BOUND)

    def test_what_would_be_lost(self):
        x = torch.randn(1, 2, 4, 16)
        for name in "indices", "block_indices", "sinks":
            with self.assertRaisesRegex(NotImplementedError, name):
                fat.attention_forward(torch.nn.Module(), x, x, x, None, **{name: x})

    def test_sequences_behind_one_another(self):
        """cu_seq_lens, as models for images give them; without and with gradients."""
        module = torch.nn.Module()
        module.num_key_value_groups = 2
        q, k, v = (torch.randn(1, n, 30, 16) for n in (4, 2, 2))
        ends = torch.tensor([0, 11, 11, 30])
        for causal in False, True:
            for window in None, 4:
                options = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "is_causal": causal, "sliding_window": window}
                got, _ = fat.attention_forward(module, q, k, v, None, **options)
                p, j = torch.arange(30)[:, None], torch.arange(30)
                mask = (p < 11) == (j < 11)
                mask = mask & (j <= p) if causal else mask
                mask = mask & ((p - j).abs() < window) if window else mask
                want, _ = sdpa_attention_forward(module, q, k, v, mask[None, None], is_causal=False)
                self.assertLess(float((got - want).abs().max()), 1e-5)
                with torch.enable_grad():
                    wanted = q.clone().requires_grad_()
                    got, _ = fat.attention_forward(module, wanted, k, v, None, **options)
                    got.sum().backward()
                self.assertLess(float((got.detach() - want).abs().max()), 1e-5)
                self.assertIsNotNone(wanted.grad)
        self.assertEqual(len(self.calls), 4)

    def test_compile_and_export(self):
        for name in "Mistral", "Gemma 2", "GPT-OSS":
            model = decoder(name, num_hidden_layers=2)
            for side in None, "left":
                with self.subTest(name, padding=side):
                    mask = None if side is None else padding(side)
                    inputs = {"input_ids": tokens(), "attention_mask": mask, "use_cache": False}
                    keep = torch.ones(3, 50).bool() if mask is None else mask.bool()
                    want = self.by("eager", model, model, **inputs).logits
                    model.set_attn_implementation("fa_cpu")
                    torch._dynamo.reset()
                    got = torch.compile(model, backend="aot_eager")(**inputs).logits
                    self.assertLess(float((want - got)[keep].abs().max()), BOUND)
        model = decoder("Mistral")
        want = self.by("eager", model, model, tokens(), use_cache=False).logits
        model.set_attn_implementation("fa_cpu")
        exported = torch.export.export(model, (tokens(),), {"use_cache": False}, strict=False)
        nodes = [x for x in exported.graph.nodes if "cpu_attention.attention" in str(x.target)]
        self.assertEqual(len(nodes), 4)
        self.assertLess(float((exported.module()(tokens(), use_cache=False).logits - want).abs().max()), BOUND)

    def test_compiled_generate(self):
        compiled = hf.CompileConfig(backend="aot_eager", fullgraph=False, mode=None)
        compiled._compile_all_devices = True
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": padding("left")}
        model = decoder("Llama")
        want = self.by("eager", model, model.generate, tokens(), **options)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        options |= {"cache_implementation": "static", "compile_config": compiled}
        fat.attention = self.unwatched
        got = self.by("fa_cpu", model, model.generate, tokens(), **options)
        self.assertEqual(want.tolist(), got.tolist())
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 1)

    def test_continuous_batching(self):
        fat.register("sdpa")
        self.addCleanup(hf.AttentionInterface.register, "sdpa", sdpa_attention_forward)
        self.addCleanup(hf.AttentionMaskInterface.register, "sdpa", masks.sdpa_mask)
        prompts = [tokens(1, n)[0].tolist() for n in (7, 20, 33)]
        greedy = hf.GenerationConfig(max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=-1)
        settings = hf.ContinuousBatchingConfig(num_blocks=64, auto_switch_to_flash=False)
        for name in "Llama", "Mistral", "Gemma 3":
            with self.subTest(name):
                model = decoder(name)
                model.set_attn_implementation("eager")
                want = [model.generate(torch.tensor([x]), generation_config=greedy)[0, len(x) :] for x in prompts]
                options = {"continuous_batching_config": settings, "progress_bar": False, "generation_config": greedy}
                got = self.by("sdpa", model, model.generate_batch, prompts, **options)
                self.assertEqual([x.generated_tokens for x in got.values()], [x.tolist() for x in want])
                self.assertTrue(all("cu_len_q" in x for x in self.calls))
                self.assertGreater(len(self.calls), 30)


def table():
    print("| model | ours | sdpa |\n|---|---|---|")
    for name, found in differences.items():
        ours, theirs = (max((x.get(y, 0.0) for x in found), default=0.0) for y in ("fa_cpu", "sdpa"))
        print(f"| {name} | {ours:.1e} | {f'{theirs:.1e}' if theirs else 'refused'} |")


if __name__ == "__main__":
    torch.set_num_threads(2)
    program = unittest.main(argv=[sys.argv[0], *arguments.tests], exit=False)
    if arguments.table:
        table()
    sys.exit(not program.result.wasSuccessful())
