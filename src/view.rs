//! Tensors in the caller's memory: a pointer whose extents and strides were proved once.
//!
//! A [`View`] can be made from a slice (safe) or from a pointer (`unsafe`: the caller vouches for
//! the memory). From then on every row address is in range by the checks made here, and no
//! alignment is assumed.

#[forbid(unsafe_code)]
pub mod quant;

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use crate::dtype::{Dtype, Stored, with_stored};
use crate::error::Error;
pub(crate) use quant::Dequant;
pub use quant::{Quant, QuantMut, ScaleGranularity};

/// `[batch][head][token][dim]`; everything has a stride in bytes. A stride of 0 repeats the same
/// data (inputs only), but for the elements of a row, which are contiguous then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Storage type.
    pub dtype: Dtype,
    /// Batches, heads, tokens.
    pub extent: [usize; 3],
    /// Elements of a row.
    pub dim: usize,
    /// Bytes between batches, heads, tokens.
    pub stride: [usize; 3],
    /// Bytes between elements of a row, if they do not lie behind one another (K and V only); 0 if
    /// they do.
    pub stride_dim: usize,
}

impl Layout {
    /// A dense `[heads][tokens][dim]` array that fits an address space.
    pub fn dense(dtype: Dtype, heads: usize, tokens: usize, dim: usize) -> Result<Layout, Error> {
        let row = dtype.row_bytes(dim).ok_or(Error::Overflow)?;
        let head = row.checked_mul(tokens).ok_or(Error::Overflow)?;
        let batch = head.checked_mul(heads).ok_or(Error::Overflow)?;
        let (extent, stride) = ([1, heads, tokens], [batch, head, row]);
        let layout = Layout { dtype, extent, dim, stride, stride_dim: 0 };
        layout.span().map(|_| layout)
    }

    /// Whether the elements of a row do not lie behind one another: such rows are gathered before
    /// they are read.
    #[inline(always)]
    pub fn is_strided(&self) -> bool {
        self.stride_dim != 0
    }

    /// Bytes of the elements of a row.
    #[inline(always)]
    pub fn row_bytes(&self) -> usize {
        // Views have been checked.
        self.dtype.row_bytes(self.dim).unwrap_or(usize::MAX)
    }

    /// Bytes from the first element to behind the last one; 0 without elements.
    pub(crate) fn span(&self) -> Result<usize, Error> {
        if !self.dim.is_multiple_of(self.dtype.block()) {
            return Err(Error::Shape);
        }
        let mut end = self.dtype.row_bytes(self.dim).ok_or(Error::Overflow)?;
        if self.is_strided() {
            // The elements of a block have one scale, and stay together.
            if self.dtype.block() != 1 {
                return Err(Error::Stride);
            }
            let last = self.dim.saturating_sub(1).checked_mul(self.stride_dim).ok_or(Error::Overflow)?;
            end = end.min(self.dtype.block_bytes()).checked_add(last).ok_or(Error::Overflow)?;
        }
        for (extent, stride) in self.extent.into_iter().zip(self.stride) {
            if extent == 0 {
                return Ok(0);
            }
            let last = (extent - 1).checked_mul(stride).ok_or(Error::Overflow)?;
            end = end.checked_add(last).ok_or(Error::Overflow)?;
        }
        // Pointer offsets are signed: no object is larger than half the address space.
        if isize::try_from(end).is_err() { Err(Error::Overflow) } else { Ok(end) }
    }

    /// Offset of row (batch, head, token); in range by `span`.
    #[inline(always)]
    fn offset(&self, at: [usize; 3]) -> usize {
        debug_assert!((0..3).all(|i| at[i] < self.extent[i]), "row {at:?} of {:?}", self.extent);
        at[0] * self.stride[0] + at[1] * self.stride[1] + at[2] * self.stride[2]
    }

    /// Where the rows from `first` on begin, and the layout of as many as `extent` says.
    ///
    /// # Panics
    /// If they are not all rows of this layout.
    fn part(&self, first: [usize; 3], extent: [usize; 3]) -> (usize, Layout) {
        let holds =
            |axis: usize| first[axis] <= self.extent[axis] && extent[axis] <= self.extent[axis] - first[axis];
        assert!((0..3).all(holds), "rows {first:?}, {extent:?} of {:?}", self.extent);
        let at = if extent.contains(&0) { 0 } else { self.offset(first) };
        (at, Layout { extent, ..*self })
    }

