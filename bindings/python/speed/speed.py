#!/usr/bin/env python3
"""Times PyTorch's attention as it is installed and with the library, in turns, each output compared with PyTorch's.

speed.py run LIBRARY.so [--only WORKLOAD,...] [--threads 1,2] [--turns N] [--output FOLDER]
speed.py draw FILE.json TABLE.md FIGURE.svg

Beside the workloads there is `calls`: what calls cost besides computing. A turn of a way to compute is the median of
its calls; a time is the median of the turns, and what stands beside it as "times as fast" the median of the quotients
of each turn, with the quartiles of these.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "benches/peers")]
from svg import BLUE, ORANGE, Drawing, Log  # noqa: E402

PYTORCH = "PyTorch"
# Of a turn of calls. Threads that wait for work spin a while: the next one waits for that.
SECONDS, PAUSE = 0.2, 0.02
# Largest difference from PyTorch's output, of the largest number there.
BOUNDS = {"f32": 2e-5, "bf16": 4e-2}


class Workload(NamedTuple):
    name: str
    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_kv: int
    dim: int
    dtype: str = "f32"
    causal: bool = False
    # The shortest sequence of a padded batch; the longest has len_kv keys, and they lie evenly
    # between.
    shortest: int | None = None
    # Sets of K and V that calls take in turns: those of a model's layers are in no cache when they
    # are wanted.
    copies: int = 1
    # PyTorch's threads multiply matrices between the calls.
    between: bool = False


WORKLOADS = [
    Workload("prefill, 32 on 8 x 2,048 x 128, causal", 1, 32, 8, 2048, 2048, 128, causal=True),
    Workload("prefill, the same in bf16", 1, 32, 8, 2048, 2048, 128, "bf16", causal=True),
    Workload("decode, 4,096 keys, 32 on 8 x 128", 1, 32, 8, 1, 4096, 128, copies=4),
    Workload("decode, the same in bf16", 1, 32, 8, 1, 4096, 128, "bf16", copies=4),
    Workload("BERT, 8 x 12 x 512 x 64, a fourth padding", 8, 12, 12, 512, 512, 64, shortest=256),
    Workload("BERT, a mask that hides nothing", 8, 12, 12, 512, 512, 64, shortest=512),
    Workload("BERT, no mask", 8, 12, 12, 512, 512, 64),
    Workload("small, 1 x 12 x 128 x 64", 1, 12, 12, 128, 128, 64),
    Workload("pools, decode between matrices", 1, 32, 8, 1, 4096, 128, copies=4, between=True),
    Workload("pools, small between matrices", 1, 12, 12, 128, 128, 64, between=True),
]
CALLS = "calls"
GENERATE = "generate, Llama of 0.4 B, prompt 1,024"
# Tokens after the first of a turn, turns of these, turns of prompts.
TOKENS, TOKEN_TURNS, PROMPT_TURNS = 2, 40, 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("run")
    p.add_argument("library")
    p.add_argument("--only", type=lambda x: tuple(x.split(",")), default=("",))
    p.add_argument("--threads", type=lambda x: [int(n) for n in x.split(",")], default=[1, 2])
    p.add_argument("--turns", type=int, default=15)
    p.add_argument("--output", type=Path, required=True)
    p = commands.add_parser("draw")
    for name in ("data", "table", "figure"):
        p.add_argument(name, type=Path)
    a = parser.parse_args()
    if a.command == "draw":
        data = json.loads(a.data.read_text())
        a.table.write_text(table(data))
        figure(data, a.figure)
        return
    # It needs numpy, which drawing does not.
    from compare import lines, machine

    a.output.mkdir(parents=True, exist_ok=True)
    file = a.output / "speed.json"
    data = json.loads(file.read_text()) if file.exists() else {"calls_us": {}, "results": []}
    data |= {"date": datetime.date.today().isoformat(), "machine": machine()}
    for line in run(a, data):
        key = [(x["workload"], x["threads"], x["way"]) for x in data["results"]]
        at = (line["workload"], line["threads"], line["way"])
        if at in key:
            data["results"][key.index(at)] = line
        else:
            data["results"].append(line)
        print("speed:", json.dumps(line), file=sys.stderr, flush=True)
        # It takes long: what is there is kept.
        file.write_text(lines(data) + "\n")
    order = [*(w.name for w in WORKLOADS), GENERATE + ": prompt", GENERATE + ": a token"]
    data["results"].sort(key=lambda x: (order.index(x["workload"]), x["threads"]))
    file.write_text(lines(data) + "\n")
    (a.output / "speed.md").write_text(table(data))
    figure(data, a.output / "speed.svg")
    print(table(data), end="")


def run(a, data):
    """The lines of all workloads that are wanted."""
    global fa, fat, torch
    import torch

    import cpu_attention as fa

    fa.load(a.library)
    import cpu_attention.torch as fat

    if not fat.extension:
        sys.exit("speed: the extension could not be built")
    versions = {"torch": torch.__version__, "flash_attention": f"{fa.version()} ({fa.isa()})"}
    data["versions"] = data.get("versions", {}) | versions
    torch.set_grad_enabled(False)
    if CALLS.startswith(a.only):
        torch.set_num_threads(1)
        data["calls_us"] = dict(costs())
    for threads in a.threads:
        torch.set_num_threads(threads)
        for w in WORKLOADS:
            if w.name.startswith(a.only) and not (w.name.startswith("pools") and threads == 1):
                yield from compared(w.name, threads, *ways(w, threads), a.turns, BOUNDS[w.dtype])
        if GENERATE.startswith(a.only):
            import transformers

            data["versions"]["transformers"] = transformers.__version__
            yield from generated(threads)


def costs():
    """What calls cost besides computing: microseconds of one row on 4 keys, the least of 300 times 100 calls."""
    q, k, v, out = (torch.randn(1, 4, n, 16) for n in (1, 4, 4, 1))
    lens = torch.tensor([4], dtype=torch.int32)

    def options(kind):
        return {"out": kind(out), "kv_lens": kind(lens), "causal": True, "scale": 0.3}

    arrays, doubles = [x.numpy() for x in (q, k, v)], [x.double() for x in (q, k, v)]
    told = options(torch.Tensor.numpy), options(lambda x: x)
    of_pytorch = torch.nn.functional.scaled_dot_product_attention
    for name, sdpa, call in (
        ("prepared", None, fa.prepare(*arrays).run),
        ("attention", None, lambda: fa.attention(*arrays)),
        ("attention with options", None, lambda: fa.attention(*arrays, **told[0])),
        ("attention on tensors", None, lambda: fa.attention(q, k, v)),
        ("attention on tensors with options", None, lambda: fa.attention(q, k, v, **told[1])),
        ("scaled_dot_product_attention", None, lambda: fa.scaled_dot_product_attention(*arrays)),
        (PYTORCH, None, lambda: of_pytorch(q, k, v)),
        ("enable()", False, lambda: of_pytorch(q, k, v)),
        ("enable(sdpa=True)", True, lambda: of_pytorch(q, k, v)),
        ("PyTorch, float64", None, lambda: of_pytorch(*doubles)),
        ("enable(), float64 (declined)", False, lambda: of_pytorch(*doubles)),
        ("enable(sdpa=True), float64 (declined)", True, lambda: of_pytorch(*doubles)),
        ("operator", None, lambda: fat.attention(q, k, v)),
    ):
        with enabled(sdpa):
            took = []
            for _ in range(300):
                begin = time.perf_counter()
                for _ in range(100):
                    call()
                took.append(time.perf_counter() - begin)
        yield name, 1e4 * min(took)


@contextlib.contextmanager
def enabled(sdpa):
    """PyTorch with one of the overrides; None: as it is installed."""
    if sdpa is not None:
        fat.enable(sdpa=sdpa)
    try:
        yield
    finally:
        fat.disable()


def ways(w, threads):
    """How a workload is computed: by name (which override is in force, one call); what comes between the calls; how far
    two outputs are from each other; what makes K and V begin anew."""
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[w.dtype]
    made = torch.Generator().manual_seed(1)

    def normal(heads, tokens):
        # Rows of a token beside one another, as models' projections leave them.
        return torch.randn(w.batch, tokens, heads, w.dim, generator=made).to(kind).transpose(1, 2)

    q = normal(w.heads_q, w.len_q)
    caches = [(normal(w.heads_kv, w.len_kv), normal(w.heads_kv, w.len_kv)) for _ in range(w.copies)]
    if w.len_q == 1:
        # Caches are [batch][head][token][dim].
        caches = [(k.contiguous(), v.contiguous()) for k, v in caches]
    lens = mask = None
    if w.shortest is not None:
        lens = torch.linspace(w.len_kv, w.shortest, w.batch).int()
        mask = (torch.arange(w.len_kv) < lens[:, None])[:, None, None]
    # It aligns the first query with the first key, which is not what causal means with a cache.
    options = {"attn_mask": mask, "is_causal": w.causal, "enable_gqa": w.heads_q != w.heads_kv}
    at = 0

    def turned(call):
        def with_next():
            nonlocal at
            at = (at + 1) % len(caches)
            return call(*caches[at])

        return with_next

    def pytorch(k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    def operator(k, v):
        return fat.attention(q, k, v, causal=w.causal, kv_lens=lens)[0]

    found = {
        PYTORCH: (None, turned(pytorch)),
        "enable()": (False, turned(pytorch)),
        "enable(sdpa=True)": (True, turned(pytorch)),
        "operator": (None, turned(operator)),
    }
    if threads > 1:
        told = {"causal": w.causal, "kv_lens": lens, "threads": threads}
        found["own pool"] = None, turned(lambda k, v: fa.attention(q, k, v, **told))
    x, m = torch.randn(64, 1024), torch.randn(1024, 1024)

    def between():
        if w.between:
            torch.mm(x, m)

    # Rows that are padding themselves say nothing.
    rows = slice(None) if lens is None else (torch.arange(w.len_q) < lens[:, None])[:, None, :, None]

    def error(got, want):
        differences = (got.float() - want.float()).abs()
        return float((differences if lens is None else differences * rows).max() / want.float().abs().max())

    def reset():
        nonlocal at
        at = 0

    return found, between, error, reset


def compared(name, threads, ways, between, error, reset, turns, bound):
    """The lines of one workload: each way, in turns."""
    took, errors, want = {}, {}, None
    for way, (sdpa, call) in ways.items():
        with enabled(sdpa):
            reset()
            got = call()
            want = got if want is None else want
            errors[way] = error(got, want)
            if not errors[way] <= bound:
                sys.exit(f"speed: {name}, {way}: off by {errors[way]:.2e}")
            took[way] = []
    names = list(ways)
    for turn in range(turns):
        # Who follows whom changes.
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            sdpa, call = ways[way]
            time.sleep(PAUSE)
            with enabled(sdpa):
                series, now, end = [], 0.0, time.perf_counter() + SECONDS
                while now < end:
                    between()
                    begin = time.perf_counter()
                    call()
                    now = time.perf_counter()
                    series.append(now - begin)
            took[way].append(1e3 * statistics.median(series))
    for way, times in took.items():
        yield line(name, threads, way, times, took[PYTORCH], error=errors[way])


def line(name, threads, way, times, theirs, **more):
    """What is kept of milliseconds of turns, beside PyTorch's in the same turns."""
    times_as_fast = sorted(their / our for their, our in zip(theirs, times, strict=True))
    several = times_as_fast if len(times) > 1 else 2 * times_as_fast
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {
        "workload": name,
        "threads": threads,
        "way": way,
        "ms": statistics.median(times),
        "least_ms": min(times),
        "times_as_fast": middle,
        "quartiles": [low, high],
        "turns": len(times),
        **more,
    }


