//! Regression of the parts: what criterion compares with its last run on the same machine.
//!
//! `cargo bench -p benches --bench parts`. Shares of the peak are in the other benchmark,
//! `attention`.

#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Function};
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::pool::Own;
use flash_attention::prepared::Prepared;
use flash_attention::problem::{Batch, Logits, Problem, Semantics, Tensors};
use flash_attention::view::{Layout, View, ViewMut};
use flash_attention::work::query_tiles::TileQueue;
use flash_attention::workspace::Workspace;

fn parts(c: &mut Criterion) {
    for row in kernel::available().filter(|row| row.takes_types([Dtype::F32; 3])) {
        let mut group = c.benchmark_group(row.isa().to_string_lossy());

        let mut values: Vec<f32> = (0..4096).map(|i| -(i as f32) / 256.0).collect();
        group.throughput(Throughput::Elements(values.len() as u64));
        group.bench_function("exp2", |b| b.iter(|| row.map(Function::Exp2, black_box(&mut values))));

        // One tile against few keys is mostly packing and epilogue, against many mostly scores and
        // accumulation.
        for (name, len_q, len_kv, dim) in
            [("ends", 128, 8, 64), ("middle", 32, 2048, 64), ("part", 128, 512, 64)]
        {
            let data: Vec<f32> = (0..len_kv.max(len_q) * dim).map(|i| (i as f32).sin()).collect();
            let mut out = vec![0f32; len_q * dim];
            let layout = |len| Layout::dense(Dtype::F32, 1, len, dim).expect("a size that fits");
            let view = |len| View::of(&data, layout(len)).expect("a view");
            let tensors = Tensors {
                q: view(len_q),
                k: view(len_kv),
                v: view(len_kv),
                o: ViewMut::of(&mut out, layout(len_q)).expect("a view"),
                lse: None,
                batch: Batch::default(),
                logits: Logits::default(),
                weights: None,
            };
            let mut problem = Problem::new(tensors, Semantics::with_scale(0.125)).expect("a problem");
            let plan = Plan::new(problem.shape(), row, Machine::get(), 1).expect("a plan");
            let workspace = Workspace::allocate(plan.memory).expect("memory");
            let mut scratch = workspace.take().expect("a piece");
            group.throughput(Throughput::Elements((4 * len_q * len_kv * dim) as u64));
            group.bench_function(name, |b| {
                b.iter(|| {
                    let queue = TileQueue::new(&mut problem, plan.tiles.q, 1);
                    while let Some(part) = queue.take() {
                        row.prefill(&part, plan.tiles, None, scratch.reborrow()).expect("an available row");
                    }
                });
            });
            group.bench_function(format!("{name}, whole call"), |b| {
                b.iter(|| {
                    let mut prepared = Prepared::with_plan(&mut problem, plan.clone());
                    prepared.run_allocating(&Own).expect("memory");
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