    /// Whether no two rows share a byte: what an output needs. Sufficient, and exact for the
    /// nested layouts that occur: each axis steps over everything that the smaller ones span.
    fn is_injective(&self) -> bool {
        if self.is_strided() {
            // No output is written so.
            return false;
        }
        if self.dim == 0 || self.extent.contains(&0) {
            return true;
        }
        is_nested([0, 1, 2].map(|i| (self.stride[i], self.extent[i])), self.row_bytes())
    }
}

/// Whether each of these axes (stride and extent) steps over all that the smaller ones span, the
/// smallest over `inner`; the whole span is known to fit an address space.
#[inline(never)]
pub(crate) fn is_nested<const N: usize>(mut axes: [(usize, usize); N], mut inner: usize) -> bool {
    axes.sort_unstable();
    for (stride, extent) in axes {
        if extent > 1 {
            if stride < inner {
                return false;
            }
            inner += (extent - 1) * stride;
        }
    }
    true
}

/// Whether two ranges of addresses share one.
pub fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end && !a.is_empty() && !b.is_empty()
}

/// An input tensor.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    base: *const u8,
    /// From the first to the last one used.
    bytes: usize,
    layout: Layout,
    quant: Option<Dequant<'a>>,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: I2: a view only reads memory that `new` was told nobody writes to while it lives.
