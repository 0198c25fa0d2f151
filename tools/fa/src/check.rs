//! `fa check`: whether a shape is accepted, and how it would be computed.

use std::ffi::CString;
use std::fmt::Write as _;

use flash_attention::capi::attention::{FA_FAST, FA_PRECISE};
use flash_attention::capi::isa::fa_limit_isa;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::fa_dtype;
use flash_attention::kernel::{self, Path};
use flash_attention::machine;
use flash_attention::plan::Plan;
use measure::did_you_mean;
use serde_json::{Value, json};

use crate::options::{Given, Known, number};
use crate::shape::{No, Scales, Shape};
use crate::{Reply, answer};

pub const HELP: &str = "\
fa check: whether the library accepts a shape, and how it would compute it: path, kernel, tiles, parts, workspace.
No tensor is made. The last query is on the last key. Exit code 1: the library refuses it, and says why.
";

pub const KNOWN: &[Known] = &[
    known("--batch", "N", "sequences (1)"),
    known("--heads", "N/KV", "query heads, and kv heads if they are fewer (8)"),
    known("--len", "Q/KV", "query rows, and keys if they are not as many (512)"),
    known("--len-q", "N", "query rows alone"),
    known("--len-kv", "N", "keys alone"),
    known("--ragged", "Q/KV,...", "sequences of different lengths: query rows and keys of each"),
    known("--dim", "QK/V", "elements of a row of Q and K, and of V (64)"),
    known(
        "--dtype",
        "TYPE",
        "of Q, K and V: f32, f16, bf16, i8, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl, f8_e4m3, f8_e5m2, u8, q15 (f32)",
    ),
    known("--kv", "TYPE", "of K and V alone"),
    known("--out", "TYPE", "of the output: f32, f16, bf16 (f32)"),
    known("--scales", "OF", "a scale of i8 for each tensor, head, token or channel (tensor)"),
    known("--token-first", "", "[token][head][dim] in memory, not [head][token][dim]"),
    known("--causal", "", "no query sees a key behind its own"),
    known("--window", "L/R", "keys before and behind a query's that it sees; -1: no limit"),
    known("--softcap", "X", "scores become X * tanh(score / X)"),
    known("--mask", "TYPE", "a mask of f32, f16, bf16 or bool"),
    known("--alibi", "", "linear biases"),
    known("--sinks", "", "a logit without a value for each head"),
    known("--lse", "", "log-sum-exp, too"),
    known("--page", "N", "keys in pages of N tokens, at least 1"),
    known("--precise", "", "FA_PRECISE: bf16 and blocks become f32"),
    known("--fast", "", "FA_FAST: 8-bit integers may have probabilities of 8 bits"),
    known("--blocks", "Q/KV", "query rows and keys of a tile, 0: chosen (0/0)"),
    known("--threads", "N", "threads, 1 to 256 (the cores that may be used)"),
    known("--isa", "NAME", "this instruction set or a lesser one"),
    known("--json", "", "JSON"),
];

pub const fn known(name: &'static str, value: &'static str, help: &'static str) -> Known {
    Known { name, value, help }
}

const FLOATS: [(&str, fa_dtype); 3] =
    [("f32", fa_dtype::FA_DTYPE_F32), ("f16", fa_dtype::FA_DTYPE_F16), ("bf16", fa_dtype::FA_DTYPE_BF16)];

pub fn run(given: &Given) -> Result<Reply, String> {
    let shape = shape(given)?;
    let threads = threads(given)?;
    let limited = match given.text("--isa") {
        None => false,
        Some(name) => {
            let text = CString::new(name).unwrap_or_default();
            // SAFETY: a string with its end.
            if unsafe { fa_limit_isa(text.as_ptr()) } != fa_status::FA_OK {
                let known: Vec<_> = kernel::available().map(|row| row.isa().to_string_lossy()).collect();
                let meant = did_you_mean(name, known.iter().map(|name| &**name));
                return Err(format!("there is no instruction set {name:?}; see fa info{meant}"));
            }
            true
        }
    };
    let reply = explain(&shape, threads, given.has("--json"));
    if limited {
        // SAFETY: NULL takes the limit back.
        unsafe { fa_limit_isa(std::ptr::null()) };
    }
    reply
}

