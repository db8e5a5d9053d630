//! Pursuits beside the peers that have them: tests/golden/mp.py wrote what SAELens and overcomplete make of the same rows and atoms.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lapidary::dictionary::{Activation, Provenance};
use lapidary::kernels::Coder;
use lapidary::Dictionary;

/// Largest difference of our codes and theirs, all rows and latents.
fn apart(golden: &HashMap<String, Tensor>, rule: &str, x: &str, atoms: &str, theirs: &str, scale_by_norms: bool) -> f32 {
    let atoms = &golden[atoms];
    let (m, d) = atoms.dims2().unwrap();
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: atoms.clone(), b_enc: zeros(m), w_dec: atoms.clone(), b_dec: zeros(d) };
    let activation: Activation = rule.parse().unwrap();
    let dictionary = Dictionary::new(coder, activation, true, Provenance::default()).unwrap();
    let mut codes = dictionary.encode(&golden[x]).unwrap().to_dense().unwrap();
    if scale_by_norms {
        codes = codes.broadcast_mul(&Tensor::new(dictionary.atom_norms().unwrap(), &Device::Cpu).unwrap()).unwrap();
    }
    (codes - &golden[theirs]).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn codes_are_those_of_saelens_and_overcomplete() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mp/mp.safetensors");
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let apart = |rule: &str, x: &str, atoms: &str, theirs: &str, by_norms: bool| {
        let difference = apart(&golden, rule, x, atoms, theirs, by_norms);
        println!("{theirs}: {difference:.1e}");
        assert!(difference < 3e-6, "{theirs}: {difference}");
    };
    // SAELens: ReLU'd values, an absolute threshold, at most d_in steps, ends with a step that adds no latent; atoms as they are.
    apart("mp:16,tolerance=0.01,stop_on_repeat=true,renormalise=false", "x", "unit", "saelens_default", false);
    apart("mp:16,tolerance=1.5,renormalise=false", "x", "unit", "saelens_threshold", false);
    apart("mp:6,renormalise=false", "x", "unit", "saelens_fixed", false);
    apart("mp:6,renormalise=false", "x", "loose", "saelens_loose", false);
    apart("mp:6,renormalise=false", "against", "orthant", "saelens_against", false);
    // overcomplete: the largest inner product with its sign, k steps, unit atoms (its codes belong to those).
    apart("mp:6,selection=max", "x", "unit", "overcomplete", false);
    apart("mp:6,selection=max", "x", "loose", "overcomplete_loose", true);
    apart("mp:6,selection=max", "against", "orthant", "overcomplete_against", false);
}
