#!/usr/bin/env python3
"""A model on paper of prefill over MPI, checked against what was measured, and drawn.

    model.py CSV                    tables in Markdown: measured, predicted, and the sizes nobody has measured
    model.py CSV SVG                draws, too

The CSV is what integrations/mpi/measure prints with 1, 2 and 4 ranks. Of it the model takes two
numbers: how long a rank takes for a pair of a query row and a key, and how many bytes a second go
from one rank to another.
"""

import csv
import math
import sys
from pathlib import Path

# What has not been measured: a layer of a model with grouped heads in bf16, ranks of 64 cores, and
# what a message takes.
HEADS_Q, HEADS_KV, DIM, CORES, LATENCY = 32, 8, 128, 64, 10e-6
LINKS = {"1 Gb/s": 0.125e9, "10 Gb/s": 1.25e9, "100 Gb/s": 12.5e9}
COLOURS = ["#d55e00", "#009e73", "#3d8fd1", "#cc79a7"]


# ---- the model ----


def runs(layout, tokens, ranks):
    """(position, length) of each rank's pieces."""

    def piece(i, of):
        each, more = divmod(tokens, of)
        return i * each + min(i, more), each + (i < more)

    if layout == "contiguous":
        return [[piece(r, ranks)] for r in range(ranks)]
    return [[piece(r, 2 * ranks), piece(2 * ranks - 1 - r, 2 * ranks)] for r in range(ranks)]


def seen(rows, keys):
    """Of a causal mask: pairs that are computed, and the keys of a run that some row sees."""
    (p, n), (j, m) = rows, keys
    if n == 0 or m == 0 or j > p + n - 1:
        return 0.0, 0
    # Half of the square where both are the same run, all of it where the keys come first.
    return (n * m / 2 if j == p else n * m), min(m, p + n - j)


def predict(mode, layout, tokens, ranks, pair, token, bandwidth, latency=LATENCY):
    """Seconds until the last rank is done. `pair`: seconds of a pair of all heads; `token`: bytes of K and V of one."""
    shares = runs(layout, tokens, ranks)
    # Of step t on rank r: the share of rank r - t.
    compute = [[0.0] * ranks for _ in range(ranks)]
    need = [[0] * ranks for _ in range(ranks)]
    for r in range(ranks):
        for t in range(ranks):
            for keys in shares[(r - t) % ranks]:
                sees = [seen(rows, keys) for rows in shares[r]]
                compute[r][t] += pair * sum(pairs for pairs, _ in sees)
                need[r][t] += max(length for _, length in sees)
    if mode == "all-gather":
        done = []
        for r in range(ranks):
            at, arrived = compute[r][0], 0.0
            for t in range(1, ranks):
                if need[r][t]:
                    arrived += latency + need[r][t] * token / bandwidth
                    at = max(at, arrived)
                at += compute[r][t]
            done.append(at)
        return max(done)
    # A share goes on as long as a later rank sees it.
    carried = [[0] * (ranks + 1) for _ in range(ranks)]
    for r in range(ranks):
        for t in range(ranks - 1, 0, -1):
            carried[r][t] = max(need[r][t], carried[(r + 1) % ranks][t + 1] if t + 1 < ranks else 0)
    begin = [0.0] * ranks
    for t in range(ranks):
        ends = [begin[r] + compute[r][t] for r in range(ranks)]
        if t + 1 < ranks:
            for r in range(ranks):
                if carried[r][t + 1]:
                    before = (r - 1) % ranks
                    arrived = max(begin[r], begin[before]) + latency + carried[r][t + 1] * token / bandwidth
                    # Both sides wait for it before they go on.
                    ends[r], ends[before] = max(ends[r], arrived), max(ends[before], arrived)
        begin = ends
    return max(begin)


# ---- against what was measured ----


def read(path):
    """Rows of the CSV, those of the same call together."""
    calls = {}
    for row in csv.DictReader(line for line in path.read_text().splitlines() if line):
        if row["call"] == "call":
            continue
        key = (row["call"], row["layout"], row["mode"], int(row["ranks"]))
        calls.setdefault(key, []).append({k: float(v) for k, v in row.items() if k not in ("call", "layout", "mode")})
    return calls


