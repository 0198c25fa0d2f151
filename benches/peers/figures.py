"""Draws compare.py's file: figures.py JSON FOLDER

Or those of several machines in one figure: figures.py JSON JSON... SVG
"""

import os
import sys

import svg
from results import CLASSES, OURS, Results, family
from svg import Drawing, Linear, Log

MARKS = {
    OURS: (svg.BLUE, "circle"),
    "PyTorch": (svg.RED, "diamond"),
    "PyTorch, check lifted": (svg.BROWN, "diamond"),
    "ONNX Runtime": (svg.GREEN, "square"),
    "OpenVINO": (svg.PINK, "up"),
    "ggml": (svg.ORANGE, "down"),
    "OpenBLAS three-step": (svg.SKY, "bar"),
    "OpenBLAS, told the CPU": (svg.TEAL, "bar"),
    "candle": (svg.OLIVE, "square"),
    "ruvector": (svg.GREY, "diamond"),
}
WIDTH = 830
GROUPS = ["prefill", "gqa", "encoder", "few", "masked", "decode", "latent", "small"]
# What the figure of several machines shows, in words.
SHORT = {
    "8 x 2048 x 64": "8 heads of 64, 2048 tokens",
    "8 x 2048 x 128, causal": "8 heads of 128, 2048 tokens, causal",
    "32/8 x 2048 x 128, causal": "32 heads on 8, 2048 tokens, causal",
    "8 x 12 x 384 x 64": "encoder, 8 texts of 384 tokens",
    "2048 queries, 8/2 heads, 2048 keys, causal": "a mask that is causal, 2048 tokens",
    "8 queries, 32/8 heads, 8192 keys": "8 queries, 8192 keys",
    "1 query, 32/8 heads, 32768 keys": "1 query, 32768 keys",
    "1 query, 128/1 heads, 4096 keys": "1 query, latent, 128 heads, 4096 keys",
}
TYPES = {"f32": (svg.BLUE, "circle"), "16 bits": (svg.ORANGE, "square"), "8 bits": (svg.GREEN, "diamond")}


def subtitle(r, what):
    return f"{what} {r.all['machine']['name']}, {r.all['date']}."


def legend_width(f):
    return 30 + 8 * len(f)


def legend(d, families, x, y, wrap=WIDTH - 10):
    """Marks and names in a row, or more rows; where the next line begins."""
    left = x
    for f in families:
        width = legend_width(f)
        if x + width > wrap:
            x, y = left, y + 20
        colour, shape = MARKS[f]
        d.mark(x + 6, y - 4, shape, colour)
        d.text(x + 17, y, f, weight="600" if f == OURS else None)
        x += width
    return y + 20


def present(best):
    """Families that any of the dictionaries has, in the order of the legend."""
    return [f for f in MARKS if any(f in b for b in best)]


def rows_of(r, kind, groups):
    """Workloads of these groups in which we and another one have been timed, with the fastest of each family."""
    found = ((w, r.fastest(w, 1, kind)) for g in groups for w in r.workloads(g, 1))
    return [(w, best) for w, best in found if OURS in best and len(best) > 1]


