//! A cap on the instruction set, by Rust's interface. It is the process's: a program of its own.

use flash_attention::{Attention, Error, Pool, Tensor, TensorMut, isa, limit_isa, version};

#[test]
fn a_cap_holds_for_all_calls_until_it_is_taken_back() {
    let before = isa().unwrap();
    let used = || {
        let (x, mut out) = ([0.5; 3 * 16], [0.0; 3 * 16]);
        let tensor = Tensor::head_first(&x, [1, 1, 3, 16]);
        let to = TensorMut::head_first(&mut out, [1, 1, 3, 16]);
        Attention::new(tensor, tensor, tensor, to).plan(&Pool::default()).unwrap().isa
    };
    let used_before = used();
    limit_isa(Some("scalar")).unwrap();
    assert_eq!([isa().unwrap(), used()], ["scalar"; 2]);
    for name in ["mmx", "", "Scalar"] {
        let refusal = limit_isa(Some(name)).unwrap_err();
        assert_eq!(refusal.error, Error::Isa);
        assert_eq!(refusal.to_string(), "limit_isa: no instruction set that this build knows");
        assert_eq!(isa().unwrap(), "scalar");
    }
    limit_isa(None).unwrap();
    assert_eq!([isa().unwrap(), used()], [before, used_before]);
    assert_eq!(version().split('.').count(), 3);
}
