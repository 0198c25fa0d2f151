//! Joining the results of attention over disjoint sets of keys.

/// Merges `(o2, lse2)` into `(o, lse)`: afterwards they are what attention over the union of both
/// sets of keys gives. `o` and `o2` are `[rows][dim]`, `lse` and `lse2` `[rows]`. Merging with an
/// empty state (LSE -inf) changes no bit of the other one, in either order.
///
/// With w_i = exp(lse_i - max): o = Σ w_i o_i / Σ w_i, lse = max + log Σ w_i.
///
/// # Panics
/// If the slices do not have these lengths.
pub fn merge(o: &mut [f32], lse: &mut [f32], o2: &[f32], lse2: &[f32], dim: usize) {
    assert!(o.len() == lse.len() * dim && o2.len() == o.len() && lse2.len() == lse.len());
    for (row, (lse, &lse2)) in lse.iter_mut().zip(lse2).enumerate() {
        let (o, o2) = (&mut o[row * dim..][..dim], &o2[row * dim..][..dim]);
        if lse2 == f32::NEG_INFINITY {
            continue;
        }
        if *lse == f32::NEG_INFINITY {
            *lse = lse2;
            o.copy_from_slice(o2);
            continue;
        }
        // The share of the second state, from the difference alone: no overflow, and equal
        // infinities or NaN give NaN.
        let share = 1.0 / (1.0 + f64::from(*lse - lse2).exp());
        for (o, &o2) in o.iter_mut().zip(o2) {
            *o = (f64::from(*o) * (1.0 - share) + f64::from(o2) * share) as f32;
        }
        let (high, low) = if *lse > lse2 { (*lse, lse2) } else { (lse2, *lse) };
        *lse = (f64::from(high) + f64::from(low - high).exp().ln_1p()) as f32;
    }
}
