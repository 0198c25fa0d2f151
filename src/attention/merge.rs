//! Results over disjoint sets of keys.

use super::equal;
use crate::attend::merge;
use crate::error::names::number;
use crate::error::{Error, Refusal};

/// Merges two results of attention of the same queries over disjoint sets of keys: `o`
/// `[rows][dim]` and `lse` `[rows]` become what attention over all these keys gives, within
/// rounding. For prefixes that sequences share, and for keys that come in chunks or from several
/// machines.
///
/// With w = exp(lse) and w2 = exp(lse2): o = (w · o + w2 · o2) / (w + w2), lse = log(w + w2). A
/// result over no keys (o = 0, lse = -∞) changes no bit of the other one.
///
/// ```
/// // One row of two elements: as much weight on either side.
/// let (mut o, mut lse) = ([1.0, 4.0], [0.0]);
/// flash_attention::merge(&mut o, &mut lse, &[3.0, 0.0], &[0.0])?;
/// assert_eq!((o, lse), ([2.0, 2.0], [2.0f32.ln()]));
/// # Ok::<(), flash_attention::Refusal>(())
/// ```
///
/// # Errors
/// [`Error::Shape`]: the slices disagree about rows, or elements of a row. [`Error::ZeroExtent`]:
/// rows without elements. Then nothing has been written.
pub fn merge(o: &mut [f32], lse: &mut [f32], o2: &[f32], lse2: &[f32]) -> Result<(), Refusal> {
    equal("o2", o2.len(), "not as long as o", o.len())?;
    equal("lse2", lse2.len(), "not as long as lse", lse.len())?;
    if lse.is_empty() {
        return equal("o", o.len(), "has elements, but lse no rows, so", 0);
    }
    if !o.len().is_multiple_of(lse.len()) {
        let fact = Refusal::of("o", number(o.len()));
        return Err(fact.against(
            Error::Shape,
            "not as many elements for each row of lse",
            number(lse.len()),
        ));
    }
    if o.is_empty() {
        return Err(Refusal::of("o", 0).but(Error::ZeroExtent, "no elements, but lse has rows"));
    }
    let dim = o.len() / lse.len();
    merge::merge(o, lse, o2, lse2, dim);
    Ok(())
}
