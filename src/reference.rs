//! Attention as the textbook writes it, in f64, one row at a time: the oracle of the tests, and
//! the page to read first. It shares no code with the kernels, only the problem's description.

use crate::dtype::Dtype;
use crate::problem::{Position, Problem, Semantics, Sequence, Spans};

/// `[batch][head][row][dim_v]` outputs and `[batch][head][row]` log-sum-exps, each sequence with
/// its own number of rows.
#[derive(Debug)]
pub struct Answer {
    /// Output.
    pub o: Vec<f64>,
    /// Natural logarithm of the sum of exponentials.
    pub lse: Vec<f64>,
}

/// Computes `problem` in f64 (its outputs are not touched).
pub fn attention(problem: &Problem) -> Answer {
    let [batch, heads, _] = problem.shape().queries;
    let mut answer = Answer { o: Vec::new(), lse: Vec::new() };
    for sequence in (0..batch).map(|b| problem.sequence(b)) {
        for (head, i) in (0..heads).flat_map(|head| (0..sequence.len_q).map(move |i| (head, i))) {
            let (o, lse) = row(problem, &sequence, head, i);
            answer.o.extend(o);
            answer.lse.push(lse);
        }
    }
    answer
}

/// Output and log-sum-exp of query row `i` of a head.
pub fn row(problem: &Problem, sequence: &Sequence, head: usize, i: usize) -> (Vec<f64>, f64) {
    let v = problem.v();
    let kv = head / (problem.shape().queries[1] / v.layout().extent[1]);
    let (weights, lse) = weights(problem, sequence, head, i);
    let mut o = vec![0.0; problem.shape().dim_v];
    for (j, weight) in weights {
        let [page, token] = problem.key_at(sequence, kv, j);
        for (o, v) in o.iter_mut().zip(v.get_row(page, kv, token)) {
            *o += weight * v;
        }
    }
    (o, lse)
}

/// The keys that query row `i` of a head sees, each with its probability; and the log-sum-exp.
pub fn weights(problem: &Problem, sequence: &Sequence, head: usize, i: usize) -> (Vec<(usize, f64)>, f64) {
    let (q, k) = (problem.q(), problem.k());
    let scale = f64::from(problem.semantics().softmax_scale);
    // Query heads share kv heads in groups of neighbours.
    let kv = head / (problem.shape().queries[1] / k.layout().extent[1]);
    let [entry, row] = problem.query_at(sequence, i);
    let keys: Vec<usize> = (0..sequence.len_kv).filter(|&j| sees(problem, sequence, head, i, j)).collect();
    let query = q.get_row(entry, head, row);
    let logits: Vec<f64> = keys
        .iter()
        .map(|&j| {
            let [page, token] = problem.key_at(sequence, kv, j);
            let dot: f64 = query.iter().zip(k.get_row(page, kv, token)).map(|(q, k)| q * k).sum();
            let score = scale * dot;
            capped(problem, score) + bias(problem, sequence, head, i, j)
        })
        .collect();
    let sink = f64::from(problem.sink(head));
    let max = logits.iter().copied().fold(sink, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    // Without a sink, and without a key, this would be -inf - -inf.
    let sunk = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
    let sum = powers.iter().sum::<f64>() + sunk;
    let lse = if keys.is_empty() { sink } else { max + sum.ln() };
    (keys.into_iter().zip(powers.into_iter().map(|power| power / sum)).collect(), lse)
}

/// How far key j lies behind query row i, in positions.
fn distance(problem: &Problem, sequence: &Sequence, i: usize, j: usize) -> i128 {
    let first = match (problem.batch().positions, problem.semantics().q_pos) {
        (Some(positions), _) => i128::from(positions.get(sequence.batch)),
        (None, Position::At(position)) => i128::from(position),
        (None, Position::End) => sequence.len_kv as i128 - sequence.len_q as i128,
    };
    first + i as i128 - j as i128
}

fn capped(problem: &Problem, score: f64) -> f64 {
    match f64::from(problem.logits().softcap) {
        0.0 => score,
        cap => cap * (score / cap).tanh(),
    }
}

/// What is added to a score: a mask of numbers, and the slope times the distance, or times the
/// mask.
fn bias(problem: &Problem, sequence: &Sequence, head: usize, i: usize, j: usize) -> f64 {
    let numbers = problem.logits().mask.filter(|mask| mask.layout().dtype.is_float());
    let mask = numbers.map_or(0.0, |mask| mask.get(sequence.batch, head, i, j));
    let times_mask = problem.logits().slopes.is_some_and(|slopes| slopes.times_mask);
    match problem.slope(sequence, head).map(f64::from) {
        None => mask,
        Some(slope) if times_mask => slope * mask,
        Some(slope) => mask - slope * distance(problem, sequence, i, j).abs() as f64,
    }
}

/// Whether query row i sees key j, without clamping or cleverness.
fn sees(problem: &Problem, sequence: &Sequence, head: usize, i: usize, j: usize) -> bool {
    let Semantics { window, prefix_keys, .. } = *problem.semantics();
    let first = problem.batch().kv_starts.map_or(0, |starts| starts.get(sequence.batch) as usize);
    let distance = distance(problem, sequence, i, j);
    let hidden = problem.logits().mask.is_some_and(|mask| {
        let x = mask.get(sequence.batch, head, i, j);
        if mask.layout().dtype == Dtype::Bool8 { x == 0.0 } else { x == f64::NEG_INFINITY }
    });
    let is_column = problem.columns(sequence, head).is_some_and(|columns| columns.has_all(j..j + 1));
    let is_near = is_column
        || window.left.is_none_or(|left| distance <= i128::from(left))
        || j < first.saturating_add(prefix_keys);
    let is_early = window.right.is_none_or(|right| -distance <= i128::from(right));
    ((is_near && is_early) || in_one_span(problem, sequence, distance + j as i128, j as i128))
        && j >= first
        && (is_column || problem.logits().cells.is_none_or(|cells| cells.sees(sequence.batch, head, i, j)))
        && !hidden
}

/// Whether a query at `position` and key j lie in the same span.
fn in_one_span(problem: &Problem, sequence: &Sequence, position: i128, j: i128) -> bool {
    problem.batch().spans.is_some_and(|Spans { bounds, starts }| {
        let of_sequence = starts.get(sequence.batch)..starts.get(sequence.batch + 1);
        of_sequence.into_iter().any(|span| {
            let [begin, end] = [0, 1].map(|i| i128::from(bounds.get(2 * span as usize + i)));
            (begin..end).contains(&position) && (begin..end).contains(&j)
        })
    })
}
