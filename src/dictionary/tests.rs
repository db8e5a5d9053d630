//! A dictionary does what its equations say, and comes back from disk the same, or not at all.

use candle_core::{Device, Tensor};

use super::*;
use crate::rng::Rng;

fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

fn sample(activation: Activation) -> Dictionary {
    let mut rng = Rng::stream(5, "test", 0);
    let coder = Coder {
        w_enc: random(&mut rng, &[20, 6]),
        b_enc: random(&mut rng, &[20]),
        w_dec: random(&mut rng, &[20, 6]),
        b_dec: random(&mut rng, &[6]),
    };
    Dictionary::new(coder, activation, true, Provenance { hook: "blocks.0.hook_resid_post".into(), ..Default::default() }).unwrap()
}

#[test]
fn saving_and_loading_keeps_the_function() {
    let dir = tempfile::tempdir().unwrap();
    let x = random(&mut Rng::stream(6, "test", 0), &[9, 6]);
    for (i, activation) in [Activation::Relu, Activation::TopK { k: 3 }, Activation::Threshold { threshold: 0.4 }].into_iter().enumerate() {
        let mut d = sample(activation);
        if i == 1 {
            let mut rng = Rng::stream(7, "test", 0);
            d.selection_scale = Some(random(&mut rng, &[20]).abs().unwrap());
            d.input_transform = Some(InputTransform { shift: random(&mut rng, &[6]), scale: 2.5 });
            d.skip = Some(random(&mut rng, &[6, 6]));
        }
        d.save(dir.path()).unwrap();
        let back = Dictionary::load(dir.path()).unwrap();
        assert_eq!(back.activation, d.activation);
        assert_eq!(back.provenance, d.provenance);
        let (codes, y) = d.reconstruct(&x).unwrap();
        let (codes2, y2) = back.reconstruct(&x).unwrap();
        assert_eq!(codes, codes2);
        assert_eq!(y.to_vec2::<f32>().unwrap(), y2.to_vec2::<f32>().unwrap());
    }
}

#[test]
fn an_input_transform_is_undone() {
    // With shift and scale, and all latents dead, the reconstruction is b_dec / scale + shift.
    let mut d = sample(Activation::Threshold { threshold: 1e9 });
    let shift = Tensor::new(&[1f32, 2., 3., 4., 5., 6.], &Device::Cpu).unwrap();
    d.input_transform = Some(InputTransform { shift: shift.clone(), scale: 4.0 });
    let (_, y) = d.reconstruct(&Tensor::zeros((2, 6), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let want = ((&d.coder.b_dec / 4.0).unwrap() + shift).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(y.to_vec2::<f32>().unwrap()[1], want);
}

#[test]
fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    sample(Activation::Relu).save(dir.path()).unwrap();
    let weights = dir.path().join("dictionary.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let error = Dictionary::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("sha256"), "{error}");

    sample(Activation::Relu).save(dir.path()).unwrap();
    let json = dir.path().join("dictionary.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = Dictionary::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("version is 2"), "{error}");
}

#[test]
fn disagreeing_shapes_are_refused() {
    let d = sample(Activation::Relu);
    let coder = Coder { b_enc: d.coder.b_enc.narrow(0, 0, 19).unwrap(), ..d.coder.clone() };
    assert!(Dictionary::new(coder, Activation::Relu, true, Provenance::default()).is_err());
    assert!(Dictionary::new(d.coder.clone(), Activation::TopK { k: 21 }, true, Provenance::default()).is_err());
    let wrong = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(d.encode(&wrong).unwrap_err().to_string().contains("5 wide, 6 expected"));
}
