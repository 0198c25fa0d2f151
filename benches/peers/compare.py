"""Times all peers on the same inputs, in turns, and writes what came out as JSON. See README.md; run.sh starts it."""

import argparse
import datetime
import json
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import workloads

HERE = os.path.dirname(os.path.abspath(__file__))
# Of the outputs that are compared with float64; the variant's last word but options says which.
BOUNDS = {"f32": 1e-5, "f16": 5e-3, "bf16": 4e-2, "i8": 1e-1, "q8_0": 1e-1, "q4_0": 1, "q4_1": 1}
# Of an element as it is stored, with its part of the scales.
BITS = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5}
# A peer that needs longer for one call is left out there.
LONGEST_CALL = 10.0
ROWS = 48


class Variant:
    def __init__(self, label, module, variant, dtype, needs=None, environment=None, note=None):
        self.label, self.module, self.variant, self.dtype = label, module, variant, dtype
        self.needs, self.environment, self.note = needs, environment or {}, note


def variants():
    """All of them; `needs` names what the set-up brings."""
    ours = [Variant(f"flash_attention {d}", "flash_attention", d, d) for d in ("f32", "bf16", "f16", "i8", "q8_0", "q4_0", "q4_1")]
    ort = [
        Variant("ONNX Runtime MHA f32", "onnxruntime", "mha-f32", "f32", "onnxruntime"),
        Variant("ONNX Runtime GQA f32", "onnxruntime", "gqa-f32", "f32", "onnxruntime"),
        Variant("ONNX Runtime GQA f16", "onnxruntime", "gqa-f16", "f16", "onnxruntime"),
        Variant("ONNX Runtime GQA, 8-bit cache", "onnxruntime", "gqa-i8", "i8", "onnxruntime"),
    ]
    ov = [Variant(f"OpenVINO {d}", "openvino", d, d, "openvino") for d in ("f32", "bf16")]
    ov += [Variant(f"OpenVINO, its own cache in {d}", "openvino", f"state-{d}", t, "openvino") for d, t in (("f32", "f32"), ("f16", "f16"), ("u8", "i8"))]
    ggml = [Variant(f"ggml {d}", "ggml", d, d, "ggml") for d in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")]
    blas = [Variant("OpenBLAS three-step f32", "numpy", "f32", "f32")]
    torch = [Variant(f"PyTorch {d}", "torch", d, d, "torch") for d in ("f32", "bf16", "f16")]
    torch.append(Variant("PyTorch f32, heads packed by hand", "torch", "f32-packed", "f32", "torch"))
    rust = [Variant(f"candle {d}", "rust", f"candle-{d}", d, "rust") for d in ("f32", "f16")]
    rust += [Variant(f"ruvector {d}", "rust", f"ruvector-{d}", d, "rust") for d in ("f32", "i8")]
    lifted = []
    if os.environ.get("PEER_MKL"):
        # What is preloaded anyway (cpuid.c) stays.
        e = {"LD_PRELOAD": ":".join(filter(None, (os.environ.get("LD_PRELOAD"), os.environ["PEER_MKL"])))}
        lifted.append(Variant("PyTorch f32, MKL's check lifted", "torch", "f32", "f32", "torch", e))
    if os.environ.get("PEER_CORETYPE"):
        e = {"OPENBLAS_CORETYPE": os.environ["PEER_CORETYPE"]}
        lifted.append(Variant(f"OpenBLAS three-step f32, told {e['OPENBLAS_CORETYPE']}", "numpy", "f32", "f32", None, e))
    return [*ours, *torch, *ort, *ov, *ggml, *blas, *lifted, *rust]


class Failed(Exception):
    pass


class Unsupported(Failed):
    """Not what goes wrong, but what a peer has not."""


class Worker:
    """A process that computes with one variant."""

    def __init__(self, module, variant, threads, environment=()):
        e = {**os.environ, **dict(environment), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("OMP", "OPENBLAS", "MKL", "RAYON"):
            e[f"{name}_NUM_THREADS"] = str(threads)
        command = [sys.executable, os.path.join(HERE, "worker.py"), module]
        if module == "rust":
            command = [os.environ["PEER_RUST"]]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*command, variant, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=e
        )
        self.buffer = b""
        self.version = self.answer(120)

    def answer(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            more = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
            if not more:
                self.close()
                self.log.seek(0)
                words = self.log.read()[-300:].decode(errors="replace").strip()
                raise Failed(f"no answer after {seconds:.0f} s" if not ready else f"ended: {words}")
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        a = json.loads(line)
        if "unsupported" in a:
            raise Unsupported(a["unsupported"])
        if "ok" not in a:
            raise Failed(a["error"])
        return a["ok"]

    def ask(self, op, seconds=240, **request):
        try:
            self.process.stdin.write(json.dumps({"op": op, **request}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise Failed("ended before") from None
        return self.answer(seconds)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def exact(w, q, k, v, rows):
    """Rows of the output in float64."""
    out = []
    for b, h, i in rows:
        kv = h * w.heads_kv // w.heads_q
        seen = slice(*w.seen(i))
        s = k[b, kv, seen].astype(np.float64) @ q[b, h, i].astype(np.float64) * w.scale
        p = np.exp(s - s.max())
        out.append(p @ v[b, kv, seen].astype(np.float64) / p.sum())
    return np.array(out)


def middle(rounds):
    """What stands in the result for the rounds' medians."""
    return {"median": statistics.median(rounds), "lowest": min(rounds), "highest": max(rounds), "rounds": len(rounds)}


def digits(x):
    """Numbers with no more digits than they are worth."""
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {k: digits(v) for k, v in x.items()}
    return [digits(v) for v in x] if isinstance(x, list) else x


def lines(out):
    """JSON with a line for each entry of a list."""
    parts = []
    for key, value in digits(out).items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


class Comparison:
    def __init__(self, options):
        self.options = options
        self.results, self.limits, self.versions, self.absent, self.memory = [], [], {}, {}, []
        self.folder = tempfile.mkdtemp(prefix="fa-peers-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.begin = time.monotonic()

    def say(self, text):
        minutes, seconds = divmod(int(time.monotonic() - self.begin), 60)
        print(f"[{minutes:3}:{seconds:02}] {text}", file=sys.stderr, flush=True)

    def wanted(self):
        """The variants that were asked for and can be had."""
        out = []
        for v in variants():
            reason = None
            if v.needs and v.needs not in self.options.peers:
                reason = f"not asked for: --peers {v.needs}"
            elif v.needs:
                reason = os.environ.get(f"PEER_MISSING_{v.needs.upper()}")
            if self.options.only and not any(x in v.label for x in self.options.only):
                continue
            if reason:
                self.absent[v.label] = reason
            else:
                out.append(v)
        return out

    def start(self, threads):
        workers = {}
        for v in self.wanted():
            try:
                workers[v] = Worker(v.module, v.variant, threads, v.environment)
                self.versions[v.label] = workers[v].version
            except Failed as e:
                self.absent[v.label] = str(e)
                self.say(f"{v.label}: {e}")
        return workers

    def make_inputs(self, w):
        rng = np.random.default_rng(1)
        made = []
        for name, heads, tokens in (("q", w.heads_q, w.len_q), ("k", w.heads_kv, w.len_kv), ("v", w.heads_kv, w.len_kv)):
            x = rng.standard_normal((w.batch, heads, tokens, w.dim), np.float32)
            if name == "v" and w.latent:
                x = np.ascontiguousarray(made[1][..., : w.latent])
            x.tofile(os.path.join(self.folder, name))
            made.append(x)
        rows = [[int(rng.integers(n)) for n in (w.batch, w.heads_q, w.len_q)] for _ in range(ROWS)]
        return rows, exact(w, *made, rows)

    def series(self, threads, chosen):
        """These workloads with so many threads."""
        workers = self.start(threads)
        limits = Worker("limits", "-", threads)
        # A call longer than this is not made twice.
        rates = {}
        for n, w in enumerate(chosen):
            self.say(f"{threads} thread(s), {n + 1} of {len(chosen)}: {w.name}")
            self.workload(threads, w, workers, limits, rates)
        for worker in (*workers.values(), limits):
            worker.close()

    def workload(self, threads, w, workers, limits, rates):
        rows, right = self.make_inputs(w)
        turns = {}
        for v, worker in workers.items():
            line = {"workload": w.name, "group": w.group, "threads": threads, "peer": v.label, "dtype": v.dtype}
            self.results.append(line)
            if w.flops / rates.get(v, float("inf")) > LONGEST_CALL:
                line["left_out"] = f"would take {w.flops / rates[v]:.0f} s a call"
                continue
            try:
                ms, out = worker.ask("load", workload=list(w), folder=self.folder, rows=rows)
            except Failed as e:
                line["left_out"] = str(e)
                if not isinstance(e, Unsupported):
                    self.say(f"    {v.label}: {e}")
                continue
            if w.len_q > 256:
                rates[v] = w.flops / (ms / 1e3)
            error = np.abs(np.array(out) - right)
            line["error_max"] = float(error.max())
            line["error_rms"] = float(np.sqrt((error**2).mean() / (right**2).mean()))
            line["wrong"] = bool(not error.max() <= BOUNDS[v.dtype])
            turns[v] = [worker, max(ms, 1e-3), line, []]
        kind = "read" if w.group == "decode" else "fma"
        sampled = []
        for r in range(self.options.rounds):
            sampled.append(limits.ask("limit", kind=kind))
            for worker, ms, line, medians in turns.values():
                # Slow ones get fewer turns, the slowest one: their spread is not what anyone asks.
                if r >= (1 if ms > 3e3 else 3) and r * ms > 1e3 * self.options.seconds:
                    continue
                # Pools of the one before may still be waiting for work with all their might.
                if threads > 1:
                    time.sleep(0.03)
                calls = max(1, min(2000, int(1e3 * self.options.seconds / self.options.rounds / ms)))
                try:
                    took = worker.ask("time", calls=calls)
                    medians.append(statistics.median(took) / 1e6)
                except Failed as e:
                    line["left_out"] = str(e)
        limit = middle(sampled)
        self.limits.append({"workload": w.name, "threads": threads, "kind": kind, **limit})
        for worker, ms, line, medians in turns.values():
            if not medians:
                continue
            line["ms"] = middle(medians)
            seconds = line["ms"]["median"] / 1e3
            line["gflops"] = w.flops / seconds / 1e9
            if kind == "fma":
                line["of_limit"] = w.flops / seconds / limit["median"]
            else:
                line["gbytes"] = w.kv_elements * BITS[line["dtype"]] / 8 / seconds / 1e9
                line["of_limit"] = 1e9 * line["gbytes"] / limit["median"]
        good = sorted(((x["ms"]["median"], x["peer"]) for _, _, x, m in turns.values() if m and not x["wrong"]))
        if good:
            self.say("    " + "; ".join(f"{peer} {ms:.3g} ms" for ms, peer in good[:4]))

    def memory_series(self, chosen):
        """What one call makes a new process grow by."""
        for w in chosen:
            self.make_inputs(w)
            for v in self.wanted():
                if v.dtype != "f32" or "packed" in v.variant or v.environment:
                    continue
                line = {"workload": w.name, "length": w.len_q, "peer": v.label}
                try:
                    worker = Worker(v.module, v.variant, 1, v.environment)
                    line["bytes"] = worker.ask("peak", workload=list(w), folder=self.folder)
                    worker.close()
                    self.memory.append(line)
                except Failed as e:
                    self.say(f"    memory, {w.name}, {v.label}: {e}")
            self.say(f"memory, {w.name}: " + "; ".join(f"{x['peer']} {x['bytes'] / 2**20:.1f} MiB" for x in self.memory if x["workload"] == w.name))

    def write(self):
        out = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(self.options.machine, self.options.isa),
            "versions": self.versions,
            "absent": self.absent,
            "rounds": self.options.rounds,
            "minutes": round((time.monotonic() - self.begin) / 60, 1),
            "limits": self.limits,
            "results": self.results,
            "memory": self.memory,
        }
        with open(self.options.output, "w") as f:
            f.write(lines(out) + "\n")

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def machine(name, isa):
    words = {}
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            words.setdefault(key.strip(), value.strip())
    flags = words.get("flags", "").split()
    return {
        "cpu": words.get("model name", platform.machine()),
        "name": name or words.get("model name", platform.machine()),
        "vendor": words.get("vendor_id", ""),
        "cores": os.cpu_count(),
        # The most that libraries were let see, where that is not all.
        "limited_to": isa,
        "extensions": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16") if f in flags and isa in (None, f)],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("output", help="the file to write")
    p.add_argument("--peers", default="", help="what run.sh has set up, separated by commas")
    p.add_argument("--only", action="append", help="variants whose names contain this; may be repeated")
    groups = sorted({w.group for w in workloads.ALL})
    p.add_argument("--workloads", choices=["quick", "all", *groups], default="quick")
    p.add_argument("--threads", type=lambda x: [int(n) for n in x.split(",")], default=[1, 2])
    p.add_argument("--rounds", type=int, default=7, help="turns of each peer (7)")
    p.add_argument("--machine", help="its name in tables and figures, where the processor's own says too little")
    p.add_argument("--isa", choices=["avx2"], help="what run.sh has hidden the rest of")
    p.add_argument("--seconds", type=float, default=0.7, help="for each peer and workload, about (0.7)")
    options = p.parse_args()
    options.peers = options.peers.split(",")
    c = Comparison(options)
    try:
        for threads in options.threads:
            c.series(threads, workloads.chosen(options.workloads, threads))
        if options.workloads == "all":
            c.memory_series(workloads.MEMORY)
    finally:
        c.write()
        c.close()


if __name__ == "__main__":
    main()
