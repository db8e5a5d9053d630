use super::*;
use crate::dictionary::{Activation, InputTransform, Provenance, RowNorm};
use crate::host::{self, Capture, LoadOptions, Pair};
use crate::kernels::Coder;
use crate::progress::Silent;
use crate::trace::Reading;

const HOOK: &str = "blocks.1.hook_resid_post";
const TEXT: &str = "one sunny morning , a boy named tom met two foxes near the river .";

fn setting() -> (Box<dyn HostModel>, Tokenizer, HookPoint) {
    (host::load("fable", &LoadOptions::default()).unwrap(), Tokenizer::fable().unwrap(), HOOK.parse().unwrap())
}

/// `d_sae` random unit atoms, tied.
fn dictionary(d_sae: usize, d: usize, activation: Activation) -> Dictionary {
    let mut rng = Rng::stream(3, "test", d_sae as u64);
    let atoms: Vec<f32> = (0..d_sae)
        .flat_map(|_| {
            let v: Vec<f64> = (0..d).map(|_| rng.normal()).collect();
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            v.into_iter().map(move |v| (v / norm) as f32).collect::<Vec<_>>()
        })
        .collect();
    let w = Tensor::from_vec(atoms, (d_sae, d), &Device::Cpu).unwrap();
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: w.clone(), b_enc: zeros(d_sae), w_dec: w, b_dec: zeros(d) };
    Dictionary::new(coder, activation, true, Provenance::default()).unwrap()
}

/// The activation before and after the edits, `[t, d]`, and the logits.
fn spliced(d: &Dictionary, edits: &[Edit], keep_error: bool) -> (Tensor, Tensor, Tensor) {
    let (host, tokenizer, at) = setting();
    let prompt = Prompt::new(TEXT, host.info(), &tokenizer, Reading::default()).unwrap();
    let tokens = Tokens::new(std::slice::from_ref(&prompt.ids), &Device::Cpu).unwrap();
    let open = prompt.masked.iter().map(Option::is_none).collect();
    let (mut before, mut after) = (Capture::with_logits(&[at]), Capture::with_logits(&[at]));
    host.forward(&tokens, &mut before).unwrap();
    let mut tap = Edited::new(host.as_ref(), at, d, edits, keep_error, open).unwrap();
    let logits = host.forward(&tokens, &mut Pair(&mut tap, &mut after)).unwrap().unwrap();
    let row = |c: &Capture| c.get(&at).unwrap().squeeze(0).unwrap();
    (row(&before), row(&after), logits)
}

fn bytes(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn edit(text: &str) -> Edit {
    text.parse().unwrap()
}

#[test]
fn nothing_changed_is_nothing_changed_to_the_byte() {
    let d = dictionary(256, 96, Activation::TopK { k: 8 });
    let (before, after, logits) = spliced(&d, &[edit("3=x1"), edit("4=+0")], true);
    assert_eq!(bytes(&before), bytes(&after));
    let (_, _, again) = spliced(&d, &[], true);
    assert_eq!(bytes(&logits), bytes(&again));
    let (host, tokenizer, at) = setting();
    let prompt = Prompt::new(TEXT, host.info(), &tokenizer, Reading::default()).unwrap();
    let config = SteerConfig { edits: vec![edit("3=x1")], n_tokens: 6, ..SteerConfig::default() };
    let out = steer(host.as_ref(), &tokenizer, &at, &d, &prompt, &config, &Silent).unwrap();
    assert_eq!(out.samples[0].unsteered, out.samples[0].steered);
    assert!(out.prompt_kl == 0.0 && out.samples[0].tokens.iter().all(|t| t.kl == 0.0) && out.shifts.iter().all(|s| s.before == s.after));
}

#[test]
fn ablation_takes_away_exactly_what_the_latent_wrote() {
    let plain = dictionary(256, 96, Activation::TopK { k: 8 });
    let mut scaled = plain.clone();
    let shift = Tensor::full(0.1f32, 96, &Device::Cpu).unwrap();
    scaled.input_transform = Some(InputTransform { shift, scale: 2.5 });
    let mut normed = scaled.clone();
    normed.row_norm = Some(RowNorm::LayerNorm);
    for d in [plain, scaled, normed] {
        let (x, _, _) = spliced(&d, &[], true);
        let codes = d.encode(&x).unwrap();
        // The latent that fires most often.
        let latent = (0..256u32).max_by_key(|l| codes.indices.iter().filter(|i| *i == l).count()).unwrap();
        let (before, after, _) = spliced(&d, &[Edit::ablate(latent)], true);
        assert_eq!(bytes(&before), bytes(&x));
        let (silenced, _) = silence(&d, &codes, latent);
        // decode(z) - decode(z'), which is z_i w_i through scale and norm.
        let written = (d.decode(&codes, Some(&x)).unwrap() - d.decode(&silenced, Some(&x)).unwrap()).unwrap();
        let found = (&before - &after).unwrap();
        let off = (&found - &written).unwrap().narrow(0, 1, x.dim(0).unwrap() - 1).unwrap();
        let off = off.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 2e-5, "{off}");
        let norms: Vec<f32> = found.sqr().unwrap().sum(1).unwrap().to_vec1().unwrap();
        assert_eq!(norms[0], 0.0, "BOS is masked");
        let fires = |r: usize| codes.row(r).0.contains(&latent);
        assert!((1..norms.len()).all(|r| (norms[r] > 0.0) == fires(r)) && norms.iter().any(|n| *n > 0.0));
        // Without the error, what is there is the reconstruction of the changed codes.
        let (_, bare, _) = spliced(&d, &[Edit::ablate(latent)], false);
        let expected = d.decode(&silenced, Some(&x)).unwrap();
        let off = (bare - expected).unwrap().narrow(0, 1, norms.len() - 1).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(off.to_scalar::<f32>().unwrap(), 0.0);
    }
}

