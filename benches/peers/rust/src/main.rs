//! A process that computes with one Rust peer: `peers VARIANT THREADS`. It answers the same lines
//! of JSON as `worker.py`, which says what they mean.

mod candle;
mod ruvector;

use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::time::Instant;

pub type Error = Box<dyn std::error::Error>;

/// What a peer does not have.
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unsupported {}

/// One of `workloads.py`.
#[derive(Clone, Copy)]
pub struct Workload {
    pub batch: usize,
    pub heads_q: usize,
    pub heads_kv: usize,
    pub len_q: usize,
    pub len_kv: usize,
    pub dim: usize,
    pub causal: bool,
    pub copies: usize,
}

/// Q, K, V `[batch][heads][tokens][dim]`.
pub struct Inputs {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// What is timed, ready to run.
pub trait Peer {
    /// Computes with one of the copies of K and V.
    fn call(&mut self, copy: usize) -> Result<(), Error>;
    /// The last output `[batch][heads][tokens][dim]`.
    fn output(&self) -> Result<Vec<f32>, Error>;
}

fn prepare(variant: &str, w: Workload, inputs: Inputs) -> Result<Box<dyn Peer>, Error> {
    match variant {
        "candle-f32" => Ok(Box::new(candle::Candle::<f32>::new(w, &inputs)?)),
        "candle-f16" => Ok(Box::new(candle::Candle::<half::f16>::new(w, &inputs)?)),
        "ruvector-f32" => Ok(Box::new(ruvector::Floats::new(w, inputs)?)),
        "ruvector-i8" => Ok(Box::new(ruvector::Integers::new(w, &inputs)?)),
        _ => Err(format!("no such variant: {variant}").into()),
    }
}

fn workload(r: &Value) -> Option<Workload> {
    let at = |i: usize| r["workload"][i].as_u64().map(|x| x as usize);
    let mut w = Workload {
        batch: at(2)?,
        heads_q: at(3)?,
        heads_kv: at(4)?,
        len_q: at(5)?,
        len_kv: at(6)?,
        dim: at(7)?,
        causal: r["workload"][8].as_bool()?,
        copies: 1,
    };
    if r["workload"][1] == "decode" {
        w.copies = (1usize << 28).div_ceil(8 * w.batch * w.heads_kv * w.len_kv * w.dim).max(1);
    }
    Some(w)
}

fn inputs(r: &Value) -> Result<Inputs, Error> {
    let folder = r["folder"].as_str().ok_or("no folder")?;
    let read = |name| -> Result<Vec<f32>, Error> {
        let bytes = std::fs::read(format!("{folder}/{name}"))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect())
    };
    Ok(Inputs { q: read("q")?, k: read("k")?, v: read("v")? })
}

/// A line of the kernel's on this process, in bytes.
fn status(key: &str) -> Result<u64, Error> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|x| x.starts_with(key)).ok_or("no such line")?;
    Ok(1024 * line.split_whitespace().nth(1).ok_or("no number")?.parse::<u64>()?)
}

struct Worker {
    variant: String,
    peer: Option<(Box<dyn Peer>, Workload)>,
    next: usize,
}

impl Worker {
    fn answer(&mut self, r: &Value) -> Result<Value, Error> {
        match r["op"].as_str() {
            Some("load") => self.load(r),
            Some("time") => Ok(json!(self.time(r["calls"].as_u64().unwrap_or(1))?)),
            Some("peak") => self.peak(r),
            _ => Err("no such request".into()),
        }
    }

    fn make(&mut self, r: &Value) -> Result<Workload, Error> {
        if r["workload"][1] == "masked" || r["workload"][1] == "latent" {
            return Err(Unsupported("neither masks nor V as a part of K").into());
        }
        let w = workload(r).ok_or("no workload")?;
        self.peer = None;
        self.next = 0;
        self.peer = Some((prepare(&self.variant, w, inputs(r)?)?, w));
        Ok(w)
    }

    fn load(&mut self, r: &Value) -> Result<Value, Error> {
        let w = self.make(r)?;
        let ms = self.time(1)?[0] as f64 / 1e6;
        let out = self.peer.as_ref().ok_or("not loaded")?.0.output()?;
        let row = |at: &Value| {
            let [b, h, i] = [0, 1, 2].map(|n| at[n].as_u64().unwrap_or(0) as usize);
            let first = ((b * w.heads_q + h) * w.len_q + i) * w.dim;
            out[first..first + w.dim].to_vec()
        };
        let rows: Vec<_> = r["rows"].as_array().ok_or("no rows")?.iter().map(row).collect();
        Ok(json!([ms, rows]))
    }

    /// Nanoseconds of so many calls, the copies of K and V in turn.
    fn time(&mut self, calls: u64) -> Result<Vec<u64>, Error> {
        let (peer, w) = self.peer.as_mut().ok_or("not loaded")?;
        let mut took = Vec::new();
        for _ in 0..calls {
            let begin = Instant::now();
            peer.call(self.next)?;
            took.push(begin.elapsed().as_nanos() as u64);
            self.next = (self.next + 1) % w.copies;
        }
        Ok(took)
    }

    fn peak(&mut self, r: &Value) -> Result<Value, Error> {
        let w = self.make(r)?;
        // What was freed must not hide what the call takes.
        // SAFETY: it only returns free memory to the system.
        unsafe { libc::malloc_trim(0) };
        std::fs::write("/proc/self/clear_refs", "5")?;
        let before = status("VmRSS")?;
        self.time(1)?;
        let out = 4 * (w.batch * w.heads_q * w.len_q * w.dim) as u64;
        Ok(json!(status("VmHWM")?.saturating_sub(before + out)))
    }
}

fn main() -> Result<(), Error> {
    let variant = std::env::args().nth(1).ok_or("peers VARIANT THREADS")?;
    let mut out = std::io::stdout();
    let version = if variant.starts_with("candle") { candle::VERSION } else { ruvector::VERSION };
    writeln!(out, "{}", json!({ "ok": version }))?;
    let mut worker = Worker { variant, peer: None, next: 0 };
    for line in std::io::stdin().lock().lines() {
        let answer = match worker.answer(&serde_json::from_str(&line?)?) {
            Ok(x) => json!({ "ok": x }),
            Err(e) if e.is::<Unsupported>() => json!({ "unsupported": e.to_string() }),
            Err(e) => json!({ "error": e.to_string() }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
