#!/usr/bin/env python3
"""What a model gains by the hook: runs the program `model`, and makes a table and a figure of its numbers.

    model.py run PROGRAM MODEL HOOK TEXT FOLDER [OPTION...]
    model.py draw FILE.json TABLE.md FIGURE.svg
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches/peers"))
from svg import BLUE, GREY, GREEN, ORANGE, Drawing, Linear, Log  # noqa: E402

PROMPT, TOKENS = 512, 32


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "?"


def run(a):
    folder = Path(a.output or a.folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = {"cpu": cpu_name(), "lines": []}
    for kind in a.types.split(","):
        command = [a.program, a.model, a.hook, a.text, kind, a.depths, a.threads, str(a.seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                data["lines"].append(json.loads(line))
                print("run_model:", row(data["lines"][-1]), file=sys.stderr, flush=True)
                # It takes long: what is there is kept.
                (folder / "model.json").write_text(json.dumps(data, indent=1) + "\n")
        if process.returncode != 0:
            sys.exit(f"{a.program} failed")
    (folder / "model.md").write_text(table(data))
    # The figure is of one thread.
    if any(line["threads"] == 1 for line in data["lines"]):
        figure(data, folder / "model.svg")
    print(table(data), end="")


def rate(line, way, what, clock):
    return (PROMPT if what == "pp" else TOKENS) / line[way][f"{what}_{clock}"]


def row(line):
    # On one thread processor time: other work on the machine does not count. On several it would
    # count spinning.
    clock = "cpu" if line["threads"] == 1 else "wall"
    cells = [line["type"], f"{line['depth']:,}", str(line["threads"])]
    for what in ("pp", "tg"):
        off, on = rate(line, "without", what, clock), rate(line, "with", what, clock)
        cells += [f"{off:.1f}", f"{on:.1f}", f"{on / off:.2f}"]
    if "first_difference" in line:
        a, b = line["first_difference"]["without"], line["first_difference"]["with"]
        cells.append(f"{line['same_tokens']}; then {a[0]:.2f} over {a[1]:.2f}, with the hook {b[0]:.2f} under {b[1]:.2f}")
    else:
        cells.append("all")
    return "| " + " | ".join(cells) + " |"


def table(data):
    head = [
        f"{data['cpu']}; tokens a second; one thread: of processor time.",
        "",
        "| cache | depth | threads | prompt, ggml | hook | times | generation, ggml | hook | times | same of 32 tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [row(line) for line in data["lines"]]) + "\n"


def figure(data, path):
    """Tokens a second by depth, one thread: prompt on the left, generation on the right."""
    lines = [line for line in data["lines"] if line["threads"] == 1]
    types = list(dict.fromkeys(line["type"] for line in lines))
    depths = sorted({line["depth"] for line in lines})
    colours = dict(zip(types, (BLUE, ORANGE, GREEN)))
    d = Drawing(900, 420, "llama.cpp: tokens a second by depth of the cache")
    d.text(14, 26, "SmolLM2-135M in llama.cpp: tokens a second by depth of the cache, one thread", size=17, weight="600")
    d.text(14, 46, f"{data['cpu']}. Thick: with flash_attention. Thin: ggml alone.", quiet=True)
    for i, (what, title) in enumerate((("pp", "512 tokens of a prompt"), ("tg", "generation"))):
        left, right, top, bottom = 60 + 440 * i, 430 + 440 * i, 100, 370
        x = Linear(0, len(depths) - 1 or 1, left + 20, right - 20)
        rates = [rate(line, way, what, "cpu") for line in lines for way in ("without", "with")]
        low, high = min(rates) / 1.2, max(rates) * 1.2
        y = Log(low, high, bottom, top)
        d.text(left, top - 14, title, weight="600")
        for value in (1, 2, 5, 10, 20, 50, 100, 200, 500):
            if low <= value <= high:
                d.line(left, y(value), right, y(value))
                d.text(left - 6, y(value) + 4, str(value), "end", quiet=True)
        for j, depth in enumerate(depths):
            d.text(x(j), bottom + 20, f"{depth:,}", "middle", quiet=True)
        for kind in types:
            for way, width, shape in (("without", 1.2, "circle"), ("with", 3, "square")):
                of_kind = [line for line in lines if line["type"] == kind]
                points = [(x(depths.index(line["depth"])), y(rate(line, way, what, "cpu"))) for line in of_kind]
                d.polyline(points, colours[kind], width)
                for point in points:
                    d.mark(*point, shape, colours[kind] if way == "with" else GREY, 4)
    at = 520
    for kind in types:
        d.rect(at, 60, 14, 10, colours[kind])
        d.text(at + 20, 70, f"cache of {kind}")
        at += 120
    d.write(path)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("run")
    for name in ("program", "model", "hook", "text", "folder"):
        p.add_argument(name)
    p.add_argument("--types", default="f16,q8_0,q4_0")
    p.add_argument("--depths", default="0,2048,4096,16384")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--output")
    p = commands.add_parser("draw")
    for name in ("data", "table", "figure"):
        p.add_argument(name)
    a = parser.parse_args()
    if a.command == "run":
        run(a)
    else:
        data = json.loads(Path(a.data).read_text())
        Path(a.table).write_text(table(data))
        figure(data, a.figure)


if __name__ == "__main__":
    main()
