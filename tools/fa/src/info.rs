//! `fa info`: what the library finds on this machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use flash_attention::capi::tensor::fa_dtype;
use flash_attention::capi::version::{FA_ABI_VERSION, fa_version};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Kernel, Path};
use flash_attention::machine::{self, Machine};
use serde_json::json;

use crate::check::{isa, known, path, threads};
use crate::options::{Given, Known};
use crate::shape::Shape;
use crate::{Reply, answer};

pub const HELP: &str = "\
fa info: the CPU as the library sees it, the rows of its table of kernels that run here, best first, and what some
shapes get. FA_MAX_ISA counts, as it does for every program.
";

pub const KNOWN: &[Known] = &[
    known("--threads", "N", "threads that the shapes are planned for (the cores that may be used)"),
    known("--json", "", "JSON"),
];

/// Storage types that a family may take as K and V.
const TYPES: [(Dtype, &str); 14] = [
    (Dtype::F32, "f32"),
    (Dtype::F16, "f16"),
    (Dtype::Bf16, "bf16"),
    (Dtype::I8, "i8"),
    (Dtype::Q8_0, "q8_0"),
    (Dtype::Q4_0, "q4_0"),
    (Dtype::Q4_1, "q4_1"),
    (Dtype::Q5_0, "q5_0"),
    (Dtype::Q5_1, "q5_1"),
    (Dtype::Iq4Nl, "iq4_nl"),
    (Dtype::F8E4M3, "f8_e4m3"),
    (Dtype::F8E5M2, "f8_e5m2"),
    (Dtype::U8, "u8"),
    (Dtype::Q15, "q15"),
];

pub fn run(given: &Given) -> Result<Reply, String> {
    let threads = threads(given)?;
    let cpu = cpu();
    let Machine { l1d, l2, l3, tuning } = Machine::get();
    let cores = machine::cores();
    let best = kernel::best().ok();
    let in_use =
        best.map_or("none: FA_MAX_ISA names no instruction set that this build knows".to_owned(), name);
    let mut text = format!(
        "flash_attention {}, ABI {FA_ABI_VERSION}\n\n\
         CPU        {cpu}\n\
         cores      {cores} that this process may use\n\
         caches     {} first level (data), {} second, {} last, all of it\n\
         in use     {in_use}\n\n\
         kernels that run here, best first          prefill  decode  lanes  keys a tile  K and V\n",
        version(),
        kib(l1d),
        kib(l2),
        kib(l3),
    );
    let mut allowed = false;
    let mut kernels = Vec::new();
    for row in kernel::available() {
        allowed |= best.is_some_and(|best| std::ptr::addr_eq(best, row));
        let [prefill, decode] = [row.compute_type(Path::Prefill), row.compute_type(Path::Decode)];
        let types: Vec<_> = TYPES.into_iter().filter(|(dtype, _)| row.takes_types([*dtype; 3])).collect();
        let types: Vec<_> = types.into_iter().map(|(_, name)| name).collect();
        let _ = writeln!(
            text,
            "  {:<40} {prefill:<8} {decode:<7} {:<6} {:<12} {}",
            format!("{}{}", name(row), if allowed { "" } else { " (not allowed by FA_MAX_ISA)" }),
            row.lanes(),
            row.tile_keys(),
            types.join(" ")
        );
        kernels.push(json!({
            "isa": name(row),
            "prefill": prefill,
            "decode": decode,
            "lanes": row.lanes(),
            "tile_keys": row.tile_keys(),
            "kv_types": types,
            "allowed": allowed,
        }));
    }
    let _ = writeln!(
        text,
        "\nwhat shapes get, on up to {threads} threads\n  {:<42} {:<18} {:<8} {:>12} {:>7} {:>8} {:>10}",
        "query heads/kv heads x rows x keys x dim",
        "kernel",
        "path",
        "rows x keys",
        "pieces",
        "threads",
        "workspace"
    );
    let mut plans = Vec::new();
    for (what, shape) in shapes() {
        // With an unknown FA_MAX_ISA there is none.
        let (Ok(plan), Ok(bytes)) = (shape.plan(threads), shape.workspace(threads)) else { continue };
        let family = plan.kernel.compute_type(plan.path);
        let tiles = format!("{} x {}", plan.tiles.heads * plan.tiles.q, plan.tiles.kv);
        let _ = writeln!(
            text,
            "  {what:<42} {:<18} {:<8} {tiles:>12} {:>7} {:>8} {bytes:>10}",
            format!("{} {family}", isa(&plan)),
            path(&plan),
            plan.work_items,
            plan.threads
        );
        plans.push(json!({
            "shape": what,
            "isa": isa(&plan),
            "family": family,
            "path": path(&plan),
            "rows": plan.tiles.heads * plan.tiles.q,
            "keys": plan.tiles.kv,
            "pieces": plan.work_items,
            "threads": plan.threads,
            "workspace_bytes": bytes,
        }));
    }
    let data = json!({
        "version": version(),
        "abi": FA_ABI_VERSION,
        "cpu": cpu,
        "cores": cores,
        "cache_bytes": { "l1d": l1d, "l2": l2, "l3": l3 },
        "isa": best.map_or("unknown".to_owned(), name),
        "kernels": kernels,
        "threads": threads,
        "plans": plans,
        "tuning": tuning.values().into_iter().collect::<BTreeMap<_, _>>(),
    });
    let _ = writeln!(text, "\nmeasured numbers, src/tuning.rs");
    for (what, value) in tuning.values() {
        let _ = writeln!(text, "  {what:<24} {value}");
    }
    Ok(answer(0, given.has("--json"), text, data))
}

