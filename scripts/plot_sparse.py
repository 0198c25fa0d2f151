#!/usr/bin/env python3
"""Draws docs/sparse.svg from docs/sparse.csv, which scripts/sparse_text.sh measures.

    plot_sparse.py CSV SVG
"""

import csv
import sys
from pathlib import Path

WIDTH, HEIGHT = 860, 350
LEFT, RIGHT, TOP, BOTTOM, GAP = 58, 24, 62, 56, 42
# Readable on white and on black, and apart for the colour-blind (Okabe and Ito).
COLOURS = {"partitions": "#3d8fd1", "window and first token": "#009e73", "window": "#d55e00", "random": "#cc79a7"}


def read(path):
    """For each text, for each method: the share of the time that is saved, and the error."""
    panels = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        points = panels.setdefault(row["text"], {}).setdefault(row["method"], [])
        points.append((float(row["saved"]), float(row["error"])))
    return panels


def draw(panels):
    top = max(error for methods in panels.values() for points in methods.values() for _, error in points)
    top = -(-top // 0.2) * 0.2
    width = (WIDTH - LEFT - RIGHT - GAP * (len(panels) - 1)) / len(panels)
    bottom = HEIGHT - BOTTOM

    def y(error):
        return TOP + (1 - error / top) * (bottom - TOP)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        "<title>Error of sparse attention by the time that it saves</title>",
        # Grey, as dark as light backgrounds and as light as dark ones need; dark readers get
        # lighter text.
        "<style>text { fill: #6e7781 } .grid { stroke: #8c959f; stroke-opacity: .35 } .line { fill: none; stroke-width: 2 }"
        " @media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }</style>",
    ]
    at = LEFT
    for method, colour in COLOURS.items():
        out.append(f'<circle cx="{at + 5}" cy="16" r="5" fill="{colour}"/><text x="{at + 16}" y="21">{method}</text>')
        at += 46 + 7.5 * len(method)
    for i, (name, methods) in enumerate(panels.items()):
        left = LEFT + i * (width + GAP)

        def x(saved, left=left):
            return left + saved * width

        out.append(f'<text x="{left + width / 2:.1f}" y="{TOP - 10}" text-anchor="middle">{name}</text>')
        for step in range(round(top / 0.2) + 1):
            line = y(0.2 * step)
            out.append(f'<line class="grid" x1="{left:.1f}" y1="{line:.1f}" x2="{left + width:.1f}" y2="{line:.1f}"/>')
            if i == 0:
                out.append(f'<text x="{left - 8:.1f}" y="{line + 4:.1f}" text-anchor="end">{0.2 * step:.1f}</text>')
        for saved in (0, 0.25, 0.5, 0.75, 1):
            out.append(f'<line class="grid" x1="{x(saved):.1f}" y1="{TOP}" x2="{x(saved):.1f}" y2="{bottom}"/>')
            if saved in (0, 0.5, 1):
                out.append(f'<text x="{x(saved):.1f}" y="{bottom + 18}" text-anchor="middle">{saved:.0%}</text>')
        for method, points in methods.items():
            line = " ".join(f"{x(saved):.1f},{y(error):.1f}" for saved, error in sorted(points))
            out.append(f'<polyline class="line" stroke="{COLOURS[method]}" points="{line}"/>')
            out += [
                f'<circle cx="{x(saved):.1f}" cy="{y(error):.1f}" r="3.5" fill="{COLOURS[method]}"/>'
                for saved, error in points
            ]
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">time saved</text>')
    out.append(
        f'<text transform="translate(16 {(TOP + bottom) / 2:.1f}) rotate(-90)" text-anchor="middle">relative RMS error</text>'
    )
    return "\n".join([*out, "</svg>", ""])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(read(source)))


if __name__ == "__main__":
    main()