/// How many threads are asked about.
pub fn threads(given: &Given) -> Result<usize, String> {
    let threads = given.number("--threads", machine::cores().min(256))?;
    if (1..=256).contains(&threads) { Ok(threads) } else { Err("--threads is 1 to 256".to_owned()) }
}

fn shape(given: &Given) -> Result<Shape, String> {
    let types = [
        &FLOATS[..],
        &[
            ("i8", fa_dtype::FA_DTYPE_I8),
            ("q8_0", fa_dtype::FA_DTYPE_Q8_0),
            ("q4_0", fa_dtype::FA_DTYPE_Q4_0),
            ("q4_1", fa_dtype::FA_DTYPE_Q4_1),
            ("q5_0", fa_dtype::FA_DTYPE_Q5_0),
            ("q5_1", fa_dtype::FA_DTYPE_Q5_1),
            ("iq4_nl", fa_dtype::FA_DTYPE_IQ4_NL),
            ("f8_e4m3", fa_dtype::FA_DTYPE_F8_E4M3),
            ("f8_e5m2", fa_dtype::FA_DTYPE_F8_E5M2),
            ("u8", fa_dtype::FA_DTYPE_U8),
            ("q15", fa_dtype::FA_DTYPE_Q15),
        ],
    ]
    .concat();
    let masks = [&FLOATS[..], &[("bool", fa_dtype::FA_DTYPE_BOOL8)]].concat();
    let scales = [
        ("tensor", Scales::Tensor),
        ("head", Scales::Head),
        ("token", Scales::Token),
        ("channel", Scales::Channel),
    ];
    let [len_q, len_kv] = given.pair("--len", [512; 2])?;
    let (len_q, len_kv) = (given.number("--len-q", len_q)?, given.number("--len-kv", len_kv)?);
    let ragged = ragged(given)?;
    let most = |which: usize, len| {
        let lengths = ragged.iter().map(|lengths| i64::from(lengths[which]));
        lengths.max().unwrap_or(len)
    };
    let page = given.number("--page", 0)?;
    if given.has("--page") && page < 1 {
        return Err(format!("--page {page}: a page has at least 1 token"));
    }
    let q = given.word("--dtype", &types, fa_dtype::FA_DTYPE_F32)?;
    let mut window = given.pair("--window", [-1; 2])?;
    if given.has("--causal") {
        window[1] = 0;
    }
    Ok(Shape {
        batch: match ragged.len() {
            0 => given.number("--batch", 1)?,
            n => n as i64,
        },
        heads: given.pair("--heads", [8; 2])?,
        len_q: most(0, len_q),
        len_kv: most(1, len_kv),
        ragged,
        dim: given.pair("--dim", [64; 2])?,
        q,
        kv: given.word("--kv", &types, q)?,
        out: given.word("--out", &FLOATS, fa_dtype::FA_DTYPE_F32)?,
        scales: given.word("--scales", &scales, Scales::Tensor)?,
        token_first: given.has("--token-first"),
        window,
        softcap: given.number("--softcap", 0.0)?,
        mask: match given.has("--mask") {
            true => Some(given.word("--mask", &masks, fa_dtype::FA_DTYPE_F32)?),
            false => None,
        },
        alibi: given.has("--alibi"),
        sinks: given.has("--sinks"),
        lse: given.has("--lse"),
        page,
        accuracy: [("--precise", FA_PRECISE), ("--fast", FA_FAST)]
            .into_iter()
            .map(|(name, flag)| if given.has(name) { flag } else { 0 })
            .sum(),
        blocks: given.pair("--blocks", [0; 2])?,
    })
}

