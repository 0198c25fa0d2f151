//! docs/fixed-point.md in its own order, for one head: nothing is shared with the library.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

/// 2^-x for x / 2^16, times 2^27.
fn power(x: i128) -> i128 {
    let (n, f) = (x / 65536, x % 65536);
    if n >= 30 {
        return 0;
    }
    // 2^(30 - i/32), rounded.
    let t = (30.0 - (f / 2048) as f64 / 32.0).exp2().round() as i128;
    let y = f % 2048 * 11629080 / 1024;
    let p = (1 << 30) - y + y * y / (1 << 31);
    (t * p + (1 << (32 + n))) / (1 << (33 + n))
}

/// The quotient, rounded to nearest even.
fn quotient(a: i128, b: i128) -> i128 {
    let (q, r) = (a.div_euclid(b), a.rem_euclid(b));
    if 2 * r > b || (2 * r == b && q % 2 != 0) { q + 1 } else { q }
}

/// The largest integer whose square is not more than n.
fn root(n: i128) -> i128 {
    (0..31).rev().fold(0, |m, bit| if (m + (1 << bit)) * (m + (1 << bit)) <= n { m + (1 << bit) } else { m })
}

/// The output for `q`, `k` and `v`, whose rows have `dim` elements.
pub fn reference(
    q: &[i16],
    k: &[i16],
    v: &[i16],
    dim: usize,
    scale: (i32, u32),
    is_causal: bool,
) -> Vec<i16> {
    let (m, s) = match scale {
        (0, _) => (root((1 << 60) / dim as i128), 30),
        (m, s) => (i128::from(m), s),
    };
    let a = (0..).find(|&a| dim <= 1 << a).unwrap();
    let c = m.abs() * 1549082005;
    let b = (0..).find(|&b| c >> b < 1 << 32).unwrap();
    let (c, e) = (c >> b, 44 + s - a - b);

    let (queries, keys) = (q.len() / dim, k.len() / dim);
    let mut out = Vec::new();
    for i in 0..queries {
        let seen = if is_causal { (i + 1 + keys).saturating_sub(queries) } else { keys };
        let score = |j: usize| {
            let product = |d: usize| i128::from(q[i * dim + d]) * i128::from(k[j * dim + d]);
            ((0..dim).map(product).sum::<i128>() * m.signum()).div_euclid(1 << a)
        };
        let scores: Vec<i128> = (0..seen).map(score).collect();
        let largest = scores.iter().max().copied().unwrap_or(0);
        let weights: Vec<i128> = scores.iter().map(|t| power(((largest - t) * c) >> e)).collect();
        for d in 0..dim {
            let sum = (0..seen).map(|j| weights[j] * i128::from(v[j * dim + d])).sum();
            let of_weights: i128 = weights.iter().sum();
            out.push(if seen == 0 { 0 } else { quotient(sum, of_weights) as i16 });
        }
    }
    out
}
