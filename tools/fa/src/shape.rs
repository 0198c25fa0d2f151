//! A shape as an `fa_attention`, without data: planning looks at sizes, strides and short lists,
//! and at no tensor.

use std::ffi::c_void;

use flash_attention::capi::attention::{FA_POS_END, fa_attention, fa_attention_init};
use flash_attention::capi::run;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_dtype, fa_quant, fa_tensor};
use flash_attention::error::Refusal;
use flash_attention::plan::Plan;

/// What of an 8-bit tensor shares a scale.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    Tensor,
    Head,
    Token,
    Channel,
}

/// As the command line has it.
#[derive(Clone)]
pub struct Shape {
    pub batch: i64,
    /// Query heads, kv heads.
    pub heads: [i64; 2],
    pub len_q: i64,
    pub len_kv: i64,
    /// Of Q and K, of V.
    pub dim: [i64; 2],
    pub q: fa_dtype,
    pub kv: fa_dtype,
    pub out: fa_dtype,
    pub scales: Scales,
    pub token_first: bool,
    pub window: [i64; 2],
    pub softcap: f32,
    pub mask: Option<fa_dtype>,
    pub alibi: bool,
    pub sinks: bool,
    pub lse: bool,
    /// Tokens of a page; 0: not in pages.
    pub page: i64,
    /// FA_PRECISE, FA_FAST, or 0.
    pub accuracy: u32,
    /// Query rows and keys of a tile; 0: chosen.
    pub blocks: [i64; 2],
}

impl Shape {
    /// f32, one sequence, all keys seen.
    pub fn plain(heads: [i64; 2], len_q: i64, len_kv: i64, dim: i64) -> Shape {
        Shape {
            batch: 1,
            heads,
            len_q,
            len_kv,
            dim: [dim; 2],
            q: fa_dtype::FA_DTYPE_F32,
            kv: fa_dtype::FA_DTYPE_F32,
            out: fa_dtype::FA_DTYPE_F32,
            scales: Scales::Tensor,
            token_first: false,
            window: [-1; 2],
            softcap: 0.0,
            mask: None,
            alibi: false,
            sinks: false,
            lse: false,
            page: 0,
            accuracy: 0,
            blocks: [0; 2],
        }
    }

    /// Bytes of a row of `dim` elements; whole blocks of types that have them.
    pub fn row_bytes(dtype: fa_dtype, dim: i64) -> i64 {
        match dtype {
            fa_dtype::FA_DTYPE_F32 => dim.saturating_mul(4),
            fa_dtype::FA_DTYPE_F16 | fa_dtype::FA_DTYPE_BF16 => dim.saturating_mul(2),
            fa_dtype::FA_DTYPE_Q8_0 => (dim / 32).saturating_mul(34),
            fa_dtype::FA_DTYPE_Q4_0 | fa_dtype::FA_DTYPE_IQ4_NL => (dim / 32).saturating_mul(18),
            fa_dtype::FA_DTYPE_Q4_1 => (dim / 32).saturating_mul(20),
            fa_dtype::FA_DTYPE_Q5_0 => (dim / 32).saturating_mul(22),
            fa_dtype::FA_DTYPE_Q5_1 => (dim / 32).saturating_mul(24),
            _ => dim,
        }
    }

