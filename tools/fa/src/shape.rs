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

/// Why there is no answer.
#[derive(Debug)]
pub enum No {
    /// This program cannot ask.
    Ask(String),
    /// The library refuses it.
    Refused(fa_status, String),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> No {
        No::Refused(fa_status::from(refusal.error), refusal.to_string())
    }
}

/// As the command line has it.
#[derive(Clone)]
pub struct Shape {
    pub batch: i64,
    /// Query heads, kv heads.
    pub heads: [i64; 2],
    pub len_q: i64,
    pub len_kv: i64,
    /// Query rows and keys of each sequence, if they differ: those above are then the most.
    pub ragged: Vec<[i32; 2]>,
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

/// Hands out addresses for tensors that are not there: nobody looks at them, and none overlaps
/// another one, however large they are.
struct Places {
    next: i128,
}

impl Places {
    /// The address of a tensor of so many bytes, the product of `factors`.
    fn place(&mut self, name: &str, factors: &[i128]) -> Result<*mut c_void, No> {
        let refused = |why| Err(No::Refused(fa_status::FA_ERR_OVERFLOW, why));
        let at = self.next;
        // Nothing, however often, is nothing.
        let bytes = match factors.contains(&0) {
            true => Some(0),
            false => factors.iter().try_fold(1, |product: i128, &n| product.checked_mul(n)),
        };
        let Some(bytes) = bytes.filter(|&bytes| bytes <= isize::MAX as i128) else {
            let number = bytes.map_or("more than 10^38".to_owned(), |bytes| bytes.to_string());
            return refused(format!("{name} has {number} bytes, more than an address space holds"));
        };
        self.next = (at + bytes.max(1) + 4095) & !4095;
        match usize::try_from(self.next) {
            Ok(_) => Ok(std::ptr::without_provenance_mut(at as usize)),
            Err(_) => refused(format!("with {name}, the tensors are larger together than an address space")),
        }
    }
}

impl Shape {
    /// f32, one sequence, all keys seen.
    pub fn plain(heads: [i64; 2], len_q: i64, len_kv: i64, dim: i64) -> Shape {
        Shape {
            batch: 1,
            heads,
            len_q,
            len_kv,
            ragged: Vec::new(),
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
    pub fn row_bytes(dtype: fa_dtype, dim: i64) -> i128 {
        let dim = i128::from(dim);
        match dtype {
            fa_dtype::FA_DTYPE_F32 => dim * 4,
            fa_dtype::FA_DTYPE_F16 | fa_dtype::FA_DTYPE_BF16 => dim * 2,
            fa_dtype::FA_DTYPE_Q8_0 => dim / 32 * 34,
            fa_dtype::FA_DTYPE_Q4_0 | fa_dtype::FA_DTYPE_IQ4_NL => dim / 32 * 18,
            fa_dtype::FA_DTYPE_Q4_1 => dim / 32 * 20,
            fa_dtype::FA_DTYPE_Q5_0 => dim / 32 * 22,
            fa_dtype::FA_DTYPE_Q5_1 => dim / 32 * 24,
            _ => dim,
        }
    }

    /// Keys of all sequences.
    pub fn all_keys(&self) -> i128 {
        match self.ragged.len() {
            0 => i128::from(self.batch) * i128::from(self.len_kv),
            _ => self.ragged.iter().map(|[_, keys]| i128::from(*keys)).sum(),
        }
    }

    /// Entries, heads and rows of Q, and of K and V.
    fn extents(&self, pages: i64) -> [[i64; 3]; 2] {
        let [heads_q, heads_kv] = self.heads;
        let packed = |which: usize| self.ragged.iter().map(|lengths| i64::from(lengths[which])).sum();
        let all = |entries, heads, rows| [entries, heads, rows];
        let q = match self.ragged.len() {
            0 => all(self.batch, heads_q, self.len_q),
            _ => all(1, heads_q, packed(0)),
        };
        let kv = match self.ragged.len() {
            _ if self.page > 0 => all(pages, heads_kv, self.page),
            0 => all(self.batch, heads_kv, self.len_kv),
            _ => all(1, heads_kv, packed(1)),
        };
        [q, kv]
    }

    /// Where the rows of each sequence begin, and where those of the last one end.
    fn starts(&self, which: usize, name: &str) -> Result<Vec<i32>, No> {
        let mut starts = vec![0i32];
        for lengths in &self.ragged {
            let next = starts[starts.len() - 1].checked_add(lengths[which]);
            starts.push(next.ok_or_else(|| {
                No::Ask(format!(
                    "{name} of all sequences are more than {}, the most of a ragged batch",
                    i32::MAX
                ))
            })?);
        }
        Ok(starts)
    }

    /// Calls `ask` with the description.
    fn describe<T>(&self, ask: impl FnOnce(&fa_attention) -> T) -> Result<T, No> {
        // Too large a table is no table: this program would have to fill it.
        const MOST_PAGES: i128 = 1 << 24;
        // SAFETY: `fa_attention` is integers, floats and pointers, for which zeros are values.
        let mut a: fa_attention = unsafe { std::mem::zeroed() };
        // SAFETY: `a` is writable.
        let status = unsafe { fa_attention_init(&raw mut a, size_of::<fa_attention>()) };
        assert_eq!(status, fa_status::FA_OK);
        let [heads_q, heads_kv] = self.heads;
        let [dim_qk, dim_v] = self.dim;
        (a.batch, a.heads_q, a.heads_kv) = (self.batch, heads_q, heads_kv);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (self.len_q, self.len_kv, dim_qk, dim_v);
        // Sizes that no tensor has are for the library to refuse.
        let sizes = [self.batch, heads_q, heads_kv, self.len_q, self.len_kv, dim_qk, dim_v];
        let makes_no_sense = sizes.iter().any(|&n| n < 0);

        // Those of a sequence, and a page for the next token.
        let pages_each = if self.page > 0 { self.len_kv.div_euclid(self.page).saturating_add(1) } else { 0 };
        let pages = i128::from(self.batch) * i128::from(pages_each);
        let mut table = Vec::new();
        if self.page > 0 && !makes_no_sense {
            if !(0..=MOST_PAGES).contains(&pages) {
                return Err(No::Ask(format!("{pages} pages are more than this program can lay out")));
            }
            table.extend(0..pages as i32);
            (a.block_table, a.table_stride, a.page_size, a.num_pages) =
                (table.as_ptr(), pages_each, self.page, pages as i64);
        }
        let extents = self.extents(pages as i64);
        let (starts_q, starts_kv) = (self.starts(0, "query rows")?, self.starts(1, "keys")?);
        let lens: Vec<i32> = self.ragged.iter().map(|[_, keys]| *keys).collect();
        if !self.ragged.is_empty() {
            a.cu_len_q = starts_q.as_ptr();
            match self.page {
                0 => a.cu_len_kv = starts_kv.as_ptr(),
                _ => a.kv_lens = lens.as_ptr(),
            }
        }

        let mut places = Places { next: 1 << 20 };
        let scale = 1.0f32;
        let mut quant = |name: &str, [_, heads, tokens]: [i64; 3], dim: i64| -> Result<fa_quant, No> {
            let stride = match self.scales {
                Scales::Tensor => [0; 4],
                Scales::Head => [0, 1, 0, 0],
                Scales::Token => [heads.saturating_mul(tokens), tokens, 1, 0],
                Scales::Channel => [0, dim, 0, 1],
            };
            let count = match self.scales {
                Scales::Tensor | Scales::Head => 1,
                Scales::Token => extents[0][0].max(extents[1][0]).saturating_mul(tokens),
                Scales::Channel => dim,
            };
            let scale = match self.scales {
                // Read, if it is one for the whole tensor.
                Scales::Tensor => &raw const scale,
                _ if makes_no_sense => std::ptr::without_provenance(4096),
                _ => places.place(name, &[4, i128::from(heads), i128::from(count)])?.cast_const().cast(),
            };
            Ok(fa_quant { scale, zero: std::ptr::null(), stride, group_tokens: 1, group_dims: 1 })
        };
        let quants = [
            quant("scales of q", extents[0], dim_qk)?,
            quant("scales of k", extents[1], dim_qk)?,
            quant("scales of v", extents[1], dim_v)?,
        ];
        let mut tensor = |name: &str,
                          dtype: fa_dtype,
                          extent: [i64; 3],
                          dim: i64,
                          quant: *const fa_quant|
         -> Result<fa_tensor, No> {
            if makes_no_sense {
                return Ok(fa_tensor {
                    data: places.place(name, &[1])?,
                    dtype: dtype as i32,
                    ..fa_tensor::NONE
                });
            }
            let row = Shape::row_bytes(dtype, dim);
            let [entries, heads, tokens] = extent.map(i128::from);
            let data = places.place(name, &[row, entries, heads, tokens])?;
            let (of_heads, of_tokens) = (row.checked_mul(heads), row.checked_mul(tokens));
            let head_all = of_heads.and_then(|bytes| bytes.checked_mul(tokens));
            let (head, token) = if self.token_first { (Some(row), of_heads) } else { (of_tokens, Some(row)) };
            // They fit as the tensor does, unless it is empty.
            let fitting = |stride: Option<i128>| stride.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
            let stride = [head_all, head, token].map(fitting);
            let quant = if may_have_scales(dtype) { quant } else { std::ptr::null() };
            Ok(fa_tensor { data, stride, dtype: dtype as i32, quant, ..fa_tensor::NONE })
        };
        a.q = tensor("q", self.q, extents[0], dim_qk, &raw const quants[0])?;
        a.k = tensor("k", self.kv, extents[1], dim_qk, &raw const quants[1])?;
        a.v = tensor("v", self.kv, extents[1], dim_v, &raw const quants[2])?;
        a.o = tensor("o", self.out, extents[0], dim_v, std::ptr::null())?;
        (a.q_pos, [a.window_left, a.window_right]) = (FA_POS_END, self.window);
        a.softcap = self.softcap;
        if let Some(dtype) = self.mask.filter(|_| !makes_no_sense) {
            let row = if dtype == fa_dtype::FA_DTYPE_BOOL8 {
                i128::from(self.len_kv)
            } else {
                Shape::row_bytes(dtype, self.len_kv)
            };
            let data = places.place("mask", &[row, i128::from(self.len_q)])?;
            a.mask = fa_tensor { data, stride: [0, 0, row as i64], dtype: dtype as i32, ..fa_tensor::NONE };
        }
        let of_heads = [4, i128::from(heads_q)];
        if self.alibi && !makes_no_sense {
            a.alibi_slopes = places.place("alibi_slopes", &of_heads)?.cast();
        }
        if self.sinks && !makes_no_sense {
            a.sinks = places.place("sinks", &of_heads)?.cast();
        }
        if self.lse && !makes_no_sense {
            let [_, heads, rows] = extents[0];
            let sizes = extents[0].map(i128::from);
            a.lse = places.place("lse", &[4, sizes[0], sizes[1], sizes[2]])?.cast();
            a.lse_stride = [heads.saturating_mul(rows), rows, 1];
        }
        a.flags |= self.accuracy;
        [a.block_q, a.block_kv] = self.blocks;
        Ok(ask(&a))
    }

    /// How it would be computed on so many threads.
    pub fn plan(&self, threads: usize) -> Result<Plan, No> {
        // SAFETY: lists are as long as described; no tensor need be readable.
        Ok(self.describe(|a| unsafe { run::plan(a, threads) })??)
    }

    /// Scratch memory for so many threads.
    pub fn workspace(&self, threads: usize) -> Result<usize, No> {
        let mut bytes = 0;
        // SAFETY: as above; `bytes` is writable.
        let status =
            self.describe(|a| unsafe { run::fa_attention_workspace(a, threads as i32, &raw mut bytes) })?;
        match status {
            fa_status::FA_OK => Ok(bytes),
            status => Err(No::Refused(status, "the workspace has no size".to_owned())),
        }
    }
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