/// The lengths of sequences, if they differ: "512/512,1/8192".
fn ragged(given: &Given) -> Result<Vec<[i32; 2]>, String> {
    let Some(text) = given.text("--ragged") else { return Ok(Vec::new()) };
    for other in ["--batch", "--len", "--len-q", "--len-kv"] {
        if given.has(other) {
            return Err(format!("--ragged says what {other} would: one of them is too many"));
        }
    }
    let length = |word: &str| match number("--ragged", word)? {
        n if n >= 0 => Ok(n),
        n => Err(format!("--ragged {n}: lengths are not negative")),
    };
    let sequence = |text: &str| {
        let (rows, keys) = text.split_once('/').unwrap_or((text, text));
        Ok([length(rows)?, length(keys)?])
    };
    text.split(',').map(sequence).collect()
}

fn explain(shape: &Shape, threads: usize, json: bool) -> Result<Reply, String> {
    let found = shape.plan(threads).and_then(|plan| {
        let workspace = [shape.workspace(1)?, shape.workspace(threads)?];
        Ok((plan, workspace))
    });
    let (plan, [alone, all]) = match found {
        Ok(found) => found,
        Err(No::Ask(why)) => return Err(why),
        Err(No::Refused(status, why)) => {
            let text = format!("refused, {status:?}: {why}\n");
            let data = json!({ "accepted": false, "status": format!("{status:?}"), "why": why });
            return Ok(answer(1, json, text, data));
        }
    };
    let [rows, heads] = [plan.tiles.q, plan.tiles.heads];
    let mut text = format!("accepted: {plan}\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("path", format!("{}: {}", path(&plan), meaning(&plan)));
    line("kernel", format!("{}, compute type {}", isa(&plan), plan.kernel.compute_type(plan.path)));
    match plan.path {
        Path::Prefill => line("tiles", format!("{rows} query rows x {} keys", plan.tiles.kv)),
        Path::Decode => line("tiles", format!("{heads} query heads x {rows} rows x {} keys", plan.tiles.kv)),
    }
    let s = if threads == 1 { "" } else { "s" };
    line("pieces", format!("{}, for {} of {threads} thread{s}", plan.work_items, plan.threads));
    line("workspace", format!("{all} bytes for {threads} thread{s}, {alone} for one"));
    line("K and V", format!("{} bytes, as they are stored", kv_bytes(shape)));
    Ok(answer(0, json, text, data(shape, &plan, threads, [alone, all])))
}

fn data(shape: &Shape, plan: &Plan, threads: usize, [alone, all]: [usize; 2]) -> Value {
    json!({
        "accepted": true,
        "status": "FA_OK",
        "why": plan.to_string(),
        "path": path(plan),
        "isa": isa(plan),
        "family": plan.kernel.compute_type(plan.path),
        "tiles": { "heads": plan.tiles.heads, "rows": plan.tiles.q, "keys": plan.tiles.kv },
        "pieces": plan.work_items,
        "threads": plan.threads,
        "threads_offered": threads,
        "workspace_bytes": { "one_thread": alone, "all_threads": all },
        "kv_bytes": kv_bytes(shape),
    })
}

pub fn path(plan: &Plan) -> &'static str {
    match plan.path {
        Path::Prefill => "prefill",
        Path::Decode => "decode",
    }
}

fn meaning(plan: &Plan) -> &'static str {
    match plan.path {
        Path::Prefill => "many query rows, each lane is one",
        Path::Decode => "few query rows, lanes are elements of a head",
    }
}

pub fn isa(plan: &Plan) -> String {
    plan.kernel.isa().to_string_lossy().into_owned()
}

/// Those of a shape that is accepted, whose tensors an address space holds.
fn kv_bytes(shape: &Shape) -> u64 {
    let [dim_qk, dim_v] = shape.dim;
    let row = Shape::row_bytes(shape.kv, dim_qk) + Shape::row_bytes(shape.kv, dim_v);
    u64::try_from(row * i128::from(shape.heads[1]) * shape.all_keys()).unwrap_or(u64::MAX)
}
