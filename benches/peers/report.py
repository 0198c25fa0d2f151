"""Writes compare.py's file as tables: report.py JSON MARKDOWN"""

import sys

from results import CLASSES, Results

GROUPS = {
    "prefill": "Prefill, heads x length x dimensions",
    "gqa": "Prefill with grouped heads",
    "encoder": "Encoders, batch x heads x length x dimensions",
    "decode": "Decode, one query against a cache of 128 dimensions that is in no processor cache",
    "small": "Small calls (through Python: each call of this library has about 0.5 µs of that, of others more)",
    "latent": "Decode of multi-head latent attention: one kv head, K of 576 elements, of which V is the first 512",
    "few": "Few queries of grouped heads on 8192 keys of 128 dimensions",
    "masked": "What is seen is said by a mask alone (f16 or the peer's type, one for all heads)",
    "length": "One head of 64 dimensions, by length",
}


def number(x):
    """Three digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3g}"


def cell(x):
    if "ms" not in x:
        return "·" if "left_out" in x else ""
    t = x["ms"]
    spread = f" ({number(t['lowest'])} to {number(t['highest'])})" if t["rounds"] > 1 else ""
    wrong = " **wrong**" if x.get("wrong") else ""
    return f"{number(t['median'])}{spread}, {100 * x['of_limit']:.0f} %{wrong}"


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]


def versus(r, threads, group):
    """Ours and the fastest other one, for each class of types."""
    head = ["workload"]
    # Columns that nobody has are left out.
    kinds = [kind for kind in CLASSES if any(r.fastest(w, threads, kind) for w in r.workloads(group, threads))]
    for kind in kinds:
        head += [f"{kind}: ours, ms", "fastest other", "times as fast"]
    rows = []
    for w in r.workloads(group, threads):
        row = [w]
        for kind in kinds:
            ours, other, ratio = r.versus(w, threads, kind)
            row.append(number(ours["ms"]["median"]) if ours else "")
            row.append(f"{other['peer']} {number(other['ms']['median'])}" if other else "")
            row.append("" if ratio is None else f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**")
        rows.append(row)
    return table(head, rows)


def everything(r, threads, group):
    names = r.workloads(group, threads)
    peers = list(dict.fromkeys(x["peer"] for w in names for x in r.of(w, threads)))
    rows = []
    for p in peers:
        cells = [cell(x) for w in names for x in r.of(w, threads) if x["peer"] == p]
        if any(c not in ("", "·") for c in cells):
            rows.append([p, *cells])
    limits = []
    for w in names:
        x = r.limit(w, threads)
        unit = "GFLOP/s" if x["kind"] == "fma" else "GB/s"
        limits.append(f"{x['median'] / 1e9:.0f} ({x['lowest'] / 1e9:.0f} to {x['highest'] / 1e9:.0f}) {unit}")
    rows.append(["*limit of the machine*", *limits])
    return table(["ms (lowest to highest), of the limit", *names], rows)


def write(r):
    a, m = r.all, r.all["machine"]
    hidden = f" (no library sees what the processor has beyond {m['limited_to']})" if m.get("limited_to") else ""
    out = [
        "# Comparison: all figures",
        "",
        f"Written by `benches/peers/run.sh` on {a['date']}: {m['name']}, {m['cores']} cores, {', '.join(m['extensions'])}{hidden}; {m['system']}; "
        f"{a['minutes']} minutes, {a['rounds']} rounds. What is compared, and how to read it: [benches/peers](../../../benches/peers/README.md).",
        "",
        "Versions: " + "; ".join(f"{p}: {v}" for p, v in a["versions"].items()) + ".",
        "",
    ]
    if a["absent"]:
        out += ["Not measured: " + "; ".join(f"{p}: {why}" for p, why in a["absent"].items()) + ".", ""]
    out += [
        "Shares are of the f32 multiply-add rate, or (decode) the read bandwidth, that were sampled between the peers' turns. In bold: another "
        "one is faster. A dot: the peer does not have it, or it would take longer than ten seconds a call.",
        "",
    ]
    for threads in r.threads():
        out += [f"## {threads} thread{'s' if threads > 1 else ''}", ""]
        for group, title in GROUPS.items():
            if r.workloads(group, threads):
                out += [f"### {title}", ""]
                if group != "length":
                    out += versus(r, threads, group)
                out += everything(r, threads, group)
    if a["memory"]:
        out += ["## Memory", "", "By how much the first call of a new process makes it grow, its output not counted, in MiB. One thread.", ""]
        lengths = sorted({x["length"] for x in a["memory"]})
        peers = list(dict.fromkeys(x["peer"] for x in a["memory"]))
        rows = []
        for p in peers:
            of = {x["length"]: x["bytes"] for x in a["memory"] if x["peer"] == p}
            rows.append([p, *(f"{of[n] / 2**20:.1f}" if n in of else "·" for n in lengths)])
        out += table(["one head of 64 dimensions, length", *map(str, lengths)], rows)
    out += ["## Accuracy", "", "Largest error, and RMS error relative to the outputs' RMS, against float64: "
            "normal data, all dtypes from the same f32 numbers, so what is lost by storing them is part of it.", ""]
    w = next((w for w in ("8 x 2048 x 64", "8 x 512 x 64") if r.of(w, 1)), None)
    rows = [[x["peer"], f"{x['error_max']:.1e}", f"{x['error_rms']:.1e}"] for x in r.of(w, 1) if "error_max" in x] if w else []
    return "\n".join(out + table([w or "", "largest", "relative RMS"], rows))


if __name__ == "__main__":
    with open(sys.argv[2], "w") as f:
        f.write(write(Results(sys.argv[1])))