fn silence(d: &Dictionary, codes: &crate::codes::Codes, latent: u32) -> (crate::codes::Codes, usize) {
    let mut out = crate::codes::Codes::new(d.d_sae());
    let mut rows = 0;
    for r in 0..codes.n_rows() {
        let (indices, values) = codes.row(r);
        rows += usize::from(indices.contains(&latent));
        out.push_row(indices.iter().copied().zip(values.iter().copied()).filter(|e| e.0 != latent));
    }
    (out, rows)
}

#[test]
fn a_clamped_code_is_read_back() {
    let d = dictionary(1, 96, Activation::Relu);
    let (x, after, _) = spliced(&d, &[edit("0=x3")], true);
    let (was, is) = (d.encode(&x).unwrap(), d.encode(&after).unwrap());
    let fired: Vec<usize> = (1..was.n_rows()).filter(|&r| !was.row(r).0.is_empty()).collect();
    assert!(!fired.is_empty() && fired.iter().all(|&r| (is.row(r).1[0] - 3.0 * was.row(r).1[0]).abs() < 1e-4));
    // Where the latent was silent its pre-activation was below 0, which a clamp does not take away: no more is asked there.
    let (_, after, _) = spliced(&d, &[edit("0=5")], true);
    let is = d.encode(&after).unwrap();
    assert!(fired.iter().all(|&r| (is.row(r).1[0] - 5.0).abs() < 1e-4), "clamped where it fired");
}

#[test]
fn samples_depend_on_the_seed_and_positions_are_kept() {
    let (host, tokenizer, at) = setting();
    let d = dictionary(64, 96, Activation::TopK { k: 4 });
    let prompt = Prompt::new("one sunny morning , a", host.info(), &tokenizer, Reading::default()).unwrap();
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let config = SteerConfig { edits: vec![edit("5=+6")], n_tokens: 12, samples: 3, sampling, ..SteerConfig::default() };
    let run = |config: &SteerConfig| steer(host.as_ref(), &tokenizer, &at, &d, &prompt, config, &Silent).unwrap();
    let first = run(&config);
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| run(&config));
    assert_eq!(first, alone);
    assert_ne!(first, run(&SteerConfig { seed: 1, ..config.clone() }));
    assert!(first.samples[0] != first.samples[1] && first.prompt_kl > 0.0);
    assert!(first.samples.iter().all(|s| s.tokens.len() == 12 && s.mean_kl > 0.0));
    assert!((first.shifts[0].after - first.shifts[0].before).abs() >= (first.shifts[9].after - first.shifts[9].before).abs());
    // Changed after the prompt only, the first token is drawn as if nothing were.
    let later = run(&SteerConfig { positions: Positions::Generated, ..config.clone() });
    assert!(later.prompt_kl == 0.0 && later.samples[0].tokens[0].kl == 0.0 && later.samples[0].tokens[1].kl > 0.0);
    let from = run(&SteerConfig { positions: Positions::From(99), ..config.clone() });
    assert_eq!(from.samples[0].mean_kl, 0.0);
    assert!(run(&SteerConfig { positions: Positions::Prompt, ..config.clone() }).prompt_kl > 0.0);
    // The context ends the text.
    let long = run(&SteerConfig { n_tokens: 1000, sampling: Sampling::default(), samples: 1, ..config.clone() });
    assert!(prompt.ids.len() + long.samples[0].tokens.len() <= host.info().n_context);
}

#[test]
fn what_cannot_be_steered_is_refused() {
    let (host, _, at) = setting();
    let refused = |d: &Dictionary, edits: &[Edit]| match Edited::new(host.as_ref(), at, d, edits, true, Vec::new()) {
        Err(e) => (e.exit_code(), e.to_string()),
        Ok(_) => panic!("accepted"),
    };
    let d = dictionary(8, 96, Activation::Relu);
    assert!(refused(&d, &[edit("8=1")]).1.contains("0 to 7"));
    assert!(refused(&d, &[edit("1=1"), edit("1=2")]).1.contains("twice"));
    assert_eq!(refused(&dictionary(8, 95, Activation::Relu), &[]).0, 2);
    let (w, b) = (|n| Tensor::zeros((8, n), DType::F32, &Device::Cpu).unwrap(), |n| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap());
    let coder = Coder { w_enc: w(96), b_enc: b(8), w_dec: w(48), b_dec: b(48) };
    let transcoder = Dictionary::new(coder, Activation::Relu, false, Provenance::default()).unwrap();
    assert!(refused(&transcoder, &[]).1.contains("transcoder"));
}
