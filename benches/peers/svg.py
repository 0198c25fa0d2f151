"""The little of SVG that figures.py needs."""

import math
from html import escape

# Apart for the colour-blind (Okabe and Ito, the yellow darker), and readable on white and on black.
BLUE, ORANGE, GREEN, PINK, SKY, RED, OLIVE, GREY, BROWN, TEAL = (
    "#1f77d0", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a3a500", "#8c959f", "#a06a4a", "#00a6a6",
)
STYLE = (
    "text { fill: #24292f } .quiet { fill: #57606a } .grid { stroke: #8c959f; stroke-opacity: .3 } .one { stroke: #57606a; stroke-width: 1.5 }"
    " @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9ea7b3 } .one { stroke: #9ea7b3 } }"
)
# In units in which a mark of 1 is as large as a circle of that radius.
SHAPES = {
    "circle": None,
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    "up": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    "down": [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
    "bar": [(-0.4, -1.3), (0.4, -1.3), (0.4, 1.3), (-0.4, 1.3)],
}


class Drawing:
    def __init__(self, width, height, title):
        self.out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\" role=\"img\">",
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
        ]

    def text(self, x, y, words, anchor="start", size=None, quiet=False, weight=None, colour=None):
        style = f' font-size="{size}"' if size else ""
        style += ' class="quiet"' if quiet else ""
        style += f' font-weight="{weight}"' if weight else ""
        style += f' style="fill: {colour}"' if colour else ""
        self.out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>')

    def line(self, x1, y1, x2, y2, kind="grid"):
        self.out.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def polyline(self, points, colour, width=2):
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{at}"/>')

    def rect(self, x, y, width, height, colour, opacity=1):
        self.out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}" fill-opacity="{opacity}"/>')

    def mark(self, x, y, shape, colour, size=5):
        points = SHAPES[shape]
        if points is None:
            self.out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>')
        else:
            at = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in points)
            self.out.append(f'<polygon points="{at}" fill="{colour}"/>')

    def write(self, path):
        with open(path, "w") as f:
            f.write("\n".join([*self.out, "</svg>", ""]))


class Log:
    """Numbers to places, by their logarithms."""

    def __init__(self, low, high, start, end):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, x):
        share = math.log(max(x, 1e-300) / self.low) / math.log(self.high / self.low)
        return self.start + min(max(share, 0), 1) * (self.end - self.start)


class Linear(Log):
    def __call__(self, x):
        return self.start + min(max((x - self.low) / (self.high - self.low), 0), 1) * (self.end - self.start)