def generated(threads):
    """The lines of generate(): the prompt, and each token after the first."""
    import transformers as hf

    import cpu_attention.transformers  # noqa: F401

    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 28, "vocab_size": 32000}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048}
    special = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **heads, **special)).eval()
    prompt = torch.randint(3, 32000, (1, 1024), generator=torch.Generator().manual_seed(1))
    stamps, logits = [], []

    class Watch(hf.LogitsProcessor):
        def __call__(self, _, scores):
            stamps.append(time.perf_counter())
            logits.append(scores.clone())
            return scores

    found = {
        PYTORCH: ("sdpa", None),
        "enable()": ("sdpa", False),
        "fa_cpu": ("fa_cpu", None),
    }
    processors = hf.LogitsProcessorList([Watch()])
    told = {"do_sample": False, "logits_processor": processors, "return_dict_in_generate": True}

    def generate(way, ids, tokens, cache=None):
        implementation, sdpa = found[way]
        model.set_attn_implementation(implementation)
        stamps.clear(), logits.clear()
        with enabled(sdpa):
            begin = time.perf_counter()
            mask = torch.ones_like(ids)
            got = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=tokens, **told)
        return got, [begin, *stamps]

    def same(name, way, got):
        """The largest difference of logits from PyTorch's, whose tokens must be the same."""
        part = got.sequences[:, -len(logits) :], torch.cat(logits)
        want = first.setdefault(name, part)
        error = float((part[1] - want[1]).abs().max() / want[1].abs().max())
        if not torch.equal(part[0], want[0]) or not error <= BOUNDS["f32"]:
            sys.exit(f"speed: {GENERATE}, {way}: other tokens, or logits off by {error:.2e}")
        return error

    first, caches = {}, {}
    for name, turns in ("prompt", PROMPT_TURNS), ("a token", TOKEN_TURNS):
        took, errors = {way: [] for way in found}, {}
        names = list(found)
        for turn in range(turns):
            for way in names[turn % len(names) :] + names[: turn % len(names)]:
                if name == "prompt":
                    got, (begin, end) = generate(way, prompt, 1)
                    took[way].append(1e3 * (end - begin))
                    caches[way] = got.sequences, got.past_key_values
                else:
                    ids, cache = caches[way]
                    if more := cache.get_seq_length() - prompt.shape[1]:
                        cache.crop(-more)
                    got, (_, *at) = generate(way, ids, TOKENS + 1, cache)
                    took[way].append(1e3 * statistics.median(b - a for a, b in itertools.pairwise(at)))
                errors[way] = same(name, way, got)
        for way, times in took.items():
            yield line(f"{GENERATE}: {name}", threads, way, times, took[PYTORCH], error=errors[way])