unsafe impl Send for View<'_> {}
// SAFETY: I2: reading through a shared view changes nothing.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// A view of memory that the caller vouches for.
    ///
    /// # Safety
    /// Every byte of every row of `layout` from `data` on is readable, in one allocation, and not
    /// written to while the view lives. `data` may be anything if there is no element.
    pub unsafe fn new(data: *const u8, layout: Layout) -> Result<View<'a>, Error> {
        let bytes = layout.span()?;
        if bytes > 0 && data.is_null() {
            return Err(Error::Null);
        }
        let quant = Dequant::of_plain(layout.dtype);
        Ok(View { base: data, bytes, layout, quant, memory: PhantomData })
    }

    /// A view of part of a slice.
    pub fn of<T: Holds>(data: &'a [T], layout: Layout) -> Result<View<'a>, Error> {
        if !T::holds(layout.dtype) {
            return Err(Error::Dtype);
        }
        if layout.span()? > size_of_val(data) {
            return Err(Error::Shape);
        }
        // SAFETY: I2: the slice is borrowed for 'a and, as just checked, at least as long as the
        // span.
        unsafe { View::new(data.as_ptr().cast(), layout) }
    }

    /// This view with scales (and zeros) for its elements, of which there must be as many as it
    /// needs.
    pub fn quantised(self, quant: Quant<'a>) -> Result<View<'a>, Error> {
        let dtype = self.layout.dtype;
        if !dtype.takes_scales() || (quant.zero.is_some() && !dtype.takes_zeros()) {
            return Err(Error::Dtype);
        }
        quant.check(&self.layout)?;
        Ok(View { quant: Some(Dequant::new(quant, dtype)), ..self })
    }

    /// This view without its scales and zeros: it yields the stored elements as they are read
    /// ([`Dtype::read_as`]).
    #[inline(always)]
    pub fn raw(self) -> View<'a> {
        View { quant: None, ..self }
    }

    /// Scales and zeros of the stored elements; `None` if these are the numbers themselves.
    #[inline(always)]
    pub(crate) fn quant(&self) -> Option<&Dequant<'a>> {
        self.quant.as_ref()
    }

    /// Extents, strides and type.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// This view with its scales and zeros, but of rows that have been gathered: those of one head
    /// from row `first` on, the elements of each behind one another, as what they are
    /// [`Dtype::read_as`].
    ///
    /// # Safety
    /// Of the rows `stride` bytes apart at `data`, only those are read that lie there, and not
    /// after they have changed.
    pub(crate) unsafe fn gathered(&self, first: usize, data: *const u8, stride: usize) -> View<'a> {
        let layout = Layout {
            dtype: self.layout.dtype.read_as(),
            stride: [0, 0, stride],
            stride_dim: 0,
            ..self.layout
        };
        View { base: data.wrapping_sub(first * stride), layout, ..*self }
    }

    /// The rows from `first` on, as many as `extent` says, without scales.
    ///
    /// # Panics
    /// If they are not all rows of this view.
    pub(crate) fn part(&self, first: [usize; 3], extent: [usize; 3]) -> View<'a> {
        let (at, layout) = self.layout.part(first, extent);
        let bytes = layout.span().unwrap_or(0);
        View { base: self.base.wrapping_add(at), bytes, layout, quant: None, memory: PhantomData }
    }

    /// The first byte of a row. All rows are readable; see [`View::new`].
    #[inline(always)]
    pub fn row(&self, batch: usize, head: usize, token: usize) -> *const u8 {
        self.base.wrapping_add(self.layout.offset([batch, head, token]))
    }

    /// Where the rows of a head begin, of the first batch entry: row (b, h, t) lies `b * stride[0]
    /// + t * stride[2]` bytes behind.
    #[inline(always)]
    pub(crate) fn head(&self, head: usize) -> *const u8 {
        self.base.wrapping_add(head * self.layout.stride[1])
    }

    /// One element as f64, quantisation undone, with every index checked: for what is rare, and for
    /// tests.
    pub fn get(&self, batch: usize, head: usize, token: usize, d: usize) -> f64 {
        let at = [batch, head, token];
        assert!(d < self.layout.dim);
        self.element(at, self.checked_row(at), d)
    }

    /// One row as f64, quantisation undone, with every index checked: for the reference.
    pub fn get_row(&self, batch: usize, head: usize, token: usize) -> Vec<f64> {
        let at = [batch, head, token];
        let row = self.checked_row(at);
        (0..self.layout.dim).map(|d| self.element(at, row, d)).collect()
    }

    fn checked_row(&self, at: [usize; 3]) -> *const u8 {
        assert!((0..3).all(|i| at[i] < self.layout.extent[i]));
        self.base.wrapping_add(self.layout.offset(at))
    }

    /// Element `d` of a row. `d` is below `dim`, and the row comes from [`View::checked_row`].
    #[inline(always)]
    fn element(&self, at: [usize; 3], row: *const u8, d: usize) -> f64 {
        let (row, place) = if self.layout.is_strided() {
            (row.wrapping_add(d * self.layout.stride_dim), 0)
        } else {
            (row, d)
        };
        // SAFETY: I2: row and element are in range, so `new` has vouched for the element.
        let stored = f64::from(unsafe { with_stored!(self.layout.dtype, T => T::element(row, place)) });
        match &self.quant {
            None => stored,
            Some(quant) => {
                let [scale, zero] = quant.of(quant.at(at), d).map(f64::from);
                (stored - zero) * scale
            }
        }
    }

    /// The addresses between the first and the last byte used; empty without elements.
    pub fn addresses(&self) -> Range<usize> {
        addresses(self.base, self.bytes)
    }
}

/// An output tensor: no two of its rows share a byte.
///
/// Not `Clone`: whoever holds it is the only writer. Rows are written through `&self` because
/// [`crate::work::query_tiles::TileQueue`] hands each of them to one thread only.
#[derive(Debug)]
pub struct ViewMut<'a> {
    base: *mut u8,
    /// From the first to the last one used.
    bytes: usize,
    layout: Layout,
    quant: Option<Quant<'a>>,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: I2, I3: the memory is exclusively borrowed, and each row is written by the one thread
