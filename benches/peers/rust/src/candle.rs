//! candle-nn's flash attention for CPUs. Threads: rayon's, from RAYON_NUM_THREADS.

use crate::{Error, Inputs, Peer, Workload};
use candle_core::{DType, Device, Tensor, WithDType};
use candle_nn::attention::{AttnMask, flash_attn};
use std::marker::PhantomData;

pub const VERSION: &str = "candle-nn 0.11.1";

pub struct Candle<T> {
    q: Tensor,
    caches: Vec<[Tensor; 2]>,
    out: Option<Tensor>,
    w: Workload,
    of: PhantomData<T>,
}

/// It wants `[batch][tokens][heads][dim]`.
fn tensor(x: &[f32], w: Workload, heads: usize, tokens: usize, dtype: DType) -> Result<Tensor, Error> {
    let x = Tensor::from_slice(x, (w.batch, heads, tokens, w.dim), &Device::Cpu)?;
    Ok(x.transpose(1, 2)?.contiguous()?.to_dtype(dtype)?)
}

impl<T: WithDType> Candle<T> {
    pub fn new(w: Workload, inputs: &Inputs) -> Result<Candle<T>, Error> {
        let cache = || -> Result<[Tensor; 2], Error> {
            let kv = |x: &[f32]| tensor(x, w, w.heads_kv, w.len_kv, T::DTYPE);
            Ok([kv(&inputs.k)?, kv(&inputs.v)?])
        };
        Ok(Candle {
            q: tensor(&inputs.q, w, w.heads_q, w.len_q, T::DTYPE)?,
            caches: (0..w.copies).map(|_| cache()).collect::<Result<_, _>>()?,
            out: None,
            w,
            of: PhantomData,
        })
    }
}

impl<T: WithDType + num_traits::Float> Peer for Candle<T> {
    fn call(&mut self, copy: usize) -> Result<(), Error> {
        let [k, v] = &self.caches[copy];
        let scale = 1.0 / (self.w.dim as f32).sqrt();
        let mask = if self.w.causal { AttnMask::causal() } else { AttnMask::None };
        self.out = Some(flash_attn::<T>(&self.q, k, v, scale, mask, None, None)?);
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        let out = self.out.as_ref().ok_or("nothing was computed")?;
        Ok(out.to_dtype(DType::F32)?.contiguous()?.flatten_all()?.to_vec1()?)
    }
}
