//! A decode loop of one layer and sequence: grouped heads, and a cache of 8-bit integers in pages,
//! in which each token of each head has a scale of its own.
//!
//! Exit code 1 if a result is not what the data were made for.

use std::process::ExitCode;

use flash_attention::{Append, Attention, Data, DataMut, Pool, Refusal, Tensor, TensorMut, Workspace};

const HEADS: usize = 8;
const HEADS_KV: usize = 2;
const DIM: usize = 64;
const PAGE_SIZE: usize = 4;
const PAGES: usize = 16;
/// A cache, `[page][token][head][dim]`.
const CACHE: [usize; 4] = [PAGES, PAGE_SIZE, HEADS_KV, DIM];

/// What a layer of the model computes for a token: queries, keys and values, `[head][dim]`.
struct Projected {
    q: [f32; HEADS * DIM],
    k: [f32; HEADS_KV * DIM],
    v: [f32; HEADS_KV * DIM],
}

/// Keys or values, and the scale of each row: `[page][head][token]`.
struct Cache {
    elements: Vec<i8>,
    scales: Vec<f32>,
}

impl Cache {
    fn new() -> Cache {
        let rows = PAGES * PAGE_SIZE * HEADS_KV;
        Cache { elements: vec![0; rows * DIM], scales: vec![0.0; rows] }
    }

    fn tensor(&self) -> Tensor<'_> {
        Tensor::token_first(Data::I8(&self.elements), CACHE).scale_per_token(&self.scales)
    }

    fn tensor_mut(&mut self) -> TensorMut<'_> {
        TensorMut::token_first(DataMut::I8(&mut self.elements), CACHE).scale_per_token(&mut self.scales)
    }
}

fn decode_paged(tokens: &[Projected]) -> Result<Vec<[f32; HEADS * DIM]>, Refusal> {
    let pool = Pool::new(0)?; // one thread per core
    let mut workspace = Workspace::new(); // grows at the first token, then is kept
    let (mut k, mut v) = (Cache::new(), Cache::new());
    let table = [7, 2, 9, 4]; // the pages of this sequence
    let room = table.len() * PAGE_SIZE;
    let mut outs = Vec::new();
    for (n, new) in tokens.iter().enumerate() {
        let length = [n as i32 + 1]; // keys in use, the new one counted
        let row = |x| Tensor::token_first(x, [1, 1, HEADS_KV, DIM]);
        Append::new(k.tensor_mut(), row(&new.k), v.tensor_mut(), row(&new.v))
            .pages(&table, room)
            .kv_lens(&length)
            .run()?;
        let mut out = [0.0; HEADS * DIM];
        Attention::new(
            Tensor::token_first(&new.q, [1, 1, HEADS, DIM]),
            k.tensor(),
            v.tensor(),
            TensorMut::token_first(&mut out, [1, 1, HEADS, DIM]),
        )
        .causal()
        .pages(&table, room)
        .kv_lens(&length)
        .run(&mut workspace, &pool)?;
        outs.push(out);
    }
    Ok(outs)
}

/// Each token attends to the one of half its position: a key in a direction of its own, and queries
/// in that of another.
fn main() -> ExitCode {
    let projected = |token: usize| {
        let mut new = Projected { q: [0.0; HEADS * DIM], k: [0.0; HEADS_KV * DIM], v: [0.0; HEADS_KV * DIM] };
        for h in 0..HEADS_KV {
            (new.k[h * DIM + token], new.v[h * DIM]) = (30.0, token as f32);
        }
        (0..HEADS).for_each(|h| new.q[h * DIM + token / 2] = 30.0);
        new
    };
    let tokens: Vec<_> = (0..13).map(projected).collect();
    let outs = match decode_paged(&tokens) {
        Ok(outs) => outs,
        Err(refusal) => {
            eprintln!("{refusal}");
            return ExitCode::FAILURE;
        }
    };
    for (token, out) in outs.iter().enumerate() {
        let wanted = (token / 2) as f32;
        let is_right = |h: usize| (out[h * DIM] - wanted).abs() <= 1e-3;
        if !(0..HEADS).all(is_right) {
            eprintln!("token {token}: {} instead of {wanted}", out[0]);
            return ExitCode::FAILURE;
        }
    }
    println!("{} tokens, {} keys a page: right", outs.len(), PAGE_SIZE);
    ExitCode::SUCCESS
}
