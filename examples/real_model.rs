//! Attention of a real model on real text, from Rust, against the exact outputs that come with the
//! data.
//!
//!     cargo run --release --example real_model -- DIRECTORY
//!
//! Exit code 1 if an error is larger than it may be, 2 if something else went wrong.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use flash_attention::{Attention, Pool, Refusal, Tensor, TensorMut, Workspace};

/// Largest error, as a share of the largest |v|; and of the log-sum-exp.
const BOUND: f64 = 1e-5;

/// One set of tensors, `[token][head][dim]`.
struct Set {
    name: String,
    heads: usize,
    len_q: usize,
    len_kv: usize,
    dim: usize,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

// README begin
fn model_attention(
    s: &Set,
    causal: bool,
    out: &mut [f32],
    lse: &mut [f32],
    workspace: &mut Workspace,
    threads: &Pool,
) -> Result<(), Refusal> {
    let mut attention = Attention::new(
        Tensor::token_first(&s.q, [1, s.len_q, s.heads, s.dim]), // as the model computes them
        Tensor::token_first(&s.k, [1, s.len_kv, s.heads, s.dim]),
        Tensor::token_first(&s.v, [1, s.len_kv, s.heads, s.dim]),
        TensorMut::token_first(out, [1, s.len_q, s.heads, s.dim]),
    )
    .lse(TensorMut::head_first(lse, [1, s.heads, s.len_q, 1]))
    .scale(s.scale);
    if causal {
        attention = attention.causal();
    }
    attention.reserve(workspace, threads)?; // allocates, if it must grow; run does not
    attention.run(workspace, threads)
}
// README end

fn load<const N: usize, T>(path: &str, number: impl Fn([u8; N]) -> T) -> Result<Vec<T>, Box<dyn Error>> {
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(bytes.as_chunks().0.iter().map(|&chunk| number(chunk)).collect())
}

/// The largest difference; NaN if there is one.
fn error(got: &[f32], exact: &[f64]) -> f64 {
    let difference = got.iter().zip(exact).map(|(&got, exact)| (f64::from(got) - exact).abs());
    difference.fold(0.0, |most, x| if x <= most { most } else { x })
}

/// Computes one set, checks and prints it.
fn is_right(s: &Set, causal: bool, exact: &[f64], exact_lse: &[f64]) -> Result<bool, Refusal> {
    let mut workspace = Workspace::new();
    let mut answers = Vec::new();
    for threads in [Pool::default(), Pool::new(3)?] {
        let (mut out, mut lse) = (vec![f32::NAN; exact.len()], vec![f32::NAN; exact_lse.len()]);
        model_attention(s, causal, &mut out, &mut lse, &mut workspace, &threads)?;
        answers.push((out, lse));
    }
    let largest = s.v.iter().fold(0f32, |most, x| most.max(x.abs()));
    let (out, lse) = &answers[0];
    let errors = [error(out, exact) / f64::from(largest), error(lse, exact_lse)];
    let same = answers[0] == answers[1];
    let name = format!("{}{}", s.name, if causal { " causal" } else { "" });
    println!("{name}: error {:.1e} of the largest value, {:.1e} of the LSE", errors[0], errors[1]);
    if !same {
        println!("{name}: three threads give other bits than one");
    }
    Ok(same && errors.iter().all(|&error| error <= BOUND))
}

/// Whether all sets of a directory are right.
fn run(directory: &str) -> Result<bool, Box<dyn Error>> {
    let index = fs::read_to_string(Path::new(directory).join("index.txt"))?;
    let (mut sets, mut right) = (0, 0);
    for line in index.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[name, heads, len_q, len_kv, dim, scale, causal_too] = fields.as_slice() else {
            return Err(format!("not understood: {line}").into());
        };
        let path = |suffix: &str| format!("{directory}/{name}_{suffix}");
        let s = Set {
            name: name.to_owned(),
            heads: heads.parse()?,
            len_q: len_q.parse()?,
            len_kv: len_kv.parse()?,
            dim: dim.parse()?,
            scale: scale.parse()?,
            q: load(&path("q.f32"), f32::from_le_bytes)?,
            k: load(&path("k.f32"), f32::from_le_bytes)?,
            v: load(&path("v.f32"), f32::from_le_bytes)?,
        };
        for suffix in if causal_too == "1" { &["", "_causal"][..] } else { &[""] } {
            let exact = load(&path(&format!("out{suffix}.f64")), f64::from_le_bytes)?;
            let exact_lse = load(&path(&format!("lse{suffix}.f64")), f64::from_le_bytes)?;
            if exact.len() != s.q.len() || exact_lse.len() != s.heads * s.len_q {
                return Err(format!("{name}{suffix}: files of the wrong length").into());
            }
            sets += 1;
            right += usize::from(is_right(&s, !suffix.is_empty(), &exact, &exact_lse)?);
        }
    }
    if sets == 0 { Err("no sets".into()) } else { Ok(right == sets) }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let [_, directory] = arguments.as_slice() else {
        eprintln!("usage: real_model DIRECTORY");
        return ExitCode::from(2);
    };
    match run(directory) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("real_model: {error}");
            ExitCode::from(2)
        }
    }
}
