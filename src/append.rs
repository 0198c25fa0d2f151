//! Writing new tokens into a cache of keys and values.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::names::UNSIGNED;
use crate::error::{Error, Refusal};
use crate::kernel::Kernel;
use crate::problem::slots::{Run, Slots};
use crate::quantize::{Quantize, Round};
use crate::view::{Layout, Quant, QuantMut, View, ViewMut, overlap};

/// Scales of a cache whose elements have some.
#[derive(Debug)]
pub enum Scales<'a> {
    /// Each token has its own, which are found and written.
    Own(QuantMut<'a>),
    /// Tokens share them: they are given.
    Given(Quant<'a>),
}

impl Scales<'_> {
    /// Whether there are zero points.
    pub(crate) fn has_zeros(&self) -> bool {
        match self {
            Scales::Own(quant) => quant.zero.is_some(),
            Scales::Given(quant) => quant.zero.is_some(),
        }
    }
}

/// New rows of K or of V, and the tensor that they go into.
#[derive(Debug)]
pub struct Target<'a> {
    /// The name of the tensor, and of that of the new rows.
    pub names: [&'static str; 2],
    /// New rows, of a floating-point type.
    pub new: View<'a>,
    /// All of the cache.
    pub cache: ViewMut<'a>,
    /// If its elements have some.
    pub scales: Option<Scales<'a>>,
}

/// New tokens and the caches that they go into; consistent by construction.
#[derive(Debug)]
pub struct Append<'a> {
    slots: Slots<'a>,
    targets: [Option<Target<'a>>; 2],
}

impl<'a> Append<'a> {
    /// Checks the tensors, whose extents are those of `slots`.
    pub fn new(slots: Slots<'a>, targets: [Option<Target<'a>>; 2]) -> Result<Append<'a>, Refusal> {
        for target in targets.iter().flatten() {
            target.check()?;
        }
        let [k, v] = &targets;
        let is_one = |(a, b): (Range<usize>, Range<usize>)| a.start == b.start && overlap(&a, &b);
        // Rows of both may lie between each other, so that no more is told from their ends.
        if let (Some(k), Some(v)) = (k, v)
            && k.outputs().into_iter().zip(v.outputs()).any(is_one)
        {
            return Err(Refusal::about(
                Error::Overlap,
                v.names[0],
                "it, or its scales, begin where those of k do",
            ));
        }
        let is_hit = |range: &Range<usize>| {
            targets
                .iter()
                .flatten()
                .any(|target| target.outputs().iter().any(|output| overlap(range, output)))
        };
        for target in targets.iter().flatten() {
            if target.inputs().iter().any(is_hit) {
                let but = "it, or scales that are given, share memory with what is written";
                return Err(Refusal::about(Error::Overlap, target.names[1], but));
            }
        }
        if let Some(but) = slots.find_list(&|list| is_hit(&list)) {
            return Err(Refusal::about(Error::Overlap, "the cache", but));
        }
        Ok(Append { slots, targets })
    }

    /// Writes the new tokens.
    pub fn run(&mut self, kernel: &dyn Kernel) -> Result<(), Error> {
        // No memory bounds the number of sequences then.
        if self.targets.iter().all(Option::is_none) {
            return Ok(());
        }
        for b in 0..self.slots.sequences() {
            for run in self.slots.runs(b) {
                for target in self.targets.iter_mut().flatten() {
                    target.write(&run, kernel)?;
                }
            }
        }
        Ok(())
    }
}