def measured(calls):
    """Seconds of a pair of all heads on one rank, and bytes a second between two."""
    one = calls["prefill", "contiguous", "ring", 1][0]
    pair = one["computing"] / (one["tokens"] ** 2 / 2)
    links = {}
    for (call, _, _, ranks), rows in calls.items():
        if call == "prefill" and ranks > 1:
            bandwidth = max(r["bytes"] for r in rows) / rows[0]["alone"]
            links.setdefault(ranks, []).append(bandwidth)
    return pair, {ranks: sorted(all_)[len(all_) // 2] for ranks, all_ in links.items()}


def table_of_measured(calls, cores):
    pair, links = measured(calls)
    lines = [
        "| ranks | shares | mode | MB sent, by rank | computing, by rank | moving data | waiting | all | model | exchange alone | hidden |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (call, layout, mode, ranks), rows in sorted(calls.items(), key=lambda c: (c[0][3], c[0][1], c[0][2])):
        if call != "prefill" or (ranks == 1 and (layout, mode) != ("contiguous", "ring")):
            continue

        def by_rank(key, scale):
            least, most = (f"{f(r[key] for r in rows) * scale:.{2 if scale == 1 else 1}f}" for f in (min, max))
            return least if least == most else f"{least} to {most}"

        # The rank that computes longest is the one that all wait for: what it waits for is not
        # hidden.
        busiest = max(rows, key=lambda r: r["computing"])
        cells = [by_rank("bytes", 1e-6), by_rank("computing", 1)]
        cells += [f"{busiest['progressing'] * 1e3:.1f} ms", f"{busiest['waiting'] * 1e3:.2f} ms"]
        cells.append(f"{max(r['seconds'] for r in rows):.2f}")
        if ranks == 1:
            cells += ["-", "-", "-"]
        else:
            each, token = pair * max(1.0, ranks / cores), 2 * rows[0]["heads_kv"] * 64 * 2
            predicted = predict(mode, layout, int(rows[0]["tokens"]), ranks, each, token, links[ranks])
            hidden = 1 - min(1.0, busiest["waiting"] / rows[0]["alone"])
            cells += [f"{predicted:.2f}", f"{rows[0]['alone'] * 1e3:.1f} ms", f"{100 * hidden:.0f} %"]
        name = "" if ranks == 1 else mode
        lines.append(f"| {ranks} | {layout if ranks > 1 else 'one'} | {name} | " + " | ".join(cells) + " |")
    return lines


def table_of_decode(calls):
    lines = ["| ranks | joined by | µs a token | computing | agreeing | exchanging |", "|---|---|---|---|---|---|"]
    for (call, _, mode, ranks), rows in sorted(calls.items(), key=lambda c: (c[0][3], c[0][2])):
        if call == "decode":
            slow = max(rows, key=lambda r: r["seconds"])
            how = "steps" if mode == "ring" else mode
            parts = (slow[k] * 1e6 for k in ("seconds", "computing", "agreeing", "waiting"))
            lines.append(f"| {ranks} | {how} | " + " | ".join(f"{x:.0f}" for x in parts) + " |")
    return lines


# ---- beyond it ----


def flops(calls):
    """Multiplications and additions a second of a core, of pairs that count."""
    pair, _ = measured(calls)
    heads = calls["prefill", "contiguous", "ring", 1][0]["heads_q"]
    return heads * 4 * 64 / pair


def layer(calls, ranks, tokens, link, mode="ring", layout="zigzag"):
    """Seconds of a layer."""
    pair = HEADS_Q * 4 * DIM / (flops(calls) * CORES)
    return predict(mode, layout, tokens, ranks, pair, 2 * HEADS_KV * DIM * 2, LINKS[link])


def tokens_to_hide(calls, link):
    """Keys of a rank from which on a step's computing takes longer than its exchange, zigzag."""
    pair = HEADS_Q * 4 * DIM / (flops(calls) * CORES)
    token = 2 * HEADS_KV * DIM * 2
    # n keys: half of n * n pairs, and n tokens.
    return 2 * token / LINKS[link] / pair


def table_of_sizes(calls):
    lines = [
        "| tokens | ranks | tokens a rank | seconds a layer, all in one place | " + " | ".join(LINKS) + " |",
        "|---|---|---|---|" + "---|" * len(LINKS),
    ]
    for tokens, ranks in ((65536, 4), (65536, 16), (262144, 16), (1048576, 16), (1048576, 64), (1048576, 256)):
        pair = HEADS_Q * 4 * DIM / (flops(calls) * CORES)
        ideal = pair * tokens**2 / 2
        cells = [f"{100 * ideal / ranks / layer(calls, ranks, tokens, link):.0f} %" for link in LINKS]
        lines.append(f"| {tokens} | {ranks} | {tokens // ranks} | {ideal:.3g} | " + " | ".join(cells) + " |")
    return lines


def held(mode, ranks, tokens, group, size=2):
    """Bytes of others' keys and values that a rank holds; one kv head, zigzag."""
    share = 2 * DIM * size * tokens / ranks
    return share * (min(2, ranks - 1) if mode == "ring" else ranks - 1)


def crossing(group, size=2):
    """The number of ranks up to which the rule takes an all-gather: keys are no more than queries and results in f32."""
    ranks = 1
    while held("all-gather", ranks + 1, 1 << 20, group, size) <= group * 2 * DIM * 4 * (1 << 20) / (ranks + 1):
        ranks += 1
    return ranks


def draw(calls):
    width, height, left, top, plot = 860, 400, 70, 60, 300
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        "<title>Prefill over MPI, by a model</title>",
        "<style>text { fill: #6e7781 } .grid { stroke: #8c959f; stroke-opacity: .35 } .line { fill: none; stroke-width: 2 }"
        " @media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }</style>",
    ]
    ranks = [2, 4, 8, 16, 32, 64, 128, 256]

    def panel(at, title, ylabel, lines, low, high, unit):
        """Lines of (name, colour, dash, values by rank), logarithmic."""

        def x(r):
            return at + (math.log2(r) - 1) / 7 * plot

        def y(v):
            return top + (math.log10(high) - math.log10(v)) / (math.log10(high) - math.log10(low)) * 250

        out.append(f'<text x="{at}" y="20" font-size="15">{title}</text>')
        out.append(f'<text x="{at}" y="40">{ylabel}</text>')
        for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
            out.append(f'<line class="grid" x1="{at}" y1="{y(10.0**power):.1f}" x2="{at + plot}" y2="{y(10.0**power):.1f}"/>')
            out.append(f'<text x="{at - 6}" y="{y(10.0**power) + 4:.1f}" text-anchor="end">{unit(10.0**power)}</text>')
        for r in ranks:
            out.append(f'<text x="{x(r):.1f}" y="{top + 270}" text-anchor="middle">{r}</text>')
        out.append(f'<text x="{at + plot / 2}" y="{top + 290}" text-anchor="middle">ranks</text>')
        for i, (name, colour, dash, values) in enumerate(lines):
            points = " ".join(f"{x(r):.1f},{min(y(max(v, low)), top + 250):.1f}" for r, v in zip(ranks, values))
            out.append(f'<polyline class="line" stroke="{colour}"{dash} points="{points}"/>')
            row, column = divmod(i, 4)
            out.append(f'<text x="{at + column * 100}" y="{top + 308 + 16 * row}" style="fill: {colour}">{name}</text>')

    tokens = 1 << 20
    pair = HEADS_Q * 4 * DIM / (flops(calls) * CORES)
    lines = [("no exchange", "#8c959f", ' stroke-dasharray="5 4"', [pair * tokens**2 / 2 / r for r in ranks])]
    for i, link in enumerate(LINKS):
        lines.append((link, COLOURS[i], "", [layer(calls, r, tokens, link) for r in ranks]))
    values = [v for line in lines for v in line[3]]
    panel(left, "A layer of 1,048,576 tokens, zigzag", "seconds", lines, 10.0 ** math.floor(math.log10(min(values))),
          10.0 ** math.ceil(math.log10(max(values))), lambda v: f"{v:g}")
    lines = [
        ("ring", COLOURS[0], "", [held("ring", r, tokens, 1) * HEADS_KV for r in ranks]),
        ("all-gather", COLOURS[2], "", [held("all-gather", r, tokens, 1) * HEADS_KV for r in ranks]),
        ("queries, results", "#8c959f", ' stroke-dasharray="5 4"', [HEADS_Q * 2 * DIM * 4 * tokens / r for r in ranks]),
    ]
    panel(left + plot + 110, "What a rank of it holds", "bytes of others' keys and values", lines, 1e6, 1e11,
          lambda v: f"{v / 1e9:g} GB" if v >= 1e9 else f"{v / 1e6:g} MB")
    return "\n".join([*out, "</svg>", ""])


def main():
    calls = read(Path(sys.argv[1]))
    cores = 1
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(draw(calls))
    print(*table_of_measured(calls, cores), "", *table_of_decode(calls), "", *table_of_sizes(calls), "", sep="\n")
    for link in LINKS:
        print(f"hidden from {tokens_to_hide(calls, link):.0f} tokens a rank on: {link}")
    for group, size, name in ((1, 4, "f32"), (1, 2, "bf16"), (4, 2, "bf16"), (8, 2, "bf16"), (8, 1, "8 bits")):
        print(f"all-gather up to {crossing(group, size)} ranks: {group} query heads to a kv head, {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
