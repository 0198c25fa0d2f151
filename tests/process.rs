//! What a program does to its process: it forks, or has some of the machine's cores only. The tests
//! of the C interface have the same in C. One thread, because a forked child has no other.

#![allow(unsafe_code, reason = "system calls")]

#[path = "common/child.rs"]
mod child;

use child::in_a_child;
use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace, machine};

const KEYS: usize = 4096;
const DIM: usize = 64;

/// One row of decode, long enough for several threads; its bits.
fn output(pool: &Pool) -> Vec<u32> {
    let data = |n: usize, a: f32| (0..n).map(|i| (i as f32 * a).sin()).collect::<Vec<f32>>();
    let (q, k, v) = (data(DIM, 0.3), data(KEYS * DIM, 0.7), data(KEYS * DIM, 0.9));
    let mut out = vec![0.0; DIM];
    let mut workspace = Workspace::new();
    let mut attention = Attention::new(
        Tensor::head_first(&q, [1, 1, 1, DIM]),
        Tensor::head_first(&k, [1, 1, KEYS, DIM]),
        Tensor::head_first(&v, [1, 1, KEYS, DIM]),
        TensorMut::head_first(&mut out, [1, 1, 1, DIM]),
    );
    attention.reserve(&mut workspace, pool).expect("memory");
    attention.run(&mut workspace, pool).expect("a result");
    out.iter().map(|x| x.to_bits()).collect()
}

/// A child computes with its parent's pool, alone, and with one of its own.
fn a_forked_child_computes() {
    let pool = Pool::new(3).expect("threads");
    let expected = output(&pool);
    assert_eq!(output(&Pool::default()), expected);
    assert!(in_a_child(|| {
        let own = Pool::new(2).expect("threads");
        output(&pool) == expected && output(&own) == expected
    }));
    assert_eq!(output(&pool), expected);
}

/// All cores are those that the process may use.
fn cores_are_those_of_the_process() {
    assert!(in_a_child(|| {
        // SAFETY: an empty set is all zeros; CPU_SET and the calls stay within it.
        unsafe {
            let mut may: libc::cpu_set_t = std::mem::zeroed();
            let size = size_of::<libc::cpu_set_t>();
            assert_eq!(libc::sched_getaffinity(0, size, &raw mut may), 0);
            let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &may));
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(first.expect("a core"), &mut one);
            assert_eq!(libc::sched_setaffinity(0, size, &raw const one), 0);
        }
        machine::cores() == 1
    }));
}

fn main() {
    // First: the number of cores is asked once in a process, and children inherit the answer.
    cores_are_those_of_the_process();
    a_forked_child_computes();
    println!("process: 2 passed");
}