// Out of line, as keys and values need the same: what is written takes longer than the calls.
impl Target<'_> {
    #[inline(never)]
    fn check(&self) -> Result<(), Refusal> {
        let (new, cache) = (self.new.layout(), self.cache.layout());
        if !new.dtype.is_float() {
            let but = "new tokens are FA_DTYPE_F32, _F16 or _BF16";
            return Err(Refusal::about(Error::Dtype, self.names[1], but));
        }
        if new.is_strided() {
            return Err(Error::Stride.into());
        }
        if (new.extent[1], new.dim) != (cache.extent[1], cache.dim) {
            return Err(Error::Shape.into());
        }
        let [cache_at, scale, zero] = self.outputs();
        if overlap(&cache_at, &scale) || overlap(&cache_at, &zero) || overlap(&scale, &zero) {
            return Err(Refusal::about(Error::Overlap, self.names[0], "shares memory with its scales"));
        }
        match &self.scales {
            None => Ok(()),
            Some(_) if !cache.dtype.takes_scales() => Err(Error::Dtype.into()),
            Some(scales) if scales.has_zeros() && !cache.dtype.takes_zeros() => {
                Err(Refusal::about(Error::Dtype, self.names[0], "this type has no zero points"))
            }
            Some(Scales::Own(quant)) if !is_of_tokens(quant.stride, quant.group, cache) => {
                let but = "tokens share its scales, which are not found but given then";
                Err(Refusal::about(Error::Shape, self.names[0], but))
            }
            Some(Scales::Own(quant)) if cache.dtype == Dtype::U8 && quant.zero.is_none() => {
                Err(Refusal::about(Error::Null, self.names[0], UNSIGNED))
            }
            Some(Scales::Own(quant)) => quant.check(cache).map_err(|error| {
                Refusal::about(error, self.names[0], "its scales have too few values, or two one place")
            }),
            Some(Scales::Given(quant)) => quant.check(cache).map_err(|error| {
                Refusal::about(error, self.names[0], "its scales are too few, or NaN or infinite")
            }),
        }
    }

    /// Addresses of what is written: the cache, scales and zeros.
    #[inline(never)]
    fn outputs(&self) -> [Range<usize>; 3] {
        let [scale, zero] = match &self.scales {
            Some(Scales::Own(quant)) => quant.addresses(),
            _ => [0..0, 0..0],
        };
        [self.cache.addresses(), scale, zero]
    }

    /// Addresses of what is read: new rows, scales and zeros.
    #[inline(never)]
    fn inputs(&self) -> [Range<usize>; 3] {
        let [scale, zero] = match &self.scales {
            Some(Scales::Given(quant)) => quant.addresses(),
            _ => [0..0, 0..0],
        };
        [self.new.addresses(), scale, zero]
    }

    #[inline(never)]
    fn write(&mut self, run: &Run, kernel: &dyn Kernel) -> Result<(), Error> {
        let Run { from, to, len } = *run;
        let Layout { dtype, extent: [_, heads, _], .. } = *self.cache.layout();
        let extent = [1, heads, len];
        let src = self.new.part([from[0], 0, from[1]], extent);
        let dst = self.cache.part([to[0], 0, to[1]], extent);
        match &mut self.scales {
            Some(Scales::Own(quant)) => {
                let [of_entry, of_head, of_token, of_group] = quant.stride;
                let at = to[0] * of_entry + to[1] * of_token;
                let part = QuantMut {
                    scale: quant.scale.rest(at),
                    zero: quant.zero.as_mut().map(|zero| zero.rest(at)),
                    stride: [0, of_head, of_token, of_group],
                    group: quant.group,
                };
                kernel.quantize(&mut Quantize::new(src, dst, None, part)?)
            }
            Some(Scales::Given(quant)) => {
                kernel.round(&Round::by_scales(src, dst, *quant, [to[0], 0, to[1]])?)
            }
            None if dtype.takes_zeros() => {
                let quant = Quant { scale: None, zero: None, stride: [0; 4], group: [1; 2] };
                kernel.round(&Round::by_scales(src, dst, quant, [0; 3])?)
            }
            None => kernel.round(&Round::new(src, dst)?),
        }
    }
}

/// Whether the scales of a token are no other token's.
pub fn is_of_tokens(stride: [usize; 4], group: [usize; 2], layout: &Layout) -> bool {
    stride[2] != 0 && group[0] == 1 && (stride[0] != 0 || layout.extent[0] <= 1)
}
