//! Splicing into a host small enough to follow by hand: an embedding, one hook point, a head.

use super::*;
use crate::host::{HostInfo, Tap};
use crate::progress::Silent;
use crate::rng::Rng;
use crate::score::tests::{constant, identity, random_dictionary};

const D: usize = 5;
const VOCAB: usize = 11;

struct Toy {
    info: HostInfo,
    embedding: Tensor,
    head: Tensor,
}

fn at() -> HookPoint {
    "blocks.0.hook_resid_post".parse().unwrap()
}

fn toy() -> Toy {
    let mut rng = Rng::stream(1, "toy host", 0);
    let mut draw = |shape: (usize, usize)| {
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.normal() as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    Toy { info: info(), embedding: draw((VOCAB, D)), head: draw((D, VOCAB)) }
}

impl HostModel for Toy {
    fn info(&self) -> &HostInfo {
        &self.info
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        vec![at()]
    }

    fn width(&self, _at: &HookPoint) -> Result<usize> {
        Ok(D)
    }

    /// A position's logits see its own activation and the mean of those before it: enough to notice what is spliced where.
    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        let (b, t) = input.ids.dims2()?;
        let mut x = self.embedding.index_select(&input.ids.flatten_all()?, 0)?.reshape((b, t, D))?;
        if tap.wants(&at()) {
            if let Some(y) = tap.visit(&at(), &x)? {
                x = y;
            }
        }
        let mean = (x.cumsum(1)? / 4.0)?;
        Ok(Some((x + mean)?.reshape((b * t, D))?.matmul(&self.head)?.reshape((b, t, VOCAB))?))
    }

    fn hf_path(&self, _at: &HookPoint) -> Option<String> {
        None
    }
}

fn batch(rows: &[&[u32]], masked: &[(usize, usize)]) -> TokenBatch {
    let t = rows.iter().map(|r| r.len()).max().unwrap();
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in rows {
        ids.extend(row.iter().copied().chain(std::iter::repeat_n(0, t - row.len())));
        mask.extend((0..t).map(|i| u8::from(i < row.len())));
    }
    let mut unmasked = mask.clone();
    masked.iter().for_each(|&(r, c)| unmasked[r * t + c] = 0);
    let shape = (rows.len(), t);
    TokenBatch {
        tokens: Tokens {
            ids: Tensor::from_vec(ids, shape, &Device::Cpu).unwrap(),
            mask: Some(Tensor::from_vec(mask, shape, &Device::Cpu).unwrap()),
        },
        unmasked: Tensor::from_vec(unmasked, shape, &Device::Cpu).unwrap(),
    }
}

fn run(dictionary: &Dictionary, batches: Vec<TokenBatch>, mean: Option<&[f32]>) -> Metrics {
    loss_recovered(&toy(), &at(), dictionary, batches.into_iter().map(Ok), mean, &Silent).unwrap()
}

fn sample() -> Vec<TokenBatch> {
    vec![batch(&[&[1, 2, 3, 4, 5], &[6, 7, 8]], &[(0, 0), (1, 0)]), batch(&[&[9, 10, 1, 1]], &[(0, 0)])]
}

#[test]
fn the_identity_recovers_everything_exactly() {
    let m = run(&identity(D, &[0.0; D]), sample(), Some(&[0.5; D]));
    for id in ["ce_loss_score", "ce_loss_score_all", "ce_loss_score_mean", "kl_score", "kl_score_all"] {
        assert_eq!(m.get(id), Some(&1.0), "{id}");
    }
    assert_eq!(m.get("kl_spliced"), Some(&0.0));
    assert_eq!(m.get("ce_spliced"), m.get("ce_clean"));
    assert!(m.get("kl_zero").unwrap() > &0.0);
}

#[test]
fn zeros_recover_nothing() {
    let m = run(&constant(&[0.0; D]), sample(), None);
    for id in ["ce_loss_score", "ce_loss_score_all", "kl_score", "kl_score_all"] {
        assert_eq!(m.get(id), Some(&0.0), "{id}");
    }
    assert!(m.get("ce_mean").is_none() && m.get("ce_loss_score_mean").is_none());
}

#[test]
fn a_mean_is_another_ablation() {
    let mean = [0.3, -0.2, 0.0, 1.0, 0.5];
    let m = run(&constant(&mean), sample(), Some(&mean));
    assert_eq!(m.get("ce_loss_score_mean"), Some(&0.0));
    assert_ne!(m.get("ce_loss_score"), Some(&0.0));
}

