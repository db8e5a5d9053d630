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
    let rules =
        ["relu", "topk:3", "threshold:0.4", "mp:5,selection=signed,tolerance=0.25,relative=true", "mp:4,renormalise=false", "omp:3"];
    for (i, rule) in rules.into_iter().enumerate() {
        let activation: Activation = rule.parse().unwrap();
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

#[test]
fn pursuits_work_in_the_atoms_of_any_dictionary() {
    let x = random(&mut Rng::stream(8, "test", 0), &[30, 6]);
    let rule = |s: &str| s.parse::<Activation>().unwrap();
    let error = |d: &Dictionary| {
        let (_, y) = d.reconstruct(&x).unwrap();
        (y - &x).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
    };
    // Atoms of any norm, and an encoder that does not subtract b_dec: a pursuit does, or it would not pursue what it reconstructs.
    let mut d = sample(rule("topk:3"));
    d.centred = false;
    let mut last = f32::INFINITY;
    for steps in [1, 2, 4, 8, 16, 64] {
        let mp = d.clone().with_activation(rule(&format!("mp:{steps},selection=signed"))).unwrap();
        let now = error(&mp);
        assert!(now < last, "{steps} steps: {now} after {last}");
        last = now;
        if steps <= 4 {
            let omp = d.clone().with_activation(rule(&format!("omp:{steps},selection=signed"))).unwrap();
            assert!(error(&omp) <= now * 1.0001);
            assert!(omp.encode(&x).unwrap().indices.len() == 30 * steps);
        }
    }
    assert!(last < 1e-3 * error(&d));

    // Norms change codes, not the reconstruction; without `renormalise` they change everything.
    let unit = d.coder.w_dec.broadcast_div(&d.coder.w_dec.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
    let mp = d.with_activation(rule("mp:3")).unwrap();
    let plain =
        Dictionary::new(Coder { w_dec: unit, ..mp.coder.clone() }, rule("mp:3,renormalise=false"), true, Provenance::default()).unwrap();
    assert!((error(&mp) / error(&plain) - 1.0).abs() < 1e-5);
    let norms = mp.atom_norms().unwrap();
    let (a, b) = (mp.encode(&x).unwrap().to_dense().unwrap().to_vec2::<f32>().unwrap(), plain.encode(&x).unwrap());
    for (a, b) in a.iter().zip(b.to_dense().unwrap().to_vec2::<f32>().unwrap()) {
        assert!(a.iter().zip(&b).zip(&norms).all(|((a, b), n)| (a * n - b).abs() < 1e-5));
    }

    // What is kept for speed follows atoms and rule.
    let mut changed = mp.clone();
    changed.coder.w_dec = plain.coder.w_dec.clone();
    let fresh = Dictionary::new(changed.coder.clone(), rule("mp:3"), false, Provenance::default()).unwrap();
    assert_eq!(changed.encode(&x).unwrap(), fresh.encode(&x).unwrap());
    changed.activation = rule("mp:1");
    assert!(changed.encode(&x).unwrap().indices.len() <= 30);
}

#[test]
fn impossible_rules_are_refused() {
    let refused = |s: &str| s.parse::<Activation>().unwrap_err().to_string();
    assert!(refused("mp").contains("needs its steps"));
    assert!(refused("pursuit:3").contains("there is no `pursuit`"));
    assert!(refused("omp:3,stop_on_repeat=true").contains("stop_on_repeat"));
    assert!(refused("mp:3,selection=best").contains("best"));
    let fits = |s: &str| sample(Activation::Relu).with_activation(s.parse().unwrap());
    assert!(fits("omp:20").is_ok() && fits("mp:500").is_ok());
    assert!(fits("omp:21").unwrap_err().to_string().contains("choose between 1 and 20"));
    assert!(fits("mp:0").is_err() && fits("mp:3,tolerance=-1").is_err());
    let mut skipping = sample(Activation::Relu);
    skipping.skip = Some(Tensor::zeros((6, 6), DType::F32, &Device::Cpu).unwrap());
    assert!(skipping.with_activation("mp:3".parse().unwrap()).unwrap_err().to_string().contains("linear path"));
}

/// Every rule that folding knows, with what it needs, over atoms of any norm.
fn foldable() -> Vec<Dictionary> {
    let mut rng = Rng::stream(11, "test", 0);
    let mut all: Vec<Dictionary> =
        ["relu", "threshold:0.4", "topk:3", "abstopk:3", "mp:4"].into_iter().map(|rule| sample(rule.parse().unwrap())).collect();
    let mut jump = sample(Activation::Relu);
    jump.thresholds = Some(random(&mut rng, &[20]).abs().unwrap());
    jump.activation = Activation::JumpRelu;
    let mut gated = sample(Activation::Relu);
    gated.magnitude = Some((random(&mut rng, &[20]).exp().unwrap(), random(&mut rng, &[20])));
    gated.activation = Activation::Gated;
    let mut ranked = sample("topk:3".parse().unwrap());
    ranked.selection_scale = Some(random(&mut rng, &[20]).abs().unwrap());
    all.extend([jump, gated, ranked]);
    all
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

#[test]
fn folding_keeps_codes_and_reconstructions() {
    let x = random(&mut Rng::stream(12, "test", 0), &[60, 6]);
    for plain in foldable() {
        for centred in [true, false] {
            let mut d = plain.clone();
            d.centred = centred;
            let (codes, y) = d.reconstruct(&x).unwrap();
            let (other, z) = d.with_centred(!centred).unwrap().reconstruct(&x).unwrap();
            let off = difference(&codes.to_dense().unwrap(), &other.to_dense().unwrap());
            assert!(off < 1e-5 && difference(&y, &z) < 1e-4, "{:?}, centred {centred}: {off}", d.activation);

            let shift = random(&mut Rng::stream(13, "test", 0), &[6]);
            d.input_transform = Some(InputTransform { shift, scale: 1.7 });
            let (codes, y) = d.reconstruct(&x).unwrap();
            let folded = d.without_input_transform().unwrap();
            assert!(folded.input_transform.is_none());
            let (other, z) = folded.reconstruct(&x).unwrap();
            let off = difference(&codes.to_dense().unwrap(), &other.to_dense().unwrap());
            assert!(off < 2e-5 && difference(&y, &z) < 1e-4, "{:?}, centred {centred}: {off}", d.activation);
        }
    }
}

#[test]
fn unit_atoms_scale_codes_by_their_norms_or_are_refused() {
    let x = random(&mut Rng::stream(14, "test", 0), &[60, 6]);
    for d in foldable() {
        let ranks_codes = matches!(d.activation, Activation::TopK { .. } | Activation::AbsTopK { .. }) && d.selection_scale.is_none();
        let folded = match d.with_unit_atoms() {
            Err(error) => {
                assert!(ranks_codes && error.to_string().contains("top-k"), "{error}");
                continue;
            }
            Ok(folded) => folded,
        };
        assert!(!ranks_codes && folded.atom_norms().unwrap().iter().all(|n| (n - 1.0).abs() < 1e-5));
        let norms = Tensor::new(d.atom_norms().unwrap(), &Device::Cpu).unwrap();
        let ((codes, y), (scaled, z)) = (d.reconstruct(&x).unwrap(), folded.reconstruct(&x).unwrap());
        let want = codes.to_dense().unwrap().broadcast_mul(&norms).unwrap();
        let off = difference(&want, &scaled.to_dense().unwrap());
        assert!(off < 5e-5 && difference(&y, &z) < 1e-4, "{:?}: {off}", d.activation);
    }
}

#[test]
fn abs_topk_keeps_signs() {
    let d = sample("abstopk:4".parse().unwrap());
    let x = random(&mut Rng::stream(15, "test", 0), &[30, 6]);
    let codes = d.encode(&x).unwrap();
    let u = x.broadcast_sub(&d.coder.b_dec).unwrap();
    let all = kernels::pre_activations(&u, &d.coder.w_enc, &d.coder.b_enc).unwrap().to_vec2::<f32>().unwrap();
    for (r, a) in all.iter().enumerate() {
        let mut best: Vec<usize> = (0..20).collect();
        best.sort_by(|&i, &j| a[j].abs().total_cmp(&a[i].abs()));
        let mut found: Vec<usize> = codes.row(r).0.iter().map(|&j| j as usize).collect();
        found.sort_unstable();
        best.truncate(4);
        best.sort_unstable();
        assert_eq!(found, best);
        assert!(codes.row(r).0.iter().zip(codes.row(r).1).all(|(&j, v)| (a[j as usize] - v).abs() < 1e-5));
    }
    assert!(codes.values.iter().any(|v| *v < 0.0));
}

#[test]
fn a_norm_per_row_is_kept_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut d = sample("topk:3".parse().unwrap());
    d.row_norm = Some(RowNorm::LayerNorm);
    d.save(dir.path()).unwrap();
    let back = Dictionary::load(dir.path()).unwrap();
    assert_eq!(back.row_norm, Some(RowNorm::LayerNorm));
    // A row, moved and stretched, has the same codes, and its reconstruction moves and stretches with it.
    let x = random(&mut Rng::stream(16, "test", 0), &[10, 6]);
    let moved = ((&x * 3.0).unwrap() + 7.0).unwrap();
    let ((a, y), (b, z)) = (back.reconstruct(&x).unwrap(), back.reconstruct(&moved).unwrap());
    assert!(difference(&a.to_dense().unwrap(), &b.to_dense().unwrap()) < 1e-4);
    assert!(difference(&((y * 3.0).unwrap() + 7.0).unwrap(), &z) < 1e-3);
    assert!(back.decode(&a, None).is_err());
}

#[test]
fn a_shorter_pursuit_is_the_same_rule_with_fewer_steps() {
    let x = random(&mut Rng::stream(6, "test", 0), &[9, 6]);
    for (rule, short) in [("mp:5,selection=signed,tolerance=0.1", "mp:2,selection=signed,tolerance=0.1"), ("omp:5", "omp:2")] {
        let whole = sample(rule.parse().unwrap());
        let shorter = whole.shorter(2).unwrap();
        assert_eq!(shorter.activation, short.parse().unwrap());
        assert_eq!(shorter.encode(&x).unwrap(), sample(short.parse().unwrap()).encode(&x).unwrap());
        assert!(shorter.shares_weights(&whole));
        assert!(whole.shorter(0).unwrap_err().to_string().contains("1 step"));
    }
    let counts = |rule: &str| sample(rule.parse().unwrap()).step_counts();
    assert_eq!(counts("mp:1"), [1]);
    assert_eq!(counts("omp:5"), [1, 2, 3, 4, 5]);
    assert_eq!(counts("mp:32"), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    assert!(counts("topk:3").is_empty() && sample(Activation::Relu).shorter(2).unwrap_err().to_string().contains("mp:K"));
}
