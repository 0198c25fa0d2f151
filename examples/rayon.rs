//! Attention on threads of rayon, for a program that has them for other work already.
//!
//!     cargo run --release --features rayon --example rayon

use std::error::Error;
use std::sync::Arc;

use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};
use rayon::prelude::*;

const TOKENS: usize = 512;
const HEADS: usize = 8;
const DIM: usize = 64;
const LAYERS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = Arc::new(rayon::ThreadPoolBuilder::new().build()?);
    let pool = Pool::from_rayon(threads.clone()); // Pool::rayon_global() for rayon's own
    let mut workspace = Workspace::new();
    let mut x: Vec<f32> = (0..TOKENS * HEADS * DIM).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut out = vec![0.0; x.len()];
    threads.install(|| {
        for _ in 0..LAYERS {
            let tokens = Tensor::token_first(&x, [1, TOKENS, HEADS, DIM]);
            let to = TensorMut::token_first(&mut out, [1, TOKENS, HEADS, DIM]);
            let mut attention = Attention::new(tokens, tokens, tokens, to).causal();
            attention.reserve(&mut workspace, &pool)?;
            attention.run(&mut workspace, &pool)?; // on the threads that also do what follows
            x.par_iter_mut().zip(&out).for_each(|(x, o)| *x = (*x + o).tanh());
        }
        Ok::<(), flash_attention::Refusal>(())
    })?;
    let sum: f64 = x.iter().map(|&x| f64::from(x).abs()).sum();
    println!("{LAYERS} layers on {} threads, mean |x| {:.4}", pool.threads(), sum / x.len() as f64);
    Ok(())
}