/// The library's, which need not be this program's.
pub fn version() -> String {
    let version = fa_version();
    format!("{}.{}.{}", version >> 16, version >> 8 & 255, version & 255)
}

/// Prompts, encoders and generation, in the types that caches have.
pub fn shapes() -> Vec<(String, Shape)> {
    use fa_dtype::{FA_DTYPE_BF16, FA_DTYPE_F32, FA_DTYPE_I8, FA_DTYPE_Q8_0};
    let mut all = Vec::new();
    let mut add = |dtype: fa_dtype, word: &str, heads: [i64; 2], len_q, len_kv, dim| {
        let what = format!("{}/{} x {len_q} x {len_kv} x {dim} {word}", heads[0], heads[1]);
        all.push((what, Shape { q: dtype, kv: dtype, ..Shape::plain(heads, len_q, len_kv, dim) }));
    };
    add(FA_DTYPE_F32, "f32", [12, 12], 128, 128, 64);
    add(FA_DTYPE_F32, "f32", [8, 8], 2048, 2048, 128);
    for (dtype, word) in
        [(FA_DTYPE_F32, "f32"), (FA_DTYPE_BF16, "bf16"), (FA_DTYPE_I8, "i8"), (FA_DTYPE_Q8_0, "q8_0")]
    {
        add(dtype, word, [32, 8], 512, 512, 128);
        add(dtype, word, [32, 8], 1, 8192, 128);
    }
    all
}

fn name(row: &dyn Kernel) -> String {
    row.isa().to_string_lossy().into_owned()
}

fn kib(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

/// The name that the CPU gives itself.
#[cfg(target_arch = "x86_64")]
fn cpu() -> String {
    use std::arch::x86_64::__cpuid;
    const FIRST: u32 = 0x8000_0002;
    if __cpuid(0x8000_0000).eax < FIRST + 2 {
        return "unknown".to_owned();
    }
    let mut name = Vec::new();
    for leaf in FIRST..FIRST + 3 {
        let r = __cpuid(leaf);
        for word in [r.eax, r.ebx, r.ecx, r.edx] {
            name.extend(word.to_le_bytes());
        }
    }
    String::from_utf8_lossy(&name).trim_matches(['\0', ' ']).to_owned()
}

/// The name that the CPU gives itself.
#[cfg(not(target_arch = "x86_64"))]
fn cpu() -> String {
    std::env::consts::ARCH.to_owned()
}