// that has its query tile or KV split.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: I3: a shared reference gives addresses only, and only to who has the row's work.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A view of memory that the caller vouches for.
    ///
    /// # Safety
    /// Every byte of every row of `layout` from `data` on is writable, in one allocation, and
    /// used by nobody else while the view lives. `data` may be anything if there is no element.
    pub unsafe fn new(data: *mut u8, layout: Layout) -> Result<ViewMut<'a>, Error> {
        let bytes = layout.span()?;
        if bytes > 0 && data.is_null() {
            return Err(Error::Null);
        }
        if !layout.is_injective() {
            return Err(Error::Stride);
        }
        Ok(ViewMut { base: data, bytes, layout, quant: None, memory: PhantomData })
    }

    /// A view of part of a slice.
    pub fn of<T: Holds + Plain>(data: &'a mut [T], layout: Layout) -> Result<ViewMut<'a>, Error> {
        if !T::holds(layout.dtype) {
            return Err(Error::Dtype);
        }
        if layout.span()? > size_of_val(data) {
            return Err(Error::Shape);
        }
        // SAFETY: I2: the slice is exclusively borrowed for 'a and, as just checked, at least as
        // long as the span.
        unsafe { ViewMut::new(data.as_mut_ptr().cast(), layout) }
    }

    /// This view with scales that the numbers of its rows are divided by, of which there must be as
    /// many as it needs.
    pub fn quantised(self, quant: Quant<'a>) -> Result<ViewMut<'a>, Error> {
        if !self.layout.dtype.takes_scales() || quant.zero.is_some() {
            return Err(Error::Dtype);
        }
        quant.check(&self.layout)?;
        Ok(ViewMut { quant: Some(quant), ..self })
    }

    /// The scales of its elements; `None` if they stand for themselves.
    #[inline(always)]
    pub(crate) fn quant(&self) -> Option<&Quant<'a>> {
        self.quant.as_ref()
    }

    /// Extents, strides and type.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The rows from `first` on, as many as `extent` says, without scales.
    ///
    /// # Panics
    /// If they are not all rows of this view.
    pub(crate) fn part(&mut self, first: [usize; 3], extent: [usize; 3]) -> ViewMut<'_> {
        let (at, layout) = self.layout.part(first, extent);
        let bytes = layout.span().unwrap_or(0);
        ViewMut { base: self.base.wrapping_add(at), bytes, layout, quant: None, memory: PhantomData }
    }

    /// The first byte of a row. It is written by the thread that has the row's work.
    #[inline(always)]
    pub(crate) fn row(&self, batch: usize, head: usize, token: usize) -> *mut u8 {
        self.base.wrapping_add(self.layout.offset([batch, head, token]))
    }

    /// The addresses between the first and the last byte used; empty without elements.
    pub fn addresses(&self) -> Range<usize> {
        addresses(self.base, self.bytes)
    }
}

/// A list of plain values in the caller's memory.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a, T> {
    /// Not null, so that an optional array is no larger; it need not be aligned.
    base: NonNull<T>,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

// SAFETY: I2: an array only reads memory that `new` was told nobody writes to while it lives.
unsafe impl<T: Plain> Send for Array<'_, T> {}
// SAFETY: I2: reading through a shared array changes nothing.
unsafe impl<T: Plain> Sync for Array<'_, T> {}

impl<'a, T: Plain> Array<'a, T> {
    /// No values.
    pub(crate) const EMPTY: Array<'a, T> = Array { base: NonNull::dangling(), len: 0, memory: PhantomData };

    /// `len` values that the caller vouches for.
    ///
    /// # Safety
    /// `len` values are readable at `data`, in one allocation, and not written to while the array
    /// lives; no alignment is needed.
    pub unsafe fn new(data: *const T, len: usize) -> Array<'a, T> {
        let base = NonNull::new(data.cast_mut()).unwrap_or(NonNull::dangling());
        Array { base, len, memory: PhantomData }
    }

    /// The values of a slice.
    pub fn of(data: &'a [T]) -> Array<'a, T> {
        // SAFETY: I2: the slice is borrowed for 'a and has as many values.
        unsafe { Array::new(data.as_ptr(), data.len()) }
    }

    /// How many values there are.
    #[allow(clippy::len_without_is_empty, reason = "length 0 is not special here")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The addresses of its bytes.
    pub fn addresses(&self) -> Range<usize> {
        addresses(self.base.as_ptr().cast(), self.len.saturating_mul(size_of::<T>()))
    }

    /// Where `n` values from value `i` on are.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline(always)]
    pub(crate) fn values(&self, i: usize, n: usize) -> *const T {
        assert!(i <= self.len && n <= self.len - i);
        self.base.as_ptr().wrapping_add(i)
    }

    /// One value.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline(always)]
    pub fn get(&self, i: usize) -> T {
        assert!(i < self.len);
        // SAFETY: I2, I9: in range, so `new` has vouched for the value, which any bits are.
        unsafe { self.base.as_ptr().wrapping_add(i).read_unaligned() }
    }
}