def listed(data):
    """[(workload, threads, {way: line})], in the order in which they were timed."""
    found = {}
    for x in data["results"]:
        found.setdefault((x["workload"], x["threads"]), {})[x["way"]] = x
    return [(*key, by_way) for key, by_way in found.items()]


def below(data):
    """What was measured, where and when."""
    names = {"torch": "PyTorch", "transformers": "transformers", "flash_attention": "flash_attention"}
    versions = ", ".join(f"{names[n]} {v}" for n, v in data["versions"].items())
    return f"{data['machine']['cpu']}, {data['machine']['cores']} cores; {versions}; {data['date']}"


def milliseconds(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}" if x >= 1 else f"{x:.2f}"


COLUMNS = {
    "`enable()`": ("enable()",),
    "`enable(sdpa=True)`": ("enable(sdpa=True)",),
    "operator, or `fa_cpu`": ("operator", "fa_cpu"),
    "own threads": ("own pool",),
}


def table(data):
    head = ["workload", "threads", f"{PYTORCH}, ms", *COLUMNS]
    out = [below(data), "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for workload, threads, by_way in listed(data):
        cells = [workload, str(threads), milliseconds(by_way[PYTORCH]["ms"])]
        for ways in COLUMNS.values():
            x = next((by_way[way] for way in ways if way in by_way), None)
            if x is None:
                cells.append("")
            else:
                low, high = x["quartiles"]
                cells.append(f"{milliseconds(x['ms'])}: **{x['times_as_fast']:.2f}** ({low:.2f} to {high:.2f})")
        out.append("| " + " | ".join(cells) + " |")
    if "calls_us" in data:
        out += ["", "| a call of one row on 4 keys | µs |", "|---|---|"]
        out += [f"| {name} | {us:.1f} |" for name, us in data["calls_us"].items()]
    return "\n".join(out) + "\n"


def figure(data, path):
    """How many times as fast as PyTorch, a row for each workload: enable() on one thread and on two."""
    rows = [x for x in listed(data) if not x[0].startswith("pools")]
    names = list(dict.fromkeys(x[0] for x in rows))
    width, left, right, step, top = 830, 330, 800, 26, 96
    title = "PyTorch with enable(): times as fast as alone"
    d = Drawing(width, top + step * len(names) + 36, title)
    d.text(14, 26, title, size=17, weight="600")
    d.text(14, 46, f"{below(data)}.", quiet=True)
    marks = {1: ("circle", BLUE), 2: ("square", ORANGE)}
    for i, (threads, (shape, colour)) in enumerate(marks.items()):
        d.mark(20 + 110 * i, 68, shape, colour, 6)
        d.text(31 + 110 * i, 72, f"{threads} thread{'s' if threads > 1 else ''}")
    most = max((x["times_as_fast"] for x in data["results"]), default=1.0)
    at = Log(0.5, max(4.0, 1.3 * most), left, right)
    bottom = top + step * len(names)
    for t in (0.5, 1, 2, 4, 8, 16, 32, 64):
        if t <= at.high:
            d.line(at(t), top - 6, at(t), bottom, "one" if t == 1 else "grid")
            d.text(at(t), bottom + 18, f"{t:g} x", "middle", quiet=True)
    for i, name in enumerate(names):
        y = top + step * (i + 0.5)
        d.line(left, y, right, y)
        d.text(left - 12, y + 4, name, "end", size=12)
        for workload, threads, by_way in rows:
            if workload == name and threads in marks:
                shape, colour = marks[threads]
                d.mark(at(by_way["enable()"]["times_as_fast"]), y, shape, colour, 6)
    d.write(path)


if __name__ == "__main__":
    main()
