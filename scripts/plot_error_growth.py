#!/usr/bin/env python3
"""Draws docs/error-growth.svg from docs/error-growth.csv, which tests/growth.rs measures.

    plot_error_growth.py CSV SVG            draws
    plot_error_growth.py --check CSV SVG    fails if that is not what is there
"""

import csv
import math
import sys
from pathlib import Path

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 76, 150, 40, 52
# A line for each family: readable on white and on black, and apart for the colour-blind (Okabe and
# Ito).
COLOURS = {"f32": "#3d8fd1", "bf16": "#d55e00", "f16": "#e69f00", "i16": "#009e73", "i8": "#cc79a7"}
DASHES = {"Prefill": "", "Decode": ' stroke-dasharray="6 4"'}
NAMES = {"Prefill": "many rows", "Decode": "few rows"}


def read(path):
    """The largest error over instruction sets, by family, path and number of keys."""
    lines = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        # Few rows of 8-bit integers are computed with 16 bits on every instruction set.
        family = "i16" if row["path"] == "Decode" and row["family"] == "i8" else row["family"]
        points = lines.setdefault((family, row["path"]), {})
        keys, error = int(row["keys"]), float(row["relative_rms"])
        points[keys] = max(points.get(keys, 0.0), error)
    return lines


def draw(lines):
    keys = sorted({k for points in lines.values() for k in points})
    errors = [e for points in lines.values() for e in points.values() if e > 0]
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))

    def x(k):
        share = (math.log2(k) - math.log2(keys[0])) / (math.log2(keys[-1]) - math.log2(keys[0]))
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(e):
        return TOP + (high - math.log10(e)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        "<title>Relative RMS error by number of keys</title>",
        # Grey, as dark as light backgrounds and as light as dark ones need; dark readers get
        # lighter text.
        "<style>text { fill: #6e7781 } .grid { stroke: #8c959f; stroke-opacity: .35 } .line { fill: none; stroke-width: 2 }"
        " @media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }</style>",
        f'<text x="{LEFT}" y="22" font-size="15">Relative RMS error against f64, normal data, 64 dimensions, '
        "worst instruction set</text>",
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        out.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    for k in keys:
        name = f"{k >> 20}M" if k >= 1 << 20 else f"{k >> 10}k"
        out.append(f'<line class="grid" x1="{x(k):.1f}" y1="{TOP}" x2="{x(k):.1f}" y2="{bottom}"/>')
        out.append(f'<text x="{x(k):.1f}" y="{bottom + 20}" text-anchor="middle">{name}</text>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">keys</text>')
    used = []
    for (family, path), points in sorted(lines.items(), key=lambda item: -item[1][keys[-1]]):
        colour = COLOURS[family]
        line = " ".join(f"{x(k):.1f},{y(points[k]):.1f}" for k in sorted(points))
        out.append(f'<polyline class="line" stroke="{colour}"{DASHES[path]} points="{line}"/>')
        out += [f'<circle cx="{x(k):.1f}" cy="{y(points[k]):.1f}" r="3" fill="{colour}"/>' for k in sorted(points)]
        # Names below one another where lines end close to each other.
        at = y(points[max(points)]) + 4
        while any(abs(at - other) < 16 for other in used):
            at += 1
        used.append(at)
        out.append(f'<text x="{right + 10}" y="{at:.1f}" style="fill: {colour}">{family}, {NAMES[path]}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    check = "--check" in sys.argv
    source, target = (Path(a) for a in sys.argv[1:] if a != "--check")
    drawn = draw(read(source))
    if not check:
        target.write_text(drawn)
        return 0
    if target.read_text() != drawn:
        print(f"{target} is not what {source} gives.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