#[test]
fn figures_equal_a_computation_by_hand() {
    // One context of four tokens, position 0 masked: it keeps its activation, and its loss counts only in `_all`.
    let host = toy();
    let ids = [3u32, 1, 4, 1];
    let dictionary = random_dictionary(2, D, 12, 2);
    let m = run(&dictionary, vec![batch(&[&ids], &[(0, 0)])], None);
    let embedding: Vec<Vec<f32>> = host.embedding.to_vec2().unwrap();
    let head: Vec<Vec<f32>> = host.head.to_vec2().unwrap();
    let clean: Vec<Vec<f32>> = ids.iter().map(|&i| embedding[i as usize].clone()).collect();
    let x = Tensor::from_vec(clean[1..].concat(), (3, D), &Device::Cpu).unwrap();
    let mut spliced = vec![clean[0].clone()];
    spliced.extend(dictionary.reconstruct(&x).unwrap().1.to_vec2::<f32>().unwrap());
    let log_probs = |x: &[Vec<f32>], p: usize| -> Vec<f64> {
        let seen: Vec<f64> = (0..D).map(|c| f64::from(x[p][c]) + x[..=p].iter().map(|row| f64::from(row[c]) / 4.0).sum::<f64>()).collect();
        let logits: Vec<f64> = (0..VOCAB).map(|v| (0..D).map(|c| seen[c] * f64::from(head[c][v])).sum()).collect();
        let z = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - z).collect()
    };
    let ce = |x: &[Vec<f32>], p: usize| -log_probs(x, p)[ids[p + 1] as usize];
    let kl = |p: usize| log_probs(&clean, p).iter().zip(log_probs(&spliced, p)).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
    for (id, want) in [
        ("ce_clean", (ce(&clean, 1) + ce(&clean, 2)) / 2.0),
        ("ce_spliced", (ce(&spliced, 1) + ce(&spliced, 2)) / 2.0),
        ("ce_spliced_all", (ce(&spliced, 0) + ce(&spliced, 1) + ce(&spliced, 2)) / 3.0),
        ("kl_spliced", (kl(1) + kl(2)) / 2.0),
        ("kl_spliced_all", (kl(1) + kl(2)) / 3.0),
        ("ce_positions", 2.0),
        ("ce_positions_all", 3.0),
    ] {
        assert!((m.get(id).unwrap() - want).abs() < 1e-5, "{id}: {} {want}", m.get(id).unwrap());
    }
}

#[test]
fn padding_and_batching_change_nothing() {
    let dictionary = random_dictionary(3, D, 12, 2);
    let (a, b): (&[u32], &[u32]) = (&[1, 2, 3, 4, 5], &[6, 7, 8]);
    let together = run(&dictionary, vec![batch(&[a, b], &[])], None);
    let apart = run(&dictionary, vec![batch(&[a], &[]), batch(&[b], &[])], None);
    for (id, v) in together.iter() {
        assert!((v - apart.get(id).unwrap()).abs() < 1e-6, "{id}");
    }
    assert_eq!(together.get("ce_positions"), Some(&6.0));
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let wide = loss_recovered(&toy(), &at(), &identity(4, &[0.0; 4]), sample().into_iter().map(Ok), None, &Silent).unwrap_err();
    assert!(matches!(wide, Error::Width { expected: 5, got: 4, .. }), "{wide}");
    let lone = loss_recovered(&toy(), &at(), &identity(D, &[0.0; D]), [Ok(batch(&[&[1]], &[]))], None, &Silent).unwrap_err();
    assert_eq!(lone.exit_code(), 2, "{lone}");
    let unknown = vec![batch(&[&[1, 2, 200]], &[])];
    assert!(loss_recovered(&toy(), &at(), &identity(D, &[0.0; D]), unknown.into_iter().map(Ok), None, &Silent).is_err());
}

#[test]
fn every_figure_is_defined() {
    let m = run(&random_dictionary(4, D, 12, 2), sample(), Some(&[0.0; D]));
    let ids: Vec<&str> = m.iter().map(|(id, _)| id).collect();
    let defined: Vec<&str> = DEFINITIONS.iter().map(|d| d.id).collect();
    assert_eq!(ids, defined);
}

fn info() -> HostInfo {
    HostInfo {
        name: "toy".into(),
        family: "llama",
        n_layers: 1,
        d_model: D,
        n_heads: 1,
        d_head: D,
        d_mlp: D,
        vocab_size: VOCAB,
        n_context: 16,
        dtype: "f32".into(),
        n_params: 0,
        weights_sha256: String::new(),
        bos_token_id: None,
        eos_token_ids: vec![],
        unread_config: vec![],
        origin: None,
    }
}
