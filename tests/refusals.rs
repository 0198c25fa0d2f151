//! Problems that the Rust side refuses; the C side's refusals are tested in C.

mod common;

use common::layout;
use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::problem::{Batch, Logits, Position, Problem, Semantics, Tensors};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};

/// Builds a problem of two heads, 4 queries, 6 keys, dim 8, with what `change` does to it.
fn build(change: impl FnOnce(&mut [Layout; 5], &mut Semantics)) -> Result<(), Error> {
    let mut layouts = [(4, 8), (6, 8), (6, 8), (4, 8), (4, 1)].map(|(len, dim)| layout::<f32>(2, len, dim));
    let mut semantics = Semantics::with_scale(0.3);
    change(&mut layouts, &mut semantics);
    let [q, k, v, o, lse] = layouts;
    let data = vec![0f32; 1000];
    let (mut out, mut out_lse) = (vec![0f32; 1000], vec![0f32; 1000]);
    let tensors = Tensors {
        q: View::of(&data, q)?,
        k: View::of(&data, k)?,
        v: View::of(&data, v)?,
        o: ViewMut::of(&mut out, o)?,
        lse: Some(ViewMut::of(&mut out_lse, lse)?),
        batch: Batch::default(),
        logits: Logits::default(),
        weights: None,
    };
    Problem::new(tensors, semantics).map(|_| ()).map_err(Error::from)
}

#[test]
fn each_inconsistency_has_its_own_error() {
    assert_eq!(build(|_, _| ()), Ok(()));
    for tensor in 0..5 {
        let longer = |l: Layout| layout::<f32>(2, l.extent[2] + 1, l.dim);
        assert_eq!(build(|l, _| l[tensor] = longer(l[tensor])), Err(Error::Shape), "tensor {tensor}: length");
        let wider = |l: Layout| layout::<f32>(2, l.extent[2], l.dim + 1);
        assert_eq!(build(|l, _| l[tensor] = wider(l[tensor])), Err(Error::Shape), "tensor {tensor}: dim");
    }
    assert_eq!(build(|l, _| l[1].extent[1] = 3), Err(Error::Shape));
    assert_eq!(build(|l, _| l[0].extent[0] = 0), Err(Error::Shape), "no queries for the keys");
    assert_eq!(build(|l, _| l.iter_mut().for_each(|l| l.extent[0] = 0)), Ok(()), "no sequences");
    assert_eq!(build(|l, _| l[0].extent[1] = 0), Err(Error::ZeroExtent));
    assert_eq!(build(|l, _| l[0].dim = 0), Err(Error::ZeroExtent));
    assert_eq!(build(|l, _| l[3].stride[2] = 28), Err(Error::Stride), "rows of the output overlap");
    assert_eq!(build(|l, _| l[3].stride[1] = 0), Err(Error::Stride), "heads of the output coincide");
    assert_eq!(build(|l, _| l[1].stride[1] = 0), Ok(()), "broadcast keys are fine");
    assert_eq!(build(|l, _| l[1].stride[2] = usize::MAX), Err(Error::Overflow));
    assert_eq!(build(|l, _| l[1].stride[2] = 4000), Err(Error::Shape), "longer than the slice");
    assert_eq!(build(|l, _| l[0].dtype = Dtype::I8), Err(Error::Dtype), "not what the slice holds");
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        assert_eq!(build(|_, s| s.softmax_scale = bad), Err(Error::SoftmaxScale));
    }
    let integers = [0i8; 6];
    let view = View::of(&integers, layout::<i8>(1, 2, 3)).unwrap();
    let quantised = |quant: Quant| view.quantised(quant).map(|_| ());
    assert_eq!(quantised(Quant::per_tensor(&0.5)), Ok(()));
    assert_eq!(quantised(Quant::per_tensor(&f32::NAN)), Err(Error::QuantScale));
    assert_eq!(quantised(Quant::per_tensor(&f32::INFINITY)), Err(Error::QuantScale));
    let scales = [1.0; 5];
    let per_element = |group: [usize; 2]| {
        let scale = Some(Array::of(&scales));
        quantised(Quant { scale, zero: None, stride: [0, 0, 3, 1], group })
    };
    assert_eq!(per_element([1, 1]), Err(Error::Shape), "6 scales are needed");
    assert_eq!(per_element([1, 2]), Ok(()), "5 scales are needed");
    assert_eq!(per_element([0, 1]), Err(Error::ZeroExtent));
    assert_eq!(build(|_, s| s.q_pos = Position::At(i64::MAX)), Err(Error::Overflow));
}

#[test]
fn outputs_may_touch_inputs_but_not_overlap_them() {
    let mut memory = vec![0f32; 64];
    let base = memory.as_mut_ptr();
    let build = |o: usize, lse: usize| {
        // SAFETY: all ranges lie in `memory`; a refused problem is not run.
        let tensors = unsafe {
            Tensors {
                q: View::new(base.cast(), layout::<f32>(1, 2, 8))?,
                k: View::new(base.add(16).cast(), layout::<f32>(1, 1, 8))?,
                v: View::new(base.add(24).cast(), layout::<f32>(1, 1, 8))?,
                o: ViewMut::new(base.add(o).cast(), layout::<f32>(1, 2, 8))?,
                lse: Some(ViewMut::new(base.add(lse).cast(), layout::<f32>(1, 2, 1))?),
                batch: Batch::default(),
                logits: Logits::default(),
                weights: None,
            }
        };
        Problem::new(tensors, Semantics::with_scale(1.0)).map(|_| ()).map_err(Error::from)
    };
    assert_eq!(build(32, 48), Ok(()));
    for (o, lse) in [(31, 60), (16, 60), (0, 60), (32, 47), (32, 32), (32, 15), (32, 23)] {
        assert_eq!(build(o, lse), Err(Error::Overlap), "output at {o}, LSE at {lse}");
    }
}
