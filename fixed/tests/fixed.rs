//! Attention in integers: every bit is that of docs/fixed-point.md, on every machine; and it is as
//! close to attention of real numbers as is said there.

#[path = "../../tests/common/fixed_reference.rs"]
mod fixed_reference;

use fixed_reference::reference;
use flash_attention_fixed::{Config, Flaw, MAX_HEAD_DIM, MAX_KEYS, Plan, Scale, TILE_ROWS};

/// splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn numbers(&mut self, n: usize, kind: Kind) -> Vec<i16> {
        let all = self.bits() as i16;
        (0..n)
            .map(|_| match kind {
                Kind::Any => self.bits() as i16,
                // The mean of four, which is more like what models have.
                Kind::Round => ((0..4).map(|_| i32::from(self.bits() as i16)).sum::<i32>() / 4) as i16,
                Kind::Small => (self.bits() % 9) as i16 - 4,
                Kind::Saturated => [i16::MIN, i16::MAX][self.below(2)],
                Kind::Lowest => i16::MIN,
                Kind::Equal => all,
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Any,
    Round,
    Small,
    Saturated,
    Lowest,
    Equal,
}

const KINDS: [Kind; 6] = [Kind::Any, Kind::Round, Kind::Small, Kind::Saturated, Kind::Lowest, Kind::Equal];

/// A problem of one head.
struct Problem {
    config: Config,
    q: Vec<i16>,
    k: Vec<i16>,
    v: Vec<i16>,
}

impl Problem {
    fn run(&self) -> Vec<i16> {
        let dim = self.config.head_dim;
        let plan = Plan::new(self.config, self.q.len() / dim, self.k.len() / dim).expect("a plan");
        // What is in memory before does not matter.
        let mut out = vec![0x5a5a; self.q.len()];
        let mut narrow = vec![0x5a5a; plan.narrow_len()];
        let mut wide = vec![-1; plan.wide_len()];
        plan.run(&self.q, &self.k, &self.v, &mut out, &mut narrow, &mut wide).expect("slices of these sizes");
        out
    }

    fn reference(&self) -> Vec<i16> {
        let Config { head_dim, scale, is_causal } = self.config;
        reference(&self.q, &self.k, &self.v, head_dim, (scale.mantissa, scale.shift), is_causal)
    }

    fn random(random: &mut Random) -> Problem {
        let dims = [1usize, 2, 3, 7, 8, 16, 31, 64, 127, 128, 129, 200, 256, 300];
        let queries = [0, 1, 2, 3, 4, 5, 31, 32, 33, 36, 37, 70];
        let keys = [0, 1, 2, 5, 33, 127, 128, 129, 256, 300];
        let head_dim = dims[random.below(dims.len())];
        let [queries, keys] = [queries[random.below(queries.len())], keys[random.below(keys.len())]];
        // Down to scales that are as good as 0, and up to the largest.
        let limit = (1i64 << 18) / head_dim.next_power_of_two() as i64;
        let scale = match random.below(5) {
            0 | 1 => Scale::USUAL,
            2 => Scale {
                mantissa: random.bits() as i32 >> random.below(31),
                shift: 20 + random.below(44) as u32,
            },
            3 => Scale { mantissa: random.below(3) as i32 - 1, shift: random.below(4) as u32 },
            _ => Scale { mantissa: (limit << 3) as i32 * [1, -1][random.below(2)], shift: 3 },
        };
        // A wild one may be beyond the limit.
        let is_legal = i128::from(scale.mantissa.unsigned_abs()) <= i128::from(limit) << scale.shift;
        let scale = if is_legal { scale } else { Scale::USUAL };
        let config = Config { head_dim, scale, is_causal: random.below(2) == 1 };
        let [q, k, v] = [queries, keys, keys].map(|n| {
            let kind = KINDS[random.below(KINDS.len())];
            random.numbers(n * head_dim, kind)
        });
        Problem { config, q, k, v }
    }
}

#[test]
fn every_bit_is_the_definition_s() {
    let mut random = Random(15);
    // Emulators are slow.
    let cases = if cfg!(target_arch = "x86_64") { 300 } else { 60 };
    for case in 0..cases {
        let problem = Problem::random(&mut random);
        assert_eq!(problem.run(), problem.reference(), "case {case}: {:?}", problem.config);
    }
}

/// Attention of the stored numbers in f64.
fn exact(problem: &Problem) -> Vec<f64> {
    let Config { head_dim: dim, scale, is_causal } = problem.config;
    let scale = match scale.mantissa {
        0 => 1.0 / (dim as f64).sqrt(),
        m => f64::from(m) / (scale.shift as f64).exp2(),
    };
    let (queries, keys) = (problem.q.len() / dim, problem.k.len() / dim);
    let mut out = Vec::new();
    for i in 0..queries {
        let seen = if is_causal { (i + 1 + keys).saturating_sub(queries) } else { keys };
        let q = &problem.q[i * dim..][..dim];
        let scores: Vec<f64> = problem
            .k
            .chunks_exact(dim)
            .take(seen)
            .map(|k| {
                let sum: i64 = q.iter().zip(k).map(|(&q, &k)| i64::from(q) * i64::from(k)).sum();
                sum as f64 / (1u64 << 30) as f64 * scale
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..dim {
            let sum: f64 =
                weights.iter().zip(problem.v[d..].iter().step_by(dim)).map(|(w, &v)| w * f64::from(v)).sum();
            out.push(if seen == 0 { 0.0 } else { sum / total });
        }
    }
    out
}

/// The largest error relative to the largest |v|, half a step of the output aside.
fn error(problem: &Problem) -> f64 {
    let largest = problem.v.iter().map(|v| f64::from(v.unsigned_abs())).fold(0.0, f64::max);
    let errors =
        problem.run().into_iter().zip(exact(problem)).map(|(got, want)| (f64::from(got) - want).abs());
    (errors.fold(0.0, f64::max) - 0.5).max(0.0) / largest
}

const KEYS: usize = if cfg!(target_arch = "x86_64") { 8192 } else { 1024 };

/// 2e-3 is what is promised; what the definition costs is far less.
#[test]
fn it_is_close_to_attention_of_real_numbers() {
    let mut random = Random(2);
    for (head_dim, scale) in [
        (64, Scale::USUAL),
        (128, Scale::USUAL),
        (64, Scale { mantissa: 8, shift: 0 }),
        (64, Scale { mantissa: -100, shift: 0 }),
        (32, Scale { mantissa: 3, shift: 2 }),
    ] {
        for kinds in [
            [Kind::Any; 3],
            [Kind::Round; 3],
            [Kind::Saturated; 3],
            [Kind::Saturated, Kind::Small, Kind::Any],
        ] {
            let [q, k, v] = [(5, kinds[0]), (KEYS, kinds[1]), (KEYS, kinds[2])]
                .map(|(rows, kind)| random.numbers(rows * head_dim, kind));
            let problem = Problem { config: Config { head_dim, scale, is_causal: false }, q, k, v };
            let error = error(&problem);
            assert!(error < 1e-4, "{head_dim}, {scale:?}, {kinds:?}: {error:e}");
        }
    }
}

/// Rows that are hard: scores all alike; one key that has all the weight; one that has as much as
/// all others together, whose weights are all near the last bit; and the largest scale.
#[test]
fn it_is_close_on_adversarial_rows() {
    const DIM: usize = 64;
    let mut random = Random(3);
    let v = random.numbers(KEYS * DIM, Kind::Any);
    let usual = Config { head_dim: DIM, scale: Scale::USUAL, is_causal: false };
    let alike = Problem {
        config: usual,
        q: random.numbers(DIM, Kind::Any),
        k: random.numbers(DIM, Kind::Any).repeat(KEYS),
        v: v.clone(),
    };
    assert!(error(&alike) < 1e-6, "{:e}", error(&alike));

    // Of the same keys: the score of all but one is 0, that of one is ln 2^n.
    let spike = |n: f64| {
        let mut k = vec![0i16; KEYS * DIM];
        let at = KEYS / 3 * DIM;
        // A query of ones, a key of what it takes, with a scale of 1.
        k[at..at + DIM].fill((n * std::f64::consts::LN_2 / 64.0 * 32768.0).round() as i16);
        let mut v = v.clone();
        // The others all alike, so that their errors add up.
        v.fill(i16::MAX);
        v[at..at + DIM].fill(i16::MIN);
        Problem {
            config: Config { scale: Scale { mantissa: 1, shift: 0 }, ..usual },
            q: vec![i16::MAX; DIM],
            k,
            v,
        }
    };
    for n in [1.0, 8.0, 13.0, 16.0, 20.0, 24.0, 26.5, 27.5, 28.5, 30.0, 40.0] {
        let error = error(&spike(n));
        assert!(error < 2e-4, "2^{n}: {error:e}");
    }

    // The largest scale there is: scores of neighbours differ by the bits that are lost.
    let limit = Scale { mantissa: (1 << 18) / DIM as i32, shift: 0 };
    let near = Problem {
        config: Config { scale: limit, ..usual },
        q: vec![1; DIM],
        k: random.numbers(KEYS * DIM, Kind::Any),
        v,
    };
    let error = error(&near);
    assert!(error < 1e-3, "{error:e}");
}

/// A problem whose output is the same bits wherever this test passes.
#[test]
fn the_bits_are_the_same_on_every_machine() {
    let mut random = Random(77);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for _ in 0..20 {
        for x in Problem::random(&mut random).run() {
            for byte in x.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    assert_eq!(hash, 0x2d4d_5fd8_37c1_1248, "{hash:#018x}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = Config { head_dim: 64, scale: Scale::USUAL, is_causal: false };
    let plan = |config, keys| Plan::new(config, 1, keys).map(|_| ());
    assert_eq!(plan(config, MAX_KEYS), Ok(()));
    assert_eq!(plan(config, MAX_KEYS + 1), Err(Flaw::Keys));
    for (head_dim, want) in
        [(0, Err(Flaw::HeadDim)), (1, Ok(())), (MAX_HEAD_DIM, Ok(())), (MAX_HEAD_DIM + 1, Err(Flaw::HeadDim))]
    {
        assert_eq!(plan(Config { head_dim, ..config }, 1), want, "{head_dim}");
    }
    for (head_dim, mantissa, shift, want) in [
        (64, 4096, 0, Ok(())),
        (64, -4096, 0, Ok(())),
        (64, 4097, 0, Err(Flaw::Scale)),
        (64, -4097, 0, Err(Flaw::Scale)),
        (65, 4096, 0, Err(Flaw::Scale)),
        (65, 2048, 0, Ok(())),
        (1, 1 << 18, 0, Ok(())),
        (1, (1 << 18) + 1, 0, Err(Flaw::Scale)),
        (64, 4097, 1, Ok(())),
        (MAX_HEAD_DIM, 4, 0, Ok(())),
        (MAX_HEAD_DIM, 5, 0, Err(Flaw::Scale)),
        (MAX_HEAD_DIM, i32::MIN, 29, Ok(())),
        (MAX_HEAD_DIM, i32::MIN, 28, Err(Flaw::Scale)),
        (MAX_HEAD_DIM, i32::MIN, 45, Ok(())),
        (MAX_HEAD_DIM, i32::MIN, 46, Ok(())),
        (64, 1, 63, Ok(())),
        (64, 1, 64, Err(Flaw::Scale)),
        (64, 0, 63, Ok(())),
        (64, 0, 64, Err(Flaw::Scale)),
    ] {
        let scale = Scale { mantissa, shift };
        assert_eq!(plan(Config { head_dim, scale, ..config }, 1), want, "{head_dim} {scale:?}");
    }

    // Slices that are too short or too long, of scratch memory only too short; nothing is written.
    let (rows, keys, dim) = (TILE_ROWS + 1, 3, 2);
    let plan = Plan::new(Config { head_dim: dim, ..config }, rows, keys).expect("a plan");
    let lens = [rows * dim, keys * dim, keys * dim, rows * dim, plan.narrow_len(), plan.wide_len()];
    let run = |lens: [usize; 6]| {
        let [q, k, v] = [0, 1, 2].map(|i| vec![1; lens[i]]);
        let (mut out, mut narrow, mut wide) = (vec![7; lens[3]], vec![0; lens[4]], vec![0; lens[5]]);
        let result = plan.run(&q, &k, &v, &mut out, &mut narrow, &mut wide);
        assert!(result.is_ok() || out.iter().all(|&x| x == 7), "refused, but written: {lens:?}");
        result
    };
    assert_eq!(run(lens), Ok(()));
    for i in 0..6 {
        let mut other = lens;
        other[i] -= 1;
        assert_eq!(run(other), Err(Flaw::Slice), "{i}");
        other[i] += 2;
        assert_eq!(run(other), if i < 4 { Err(Flaw::Slice) } else { Ok(()) }, "{i}");
    }
}

/// Rows of other tiles, and what other rows are, change nothing: each tile by itself.
#[test]
fn tiles_are_computed_in_any_order() {
    let mut random = Random(9);
    let (rows, keys, dim) = (3 * TILE_ROWS + 5, 140, 24);
    let config = Config { head_dim: dim, scale: Scale::USUAL, is_causal: true };
    let [q, k, v] = [rows, keys, keys].map(|n| random.numbers(n * dim, Kind::Any));
    let problem = Problem { config, q, k, v };
    let whole = problem.run();
    let plan = Plan::new(config, rows, keys).expect("a plan");
    assert_eq!(plan.tiles(), 4);
    let (mut narrow, mut wide) = (vec![-3; plan.narrow_len()], vec![5; plan.wide_len()]);
    for tile in [3, 0, 2, 1] {
        let rows = plan.rows(tile);
        let q = &problem.q[rows.start * dim..rows.end * dim];
        let mut out = vec![0; q.len()];
        plan.tile(tile, q, &problem.k, &problem.v, &mut out, &mut narrow, &mut wide).expect("a tile");
        assert_eq!(out, whole[rows.start * dim..rows.end * dim], "{tile}");
    }
}
