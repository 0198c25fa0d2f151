//! The attention of ruvector-mincut-gated-transformer, whose functions this library's succeed. One
//! thread; no grouped heads: a kv head is computed once for each of its query heads.

use crate::{Error, Inputs, Peer, Unsupported, Workload};
use ruvector_mincut_gated_transformer::flash_attention::{
    FlashAttentionConfig, flash_attention_forward, flash_attention_forward_i8,
};

pub const VERSION: &str = "ruvector-mincut-gated-transformer 0.1.0";

fn config(w: Workload) -> Result<FlashAttentionConfig, Error> {
    if std::env::args().nth(2).is_some_and(|threads| threads != "1") {
        return Err(Unsupported("one thread only").into());
    }
    let mut c = FlashAttentionConfig::for_head_dim(w.dim);
    c.causal = w.causal;
    c.softmax_scale = 1.0 / (w.dim as f32).sqrt();
    Ok(c)
}

/// The heads of queries and of their keys, as places in the inputs.
fn heads(w: Workload) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
    let (q, kv) = (w.len_q * w.dim, w.len_kv * w.dim);
    (0..w.batch * w.heads_q).map(move |h| {
        let shared = h / w.heads_q * w.heads_kv + h % w.heads_q * w.heads_kv / w.heads_q;
        (h * q..(h + 1) * q, shared * kv..(shared + 1) * kv)
    })
}

pub struct Floats {
    config: FlashAttentionConfig,
    w: Workload,
    q: Vec<f32>,
    caches: Vec<[Vec<f32>; 2]>,
    out: Vec<f32>,
}

impl Floats {
    pub fn new(w: Workload, x: Inputs) -> Result<Floats, Error> {
        let caches = (0..w.copies).map(|_| [x.k.clone(), x.v.clone()]).collect();
        Ok(Floats { config: config(w)?, w, out: vec![0.0; x.q.len()], q: x.q, caches })
    }
}

impl Peer for Floats {
    fn call(&mut self, copy: usize) -> Result<(), Error> {
        let [k, v] = &self.caches[copy];
        for (q, kv) in heads(self.w) {
            let out = &mut self.out[q.clone()];
            let (k, v) = (&k[kv.clone()], &v[kv]);
            flash_attention_forward(&self.config, &self.q[q], k, v, self.w.len_q, self.w.len_kv, out);
        }
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        Ok(self.out.clone())
    }
}

/// One scale a tensor.
struct Quantised {
    values: Vec<i8>,
    scale: f32,
}

fn quantise(x: &[f32]) -> Quantised {
    let scale = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
    Quantised { values: x.iter().map(|x| (x / scale).round() as i8).collect(), scale }
}

pub struct Integers {
    config: FlashAttentionConfig,
    w: Workload,
    q: Quantised,
    caches: Vec<[Quantised; 2]>,
    out: Vec<f32>,
}

impl Integers {
    pub fn new(w: Workload, x: &Inputs) -> Result<Integers, Error> {
        let caches = (0..w.copies).map(|_| [quantise(&x.k), quantise(&x.v)]).collect();
        Ok(Integers { config: config(w)?, w, q: quantise(&x.q), caches, out: vec![0.0; x.q.len()] })
    }
}

impl Peer for Integers {
    fn call(&mut self, copy: usize) -> Result<(), Error> {
        let [k, v] = &self.caches[copy];
        for (q, kv) in heads(self.w) {
            let out = &mut self.out[q.clone()];
            flash_attention_forward_i8(
                &self.config,
                &self.q.values[q],
                &k.values[kv.clone()],
                &v.values[kv],
                self.q.scale,
                k.scale,
                v.scale,
                self.w.len_q,
                self.w.len_kv,
                out,
            );
        }
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        Ok(self.out.clone())
    }
}
