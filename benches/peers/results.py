"""What report.py and figures.py read from compare.py's file."""

import json

OURS = "flash_attention"
CLASSES = {"f32": ("f32",), "16 bits": ("f16", "bf16"), "8 bits": ("i8", "q8_0"), "4 bits": ("q4_0", "q4_1")}
# In the order in which they are shown. Those with a check lifted are nobody's installed library: on
# their own.
FAMILIES = [
    OURS,
    "PyTorch",
    "PyTorch, check lifted",
    "ONNX Runtime",
    "OpenVINO",
    "ggml",
    "OpenBLAS three-step",
    "OpenBLAS, told the CPU",
    "candle",
    "ruvector",
]


def family(peer):
    if "check lifted" in peer:
        return "PyTorch, check lifted"
    if "told" in peer:
        return "OpenBLAS, told the CPU"
    return next(f for f in FAMILIES if peer.startswith(f))


class Results:
    def __init__(self, path):
        with open(path) as f:
            self.all = json.load(f)
        self.lines = self.all["results"]

    def workloads(self, group, threads):
        """Names, in the order in which they were timed."""
        return list(dict.fromkeys(x["workload"] for x in self.lines if x["group"] == group and x["threads"] == threads))

    def of(self, workload, threads):
        return [x for x in self.lines if x["workload"] == workload and x["threads"] == threads]

    def fastest(self, workload, threads, kind):
        """The fastest right line of each family, in a class of types."""
        best = {}
        for x in self.of(workload, threads):
            if "ms" not in x or x.get("wrong") or x["dtype"] not in CLASSES[kind]:
                continue
            f = family(x["peer"])
            if f not in best or x["ms"]["median"] < best[f]["ms"]["median"]:
                best[f] = x
        return best

    def versus(self, workload, threads, kind):
        """Our line, the fastest one of the other libraries as they are installed (or None each), and
        how many times as long it takes."""
        best = self.fastest(workload, threads, kind)
        ours = best.pop(OURS, None)
        for not_installed in ("PyTorch, check lifted", "OpenBLAS, told the CPU"):
            best.pop(not_installed, None)
        other = min(best.values(), key=lambda x: x["ms"]["median"], default=None)
        return ours, other, other["ms"]["median"] / ours["ms"]["median"] if ours and other else None

    def threads(self):
        return sorted({x["threads"] for x in self.lines})

    def limit(self, workload, threads):
        return next(x for x in self.all["limits"] if x["workload"] == workload and x["threads"] == threads)