def dots(r, rows, title, below, path, value, axis, ticks, label, one=None):
    """A row for each workload, a mark for each family, more to the right."""
    left, right, step = 240, WIDTH - 30, 24
    names = present([b for _, b in rows])
    d = Drawing(WIDTH, 132 + 20 * ((sum(map(legend_width, names))) // (WIDTH - 30)) + step * len(rows), title)
    d.text(14, 26, title, size=17, weight="600")
    d.text(14, 46, below, quiet=True)
    top = legend(d, names, 14, 72) + 4
    bottom = top + step * len(rows)
    at = axis(left, right)
    for t in ticks:
        d.line(at(t), top - 4, at(t), bottom, "one" if t == one else "grid")
        d.text(at(t), bottom + 18, label(t), "middle", quiet=True)
    for n, (w, best) in enumerate(rows):
        y = top + step * n + step / 2
        d.line(left, y, right, y)
        d.text(left - 12, y + 4, w, "end")
        # Ours last, on top.
        for f in sorted(best, key=lambda f: f == OURS):
            if (x := value(best, f)) is not None:
                colour, shape = MARKS[f]
                d.mark(at(x), y, shape, colour, 6 if f == OURS else 5)
    d.write(path)


def speedup(r, path, kind, groups):
    rows = rows_of(r, kind, groups)
    if not rows:
        return

    def value(best, f):
        return best[f]["ms"]["median"] / best[OURS]["ms"]["median"]

    dots(
        r, rows, f"How many times as long the others take, {kind}, one thread",
        subtitle(r, "Right of the line: we are faster."), path, value,
        lambda a, b: Log(0.25, 64, a, b), [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64],
        lambda t: f"{t:g} x" if t < 64 else "64 x +", one=1,
    )


def roofline(r, path):
    rows = rows_of(r, "f32", ["prefill", "gqa", "encoder"])
    if not rows:
        return
    dots(
        r, rows, "Share of the processor's f32 peak, one thread",
        subtitle(r, "Visible pairs only; the peak is sampled between the turns."), path,
        lambda best, f: 100 * best[f]["of_limit"],
        lambda a, b: Linear(0, 100, a, b), range(0, 101, 20), lambda t: f"{t} %",
    )


def decode(r, path):
    """Bars by the type of the cache: milliseconds a token and layer, ours beside each family's best."""
    names = r.workloads("decode", 1)
    if not names:
        return
    w = names[0]
    left, right, step = 240, WIDTH - 150, 22
    bars = []
    for kind in CLASSES:
        best = r.fastest(w, 1, kind)
        order = sorted(best.values(), key=lambda x: x["ms"]["median"])
        if not order:
            continue
        # Those that are ten times slower would only make the others' bars short.
        order = [x for x in order if x["ms"]["median"] <= 8 * order[0]["ms"]["median"]]
        bars.append((kind, order))
    n = sum(len(b) for _, b in bars)
    d = Drawing(WIDTH, 92 + step * n + 38 * len(bars), "Decode")
    d.text(14, 26, f"Decode: {w} of 128 dimensions, one thread", size=17, weight="600")
    d.text(14, 46, subtitle(r, "Milliseconds for one token; beside them the rate at which K and V are read."), quiet=True)
    most = max(x["ms"]["median"] for _, b in bars for x in b)
    at = Linear(0, most, left, right)
    y = 80
    for kind, order in bars:
        d.text(14, y, "cache in " + kind, weight="600")
        y += 6
        # As fast as memory allows.
        bits = {"f32": 32, "16 bits": 16, "8 bits": 8, "4 bits": 4}[kind]
        elements = 2 * 8 * int(w.split()[-2]) * 128
        bound = at(elements * bits / 8 / r.limit(w, 1)["median"] * 1e3)
        d.line(bound, y, bound, y + step * len(order) + 6, "one")
        for x in order:
            f = family(x["peer"])
            d.rect(left, y + 4, at(x["ms"]["median"]) - left, step - 6, MARKS[f][0], 1 if f == OURS else 0.75)
            words = x["peer"].replace(", heads packed by hand", ", packed")
            d.text(left - 8, y + 17, words, "end", weight="600" if f == OURS else None)
            d.text(at(x["ms"]["median"]) + 6, y + 17, f"{x['ms']['median']:.2f} ms, {x['gbytes']:.1f} GB/s", quiet=True)
            y += step
        y += 32
    d.text(14, y - 4, "The thin line: reading K and V and doing nothing else.", quiet=True)
    d.write(path)


def by_length(r, path):
    """Time and memory, two panels."""
    names = r.workloads("length", 1)
    if not names:
        return
    lengths = [int(w.split()[2]) for w in names]
    times, memory = {}, {}
    for n, w in zip(lengths, names, strict=True):
        for f, x in r.fastest(w, 1, "f32").items():
            times.setdefault(f, {})[n] = x["ms"]["median"]
    for x in r.all["memory"]:
        of = memory.setdefault(family(x["peer"]), {})
        of[x["length"]] = min(of.get(x["length"], float("inf")), x["bytes"] / 2**20)
    d = Drawing(WIDTH, 480, "Time and memory by length")
    d.text(14, 26, "Time and memory by length: one head of 64 dimensions, f32, one thread", size=17, weight="600")
    d.text(14, 46, subtitle(r, "Time as a multiple of ours; memory of a call besides its output."), quiet=True)
    top = legend(d, present([times, memory]), 14, 72) + 6
    bottom = 430
    panels = [(70, 395, times, 0.5, 32, [0.5, 1, 2, 4, 8, 16, 32], "time, x ours"), (485, 810, memory, 0.01, 16384, [0.01, 0.1, 1, 10, 100, 1000, 10000], "MiB")]
    for left, right, lines, low, high, ticks, name in panels:
        x = Log(lengths[0], lengths[-1], left, right)
        y = Log(low, high, bottom, top)
        for t in ticks:
            d.line(left, y(t), right, y(t), "one" if name.startswith("time") and t == 1 else "grid")
            d.text(left - 6, y(t) + 4, f"{t:g}", "end", quiet=True)
        for n in lengths:
            d.line(x(n), top, x(n), bottom)
            if n in lengths[:: 2 if len(lengths) > 4 else 1] or n == lengths[-1]:
                d.text(x(n), bottom + 18, f"{n // 1024}k" if n >= 1024 else str(n), "middle", quiet=True)
        d.text((left + right) / 2, bottom + 38, f"length; {name}", "middle", quiet=True)
        for f in sorted(lines, key=lambda f: f == OURS):
            colour, shape = MARKS[f]
            scale = (lambda n: times[OURS][n]) if name.startswith("time") else (lambda n: 1)
            points = [(x(n), y(max(v / scale(n), low))) for n, v in sorted(lines[f].items())]
            d.polyline(points, colour, 2.5 if f == OURS else 1.5)
            for p in points:
                d.mark(*p, shape, colour, 4)
    d.write(path)


def accuracy(r, path):
    """Error and rate of each type."""
    w = "8 x 2048 x 64"
    lines = [x for x in r.of(w, 1) if "ms" in x and not x.get("wrong")]
    if not lines:
        return
    left, right, bottom = 70, WIDTH - 30, 460
    d = Drawing(WIDTH, 520, "Accuracy and speed")
    d.text(14, 26, f"Accuracy and speed by type: {w}, one thread", size=17, weight="600")
    d.text(14, 46, subtitle(r, "Up: faster. Left: more exact."), quiet=True)
    top = legend(d, [f for f in MARKS if any(family(x["peer"]) == f for x in lines)], 14, 72) + 20
    x, y = Log(1e-7, 1e-1, left, right), Log(2, 2000, bottom, top)
    for e in range(-7, 0):
        d.line(x(10.0**e), top, x(10.0**e), bottom)
        d.text(x(10.0**e), bottom + 18, f"1e{e}", "middle", quiet=True)
    for g in (2, 10, 50, 200, 1000):
        d.line(left, y(g), right, y(g))
        d.text(left - 6, y(g) + 4, str(g), "end", quiet=True)
    d.text((left + right) / 2, bottom + 40, "relative RMS error against float64", "middle", quiet=True)
    d.text(14, top - 8, "GFLOP/s", quiet=True)
    marks = [(x(line["error_rms"]), y(line["gflops"]), line) for line in lines]
    taken = [(a, b) for a, b, _ in marks]
    for a, b, line in sorted(marks, key=lambda m: family(m[2]["peer"]) == OURS):
        f = family(line["peer"])
        colour, shape = MARKS[f]
        d.mark(a, b, shape, colour, 6 if f == OURS else 5)
        # Where there is room: on the right, else on the left, above or below.
        for right, down, anchor in ((9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 18, "middle")):
            at = a + right + {"start": 12, "end": -12, "middle": 0}[anchor], b + down - 4
            if all(abs(at[0] - u) > 18 or abs(at[1] - v) > 10 for u, v in taken if (u, v) != (a, b)):
                taken.append(at)
                d.text(a + right, b + down, line["dtype"], anchor, size=11, quiet=f != OURS, weight="600" if f == OURS else None)
                break
    d.write(path)


def machines(all_of_them, path):
    """A section for each machine, a row for each workload, a mark for each type: the fastest other library."""
    left, right, step = 270, WIDTH - 30, 24
    sections = []
    for r in all_of_them:
        rows = []
        for w in SHORT:
            times = {kind: r.versus(w, 1, kind)[2] for kind in TYPES}
            if any(times.values()):
                rows.append((SHORT[w], times))
        sections.append((f"{r.all['machine']['name']}, {r.all['date']}", rows))
    height = 112 + sum(step * len(rows) + 34 for _, rows in sections)
    d = Drawing(WIDTH, height, "The fastest other library on several machines")
    d.text(14, 26, "Time of the fastest other library as a multiple of ours, one thread", size=17, weight="600")
    d.text(14, 46, "Right of the line: this library is faster. A type without a mark: no other library has it, or took over ten seconds.", quiet=True)
    x = 14
    for kind, (colour, shape) in TYPES.items():
        d.mark(x + 6, 68, shape, colour)
        d.text(x + 17, 72, kind)
        x += 90
    at = Log(0.25, 64, left, right)
    y = 96
    for name, rows in sections:
        d.text(14, y + 4, name, weight="600")
        y += 16
        for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
            d.line(at(t), y - 4, at(t), y + step * len(rows), "one" if t == 1 else "grid")
        for n, (w, times) in enumerate(rows):
            middle = y + step * n + step / 2
            d.line(left, middle, right, middle)
            d.text(left - 12, middle + 4, w, "end")
            for kind, value in times.items():
                if value is not None:
                    colour, shape = TYPES[kind]
                    d.mark(at(min(value, 64)), middle, shape, colour, 5)
        y += step * len(rows) + 18
    for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
        d.text(at(t), y, f"{t:g} x" if t < 64 else "64 x +", "middle", quiet=True)
    d.write(path)


def main():
    *sources, target = sys.argv[1:]
    if target.endswith(".svg"):
        machines([Results(source) for source in sources], target)
        return
    (source,), folder = sources, target
    r = Results(source)
    at = lambda name: os.path.join(folder, name)  # noqa: E731
    speedup(r, at("speedup.svg"), "f32", GROUPS)
    speedup(r, at("speedup-16.svg"), "16 bits", GROUPS)
    speedup(r, at("speedup-8.svg"), "8 bits", [g for g in GROUPS if g != "small"])
    roofline(r, at("roofline.svg"))
    decode(r, at("decode.svg"))
    by_length(r, at("length.svg"))
    accuracy(r, at("accuracy.svg"))


if __name__ == "__main__":
    main()