    /// Calls `ask` with the description.
    pub fn describe<T>(&self, ask: impl FnOnce(&fa_attention) -> T) -> Result<T, String> {
        // Too large a table is no table: this program would have to fill it.
        const MOST_PAGES: i64 = 1 << 24;
        // SAFETY: `fa_attention` is integers, floats and pointers, for which zeros are values.
        let mut a: fa_attention = unsafe { std::mem::zeroed() };
        // SAFETY: `a` is writable.
        let status = unsafe { fa_attention_init(&raw mut a, size_of::<fa_attention>()) };
        assert_eq!(status, fa_status::FA_OK);
        let scale = 1.0f32;
        // Read only if it is one for the whole tensor.
        let quant = |heads: i64, tokens: i64, dim: i64| fa_quant {
            scale: if self.scales == Scales::Tensor { &raw const scale } else { address(8).cast() },
            zero: std::ptr::null(),
            stride: match self.scales {
                Scales::Tensor => [0; 4],
                Scales::Head => [0, 1, 0, 0],
                Scales::Token => [heads.saturating_mul(tokens), tokens, 1, 0],
                Scales::Channel => [0, dim, 0, 1],
            },
            group_tokens: 1,
            group_dims: 1,
        };
        let [heads_q, heads_kv] = self.heads;
        let [dim_qk, dim_v] = self.dim;
        let pages = if self.page > 0 { self.len_kv.div_euclid(self.page).saturating_add(1) } else { 0 };
        let kv_tokens = if self.page > 0 { self.page } else { self.len_kv };
        let quants = [
            quant(heads_q, self.len_q, dim_qk),
            quant(heads_kv, kv_tokens, dim_qk),
            quant(heads_kv, kv_tokens, dim_v),
        ];
        let tensor = |n: usize, dtype: fa_dtype, [heads, tokens]: [i64; 2], dim: i64| {
            let row = Shape::row_bytes(dtype, dim);
            let (head, token) = if self.token_first {
                (row, row.saturating_mul(heads))
            } else {
                (row.saturating_mul(tokens), row)
            };
            fa_tensor {
                data: address(n).cast_mut(),
                stride: [row.saturating_mul(heads).saturating_mul(tokens), head, token],
                dtype: dtype as i32,
                quant: if may_have_scales(dtype) { &raw const quants[n] } else { std::ptr::null() },
                ..fa_tensor::NONE
            }
        };
        (a.batch, a.heads_q, a.heads_kv) = (self.batch, heads_q, heads_kv);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (self.len_q, self.len_kv, dim_qk, dim_v);
        a.q = tensor(0, self.q, [heads_q, self.len_q], dim_qk);
        a.k = tensor(1, self.kv, [heads_kv, kv_tokens], dim_qk);
        a.v = tensor(2, self.kv, [heads_kv, kv_tokens], dim_v);
        a.o = tensor(3, self.out, [heads_q, self.len_q], dim_v);
        (a.q_pos, [a.window_left, a.window_right]) = (FA_POS_END, self.window);
        a.softcap = self.softcap;
        if let Some(dtype) = self.mask {
            let row = if dtype == fa_dtype::FA_DTYPE_BOOL8 {
                self.len_kv
            } else {
                Shape::row_bytes(dtype, self.len_kv)
            };
            a.mask = fa_tensor {
                data: address(4).cast_mut(),
                stride: [0, 0, row],
                dtype: dtype as i32,
                ..fa_tensor::NONE
            };
        }
        let for_heads = vec![0.0f32; usize::try_from(heads_q).unwrap_or(0).min(1 << 20)];
        if for_heads.len() as i64 == heads_q {
            if self.alibi {
                a.alibi_slopes = for_heads.as_ptr();
            }
            if self.sinks {
                a.sinks = for_heads.as_ptr();
            }
        }
        if self.lse {
            (a.lse, a.lse_stride) =
                (address(5).cast_mut().cast(), [heads_q.saturating_mul(self.len_q), self.len_q, 1]);
        }
        let mut table = Vec::new();
        if self.page > 0 {
            let all = self.batch.saturating_mul(pages);
            if !(0..=MOST_PAGES).contains(&all) {
                return Err(format!("{all} pages are more than this program can lay out"));
            }
            table.extend(0..all as i32);
            (a.block_table, a.table_stride, a.page_size, a.num_pages) =
                (table.as_ptr(), pages, self.page, all);
        }
        a.flags |= self.accuracy;
        [a.block_q, a.block_kv] = self.blocks;
        Ok(ask(&a))
    }

    /// How it would be computed on so many threads.
    pub fn plan(&self, threads: usize) -> Result<Result<Plan, Refusal>, String> {
        // SAFETY: lists are as long as described; no tensor need be readable.
        self.describe(|a| unsafe { run::plan(a, threads) })
    }

    /// Scratch memory for so many threads.
    pub fn workspace(&self, threads: usize) -> Result<usize, String> {
        let mut bytes = 0;
        // SAFETY: as above; `bytes` is writable.
        self.describe(|a| unsafe { run::fa_attention_workspace(a, threads as i32, &raw mut bytes) })?;
        Ok(bytes)
    }
}

/// Where a tensor would be: nobody looks there, and no two of less than 16 TiB touch each other.
fn address(n: usize) -> *const c_void {
    std::ptr::without_provenance((n + 1) << 44)
}

/// Whether a type takes scales.
fn may_have_scales(dtype: fa_dtype) -> bool {
    matches!(
        dtype,
        fa_dtype::FA_DTYPE_I8
            | fa_dtype::FA_DTYPE_U8
            | fa_dtype::FA_DTYPE_F8_E4M3
            | fa_dtype::FA_DTYPE_F8_E5M2
            | fa_dtype::FA_DTYPE_Q15
    )
}
