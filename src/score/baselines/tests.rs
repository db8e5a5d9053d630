//! Baselines are what they say, on data whose answer is known, and the same bytes however many threads make them.

use super::*;
use crate::progress::Silent;
use crate::rng::Rng;
use crate::score::tests::{batches, rows, run};

fn make(x: &[f32], d: usize, config: &BaselineConfig) -> Vec<(String, Dictionary)> {
    baselines(batches(x, d, 100), config, &Silent).unwrap()
}

fn config(k: usize, d_sae: usize) -> BaselineConfig {
    BaselineConfig { k, d_sae, ..BaselineConfig::default() }
}

/// Rows in three dimensions of ten, off centre.
fn flat(n: usize) -> Vec<f32> {
    let mut rng = Rng::stream(1, "flat", 0);
    let basis: Vec<f64> = (0..30).map(|_| rng.normal()).collect();
    let mut x = Vec::new();
    for _ in 0..n {
        let z: Vec<f64> = (0..3).map(|i| (3.0 - i as f64) * rng.normal()).collect();
        x.extend((0..10).map(|c| (7.0 + z.iter().enumerate().map(|(i, z)| z * basis[i * 10 + c]).sum::<f64>()) as f32));
    }
    x
}

#[test]
fn every_baseline_uses_k_latents_and_unit_atoms() {
    let x = rows(1, 600, 8);
    let made = make(&x, 8, &config(3, 64));
    assert_eq!(made.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["random", "pca", "kmeans", "rows"]);
    for (name, dictionary) in &made {
        let s = run(dictionary, &x, 100);
        assert_eq!(*s.metrics.get("l0").unwrap(), 3.0, "{name}");
        assert!(dictionary.atom_norms().unwrap().iter().all(|n| (n - 1.0).abs() < 1e-5), "{name}");
        assert!(*s.metrics.get("fvu").unwrap() < 1.0, "{name} beats the mean: {}", s.metrics.get("fvu").unwrap());
    }
    assert_eq!(made[0].1.d_sae(), 64);
    assert_eq!(made[1].1.d_sae(), 16, "plus and minus of eight axes");
}

#[test]
fn pca_finds_the_plane() {
    let x = flat(500);
    let made = make(&x, 10, &config(3, 32));
    let fvu = |i: usize| *run(&made[i].1, &x, 100).metrics.get("fvu").unwrap();
    assert!(fvu(1) < 1e-6, "three axes hold all of it: {}", fvu(1));
    assert!(fvu(0) > 0.05, "random atoms do not: {}", fvu(0));
    // The k largest of +-axes are the best k-term code in that basis: k = 1 explains at least the largest eigenvalue's share.
    let one = make(&x, 10, &config(1, 32));
    let s = run(&one[1].1, &x, 100);
    assert!(*s.metrics.get("explained_variance").unwrap() > 0.5);
}

#[test]
fn kmeans_finds_clusters() {
    // Eight far clusters in directions of their own: one latent says almost everything.
    let mut rng = Rng::stream(2, "clusters", 0);
    let mut x = Vec::new();
    for r in 0..800 {
        x.extend((0..8).map(|c| (f64::from(u8::from(c == r % 8)) * 20.0 + 0.1 * rng.normal()) as f32));
    }
    let made = make(&x, 8, &BaselineConfig { max_centroids: 8, ..config(1, 64) });
    let fvu = |i: usize| *run(&made[i].1, &x, 100).metrics.get("fvu").unwrap();
    assert_eq!(made[2].1.d_sae(), 8);
    assert!(fvu(2) < 0.01, "{}", fvu(2));
    assert!(fvu(2) < fvu(0) && fvu(2) < fvu(1), "{} {} {}", fvu(0), fvu(1), fvu(2));
}

#[test]
fn the_gain_is_the_best_one() {
    let x = rows(3, 600, 12);
    for (name, dictionary) in make(&x, 12, &config(6, 96)).into_iter().filter(|(name, _)| name != "pca") {
        let fvu = |factor: f64| {
            let mut d = dictionary.clone();
            d.coder.w_enc = (d.coder.w_enc * factor).unwrap();
            *run(&d, &x, 100).metrics.get("fvu").unwrap()
        };
        assert!(fvu(1.0) < fvu(0.97) && fvu(1.0) < fvu(1.03), "{name}: {} {} {}", fvu(0.97), fvu(1.0), fvu(1.03));
        let gain = dictionary.provenance.notes["encoder_gain"].as_f64().unwrap();
        assert!(gain > 0.05 && gain < 1.0, "{name}: several atoms that overlap overshoot, {gain}");
    }
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let x = rows(4, 700, 9);
    let bytes = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let made = pool.install(|| make(&x, 9, &BaselineConfig { seed, ..config(4, 50) }));
        let bits = |(_, d): (String, Dictionary)| -> Vec<u32> {
            let w: Vec<f32> = d.coder.w_enc.flatten_all().unwrap().to_vec1().unwrap();
            w.into_iter().map(f32::to_bits).collect()
        };
        made.into_iter().map(bits).collect::<Vec<_>>()
    };
    let one = bytes(1, 0);
    assert_eq!(one, bytes(3, 0));
    let other = bytes(2, 1);
    assert_ne!(one[0], other[0]);
    assert_eq!(one[1], other[1], "PCA has no seed");
}

#[test]
fn the_sample_is_bounded_and_bad_requests_are_refused() {
    let x = rows(5, 300, 4);
    let made = make(&x, 4, &BaselineConfig { sample_rows: 120, ..config(2, 16) });
    assert_eq!(made[0].1.provenance.notes["train_rows"], 120);
    // Nothing beyond the sample is read: an endless stream is fine.
    let endless = std::iter::repeat_with(|| Ok(Batch { n: 50, x: x[..200].to_vec(), ..Batch::default() }));
    assert!(baselines(endless, &BaselineConfig { sample_rows: 120, ..config(2, 16) }, &Silent).is_ok());
    assert!(baselines(batches(&x, 4, 10), &config(17, 16), &Silent).is_err());
    assert!(baselines(batches(&[1.0; 40], 4, 10), &config(2, 16), &Silent).unwrap_err().to_string().contains("two different"));
    assert!(baselines(Vec::new(), &config(2, 16), &Silent).is_err());
}