/// A list of plain values in the caller's memory that is written.
///
/// Not `Clone`: whoever holds it is the only writer.
#[derive(Debug)]
pub struct ArrayMut<'a, T = f32> {
    base: *mut T,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: I2: the memory is exclusively borrowed, as by a mutable slice.
unsafe impl<T: Plain> Send for ArrayMut<'_, T> {}
// SAFETY: I2: values are written through an exclusive reference only, and never read.
unsafe impl<T: Plain> Sync for ArrayMut<'_, T> {}

impl<'a, T: Plain> ArrayMut<'a, T> {
    /// `len` values that the caller vouches for.
    ///
    /// # Safety
    /// `len` values are writable at `data`, in one allocation, and used by nobody else while the
    /// array lives; no alignment is needed.
    pub unsafe fn new(data: *mut T, len: usize) -> ArrayMut<'a, T> {
        ArrayMut { base: data, len, memory: PhantomData }
    }

    /// The values of a slice.
    pub fn of(data: &'a mut [T]) -> ArrayMut<'a, T> {
        // SAFETY: I2: the slice is exclusively borrowed for 'a and has as many values.
        unsafe { ArrayMut::new(data.as_mut_ptr(), data.len()) }
    }

    /// How many values there are.
    #[allow(clippy::len_without_is_empty, reason = "length 0 is not special here")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The addresses of its bytes.
    pub fn addresses(&self) -> Range<usize> {
        addresses(self.base.cast(), self.len.saturating_mul(size_of::<T>()))
    }

    /// The values from `i` on.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn rest(&mut self, i: usize) -> ArrayMut<'_, T> {
        assert!(i <= self.len);
        ArrayMut { base: self.base.wrapping_add(i), len: self.len - i, memory: PhantomData }
    }

    /// Writes one value.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline(always)]
    pub fn set(&mut self, i: usize, x: T) {
        assert!(i < self.len);
        // SAFETY: I2: in range, so `new` has vouched for the place.
        unsafe { self.base.wrapping_add(i).write_unaligned(x) };
    }
}

#[inline]
fn addresses(base: *const u8, bytes: usize) -> Range<usize> {
    let start = base.addr();
    start..start.saturating_add(bytes)
}

/// A Rust type whose slices hold the elements of some storage types.
pub trait Holds: Copy + sealed::Sealed {
    /// Whether a storage type is one of them.
    fn holds(dtype: Dtype) -> bool;
}

macro_rules! holds {
    ($($T:ty: $($dtype:ident)|+;)*) => {$(
        impl Holds for $T {
            fn holds(dtype: Dtype) -> bool {
                matches!(dtype, $(Dtype::$dtype)|+)
            }
        }
    )*};
}

holds! {
    f32: F32;
    u16: F16 | Bf16;
    i8: I8;
    i16: Q15;
    u8: Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Iq4Nl | Bool8 | F8E4M3 | F8E5M2 | U8;
    bool: Bool8;
}

/// A Rust type that is a storage type by itself.
pub trait Element: Holds + Plain {
    /// Its storage type.
    const DTYPE: Dtype;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for i8 {
    const DTYPE: Dtype = Dtype::I8;
}

/// A type of which any bits are a value, so that any memory can be read as an [`Array`] of it.
pub trait Plain: Copy + sealed::Sealed {}

impl Plain for f32 {}
impl Plain for i32 {}
impl Plain for u16 {}
impl Plain for i16 {}
impl Plain for i8 {}
impl Plain for u8 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
    impl Sealed for u16 {}
    impl Sealed for i16 {}
    impl Sealed for i8 {}
    impl Sealed for u8 {}
    impl Sealed for bool {}
}
