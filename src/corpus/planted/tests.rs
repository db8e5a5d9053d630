//! Frequencies and moments against the formulas, identities of directions, determinism.

use super::*;

const SEED: u64 = 3;

fn planted(text: &str) -> Planted {
    Planted::new(&PlantedConfig::parse(text).unwrap(), SEED).unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Small variants of every kind.
const ALL: &[&str] = &[
    "zipf?d_in=16,n_features=32,l0=3,decorrelate_rounds=20",
    "hierarchy?sibling_correlation=0.3",
    "tree",
    "tree?exclusive=true,d_in=40,bias_norm=1,noise=0.1",
    "synth?d_in=32,n_features=200,roots=8,depth=2,orthogonalise_steps=10",
];

/// Share of rows on which each feature fires, and the mean of its magnitudes there.
fn activity(codes: &Codes) -> (Vec<f64>, Vec<f64>) {
    let (mut fires, mut sum) = (vec![0f64; codes.d_sae], vec![0f64; codes.d_sae]);
    for (&g, &v) in codes.indices.iter().zip(&codes.values) {
        fires[g as usize] += 1.0;
        sum[g as usize] += f64::from(v);
    }
    let means = sum.iter().zip(&fires).map(|(s, f)| s / f).collect();
    (fires.iter().map(|f| f / codes.n_rows() as f64).collect(), means)
}

/// Every frequency within 5 standard errors of its probability (plus `bias` of it).
fn assert_firing(firing: &[f64], found: &[f64], n: usize, bias: f64, what: &str) {
    for (g, (p, f)) in firing.iter().zip(found).enumerate() {
        let error = 5.0 * (p * (1.0 - p) / n as f64).sqrt() + bias * p;
        assert!((p - f).abs() < error + 1.0 / n as f64, "{what}: feature {g} fires on {f}, {p} expected");
    }
}

#[test]
fn rows_are_the_sum_they_claim_to_be() {
    for text in ALL {
        let planted = planted(text);
        let (truth, d) = (planted.truth(), planted.d_in());
        let rows = planted.rows(0..500);
        let noise = planted.config.spec().noise();
        let (mut sq, mut worst) = (0.0, 0f64);
        for (r, x) in rows.x.chunks(d).enumerate() {
            let (features, values) = rows.codes.row(r);
            assert!(values.iter().all(|&v| v > 0.0) && values.is_sorted_by(|a, b| a >= b), "{text}");
            for (c, &x) in x.iter().enumerate() {
                let sum: f64 = features.iter().zip(values).map(|(&g, &v)| f64::from(v) * f64::from(truth.feature(g as usize)[c])).sum();
                let left = f64::from(x) - sum - f64::from(truth.bias[c]);
                sq += left * left;
                worst = worst.max(left.abs());
            }
        }
        let std = (sq / rows.x.len() as f64).sqrt();
        assert!(if noise > 0.0 { (std / noise - 1.0).abs() < 0.05 } else { worst < 1e-5 }, "{text}: {std} {worst}");
        for g in 0..truth.len() {
            assert!((dot(truth.feature(g), truth.feature(g)) - 1.0).abs() < 1e-5, "{text}: feature {g} is no unit vector");
        }
    }
}

#[test]
fn neither_threads_nor_ranges_matter() {
    for text in ALL {
        let in_pool = |threads: usize, ranges: &[Range<u64>]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let planted = planted(text);
                let mut all = PlantedRows { x: vec![], codes: Codes::new(planted.truth().len()) };
                for range in ranges {
                    let rows = planted.rows(range.clone());
                    all.x.extend(rows.x);
                    all.codes.extend(&rows.codes);
                }
                (planted.truth().clone(), all)
            })
        };
        let whole = in_pool(1, std::slice::from_ref(&(0..97)));
        assert_eq!(whole, in_pool(3, &[0..1, 1..50, 50..97]), "{text}");
        assert_eq!(whole.1.codes, planted(text).codes_of(&(0..97).collect::<Vec<_>>()));
        let other = Planted::new(planted(text).config(), SEED + 1).unwrap();
        assert_ne!(whole.1.x, other.rows(0..97).x);
        assert_ne!(whole.0.features, other.truth().features);
    }
}

#[test]
fn zipf_fires_and_weighs_by_its_formulas() {
    let planted = planted("zipf");
    let (truth, n) = (planted.truth(), 40_000);
    let rows = planted.rows(0..n as u64);
    let (fires, means) = activity(&rows.codes);
    assert!((truth.l0() - 5.0).abs() < 1e-9);
    assert!((truth.firing[0] / truth.firing[127] - 128f64.powf(0.7)).abs() < 1e-9);
    assert_firing(&truth.firing, &fires, n, 1e-4, "zipf");
    for (g, mean) in means.iter().enumerate() {
        let want = 1.5 - 0.5 * g as f64 / 127.0;
        assert!((mean - want).abs() < 5.0 * 0.25 / (n as f64 * fires[g]).sqrt() + 1e-4, "{g}: {mean} {want}");
    }
    assert!((dot(&truth.bias, &truth.bias).sqrt() - 0.3).abs() < 1e-6);
    // Pushed apart: the mean squared cosine comes near the Welch bound (G - d) / (d (G - 1)).
    let mut sq = 0.0;
    for a in 0..128 {
        sq += (0..128).filter(|&b| b != a).map(|b| dot(truth.feature(a), truth.feature(b)).powi(2)).sum::<f64>();
    }
    let (mean_sq, welch) = (sq / (128.0 * 127.0), 64.0 / (64.0 * 127.0));
    assert!((0.9999..1.05).contains(&(mean_sq / welch)), "{mean_sq} {welch}");
    // A cap that binds: the rest is raised so that L0 stays.
    let capped = firing::zipf(128, 0.7, 8.0, 0.5);
    assert!((capped.iter().sum::<f64>() - 8.0).abs() < 1e-9 && capped[0] == 0.5 && capped.is_sorted_by(|a, b| a >= b));
}

#[test]
fn the_hierarchy_is_the_papers() {
    let n = 40_000;
    for rho in [0.0, 0.3, 0.8] {
        let planted = planted(&format!("hierarchy?sibling_correlation={rho}"));
        let truth = planted.truth();
        let group = |g: usize| truth.parents[g].map_or(99, |p| p as usize);
        for a in 0..20 {
            for b in 0..a {
                let cos = dot(truth.feature(a), truth.feature(b));
                let want = if group(a) == group(b) { rho } else { 0.0 };
                assert!((cos - want).abs() < 1e-6, "{rho}: {a} {b} {cos}");
            }
        }
        assert!((truth.l0() - 1.36).abs() < 1e-12);
        let rows = planted.rows(0..n as u64);
        let (fires, means) = activity(&rows.codes);
        assert_firing(&truth.firing, &fires, n, 0.0, "hierarchy");
        assert!(means.iter().all(|m| (m - 1.5).abs() < 0.05), "{means:?}");
        for r in 0..n {
            let (on, _) = rows.codes.row(r);
            let (parents, children): (Vec<u32>, Vec<u32>) = on.iter().partition(|&&g| truth.parents[g as usize].is_none());
            assert!(parents.len() == 1 && children.len() <= 1, "{on:?}");
            assert!(children.iter().all(|&c| truth.parents[c as usize] == Some(parents[0])), "{on:?}");
        }
    }
}

#[test]
fn trees_fire_downwards() {
    for (text, exclusive) in [("tree", false), ("tree?exclusive=true", true)] {
        let planted = planted(text);
        let (truth, n) = (planted.truth(), 40_000);
        assert_eq!(truth.len(), 4 * (1 + 3 + 9));
        assert_eq!(truth.levels().iter().filter(|&&l| l == 2).count(), 36);
        let rows = planted.rows(0..n as u64);
        let (fires, means) = activity(&rows.codes);
        // A magnitude of N(1, 1/16) is clipped to nothing once in 30,000.
        assert_firing(&truth.firing, &fires, n, 1e-3, text);
        assert!(means.iter().all(|m| (m - 1.0).abs() < 0.05));
        let mut most_siblings = 0;
        for r in 0..n {
            let (on, _) = rows.codes.row(r);
            for &g in on {
                most_siblings = most_siblings.max(on.iter().filter(|&&o| truth.parents[o as usize].is_some_and(|p| p == g)).count());
            }
        }
        assert_eq!(most_siblings, if exclusive { 1 } else { 3 }, "{text}");
        for a in 0..truth.len() {
            assert!((0..a).all(|b| dot(truth.feature(a), truth.feature(b)).abs() < 1e-6), "orthonormal where there is room");
        }
    }
}

#[test]
fn synth_keeps_its_frequencies_and_its_correlations() {
    let n = 30_000;
    let base = "synth?d_in=64,n_features=128,roots=4,depth=2,max_p=0.3,min_p=0.02,orthogonalise_steps=60";
    // Without correlation the frequencies are exact.
    let planted = planted(&format!("{base},correlation_scale=0"));
    let truth = planted.truth();
    let rows = planted.rows(0..n as u64);
    let (fires, means) = activity(&rows.codes);
    assert_firing(&truth.firing, &fires, n, 2e-3, "synth");
    // Compensation brings children towards the p of their rank, from below where siblings together are likelier than their parent.
    let p = firing::zipf_between(128, 0.5, 0.02, 0.3);
    assert!((p[0] - 0.3).abs() < 1e-12 && (p[127] - 0.02).abs() < 1e-12);
    assert!((0..128).all(|g| truth.firing[g] <= p[g] * 1.2), "{:?}", &truth.firing[..20]);
    assert!((0..4).chain(84..128).all(|g| truth.firing[g] == p[g]));
    assert!(truth.firing[4] > 0.5 * p[4], "{} {}", truth.firing[4], p[4]);
    assert!(means.iter().all(|&m| m > 3.0 && m < 7.0), "{means:?}");
    for r in 0..n {
        let (on, _) = rows.codes.row(r);
        for &g in on {
            if let Some(parent) = truth.parents[g as usize] {
                assert!(on.contains(&parent), "a child without its parent");
                assert!(on.iter().filter(|&&o| truth.parents[o as usize] == Some(parent)).count() == 1, "two siblings");
            }
        }
    }
    // With it, free features keep their marginals, and their pairs are those of the copula: counted over many rows, the covariance of
    // two indicators has the sign of F_i . F_j where that is large.
    let planted = self::planted(&format!("{base},correlation_scale=0.15"));
    let truth = planted.truth();
    let rows = planted.rows(0..n as u64);
    let free = 4 * (1 + 4 + 16)..128;
    let (fires, _) = activity(&rows.codes);
    assert_firing(&truth.firing[free.clone()], &fires[free.clone()], n, 2e-3, "free");
    let mut rng = Rng::stream(SEED, "planted.correlation", 0);
    let f: Vec<f32> = (0..128 * 25).map(|_| (0.15 * rng.normal()) as f32).collect();
    let (mut both, mut agree, mut pairs) = (vec![0f64; 128 * 128], 0, 0);
    for r in 0..n {
        let (on, _) = rows.codes.row(r);
        on.iter().for_each(|&a| on.iter().for_each(|&b| both[a as usize * 128 + b as usize] += 1.0));
    }
    for a in free.clone() {
        for b in free.start..a {
            let rho = dot(&f[a * 25..a * 25 + 25], &f[b * 25..b * 25 + 25]);
            if rho.abs() > 0.25 {
                pairs += 1;
                agree += usize::from((both[a * 128 + b] / n as f64 - fires[a] * fires[b]) * rho > 0.0);
            }
        }
    }
    assert!(pairs > 20 && agree as f64 > 0.9 * pairs as f64, "{agree} of {pairs}");
}

#[test]
fn adam_pushes_directions_apart() {
    let mean_sq = |text: &str| {
        let planted = planted(text);
        let truth = planted.truth();
        let n = truth.len();
        (0..n).flat_map(|a| (0..a).map(move |b| (a, b))).map(|(a, b)| dot(truth.feature(a), truth.feature(b)).powi(2)).sum::<f64>()
            / (n * (n - 1) / 2) as f64
    };
    let of = |steps: usize| mean_sq(&format!("synth?d_in=32,n_features=100,roots=4,depth=1,orthogonalise_steps={steps}"));
    let (before, after) = (of(0), of(100));
    assert!(after < 0.95 * before, "{before} {after}");
}

#[test]
fn impossible_settings_name_the_remedy() {
    for (text, key, remedy) in [
        ("zpif", "planted.kind", "zipf, hierarchy"),
        ("zipf?l00=3", "planted.zipf", "docs/planted.md"),
        ("zipf?l0=70", "planted.l0", "lower l0"),
        ("zipf?max_p=0", "planted.max_p", "choose a value from"),
        ("hierarchy?sibling_correlation=1", "planted.sibling_correlation", "0.99"),
        ("hierarchy?child_std=-1", "planted.child_std", "choose a value from 0"),
        ("tree?exclusive=true,child_p=0.5", "planted.child_p", "exclusive = false"),
        ("tree?depth=40", "planted.depth", "lower it"),
        ("synth?roots=1000", "planted.roots", "raise n_features"),
        ("synth?correlation_scale=0.3", "planted.correlation_scale", "0.2"),
        ("synth?min_p=0.9", "planted.min_p", "to 0.4"),
        ("zipf?noise=nan", "planted.noise", "from 0"),
        ("zipf?l0", "assigns nothing", "key=value"),
    ] {
        let e = PlantedConfig::parse(text).unwrap_err();
        let message = e.to_string();
        assert!(message.contains(key) && message.contains(remedy) && e.exit_code() == 2, "{text}: {message}");
    }
}

#[test]
fn the_manifest_brings_the_generator_back() {
    let dir = tempfile::tempdir().unwrap();
    for text in ALL {
        let planted = planted(text);
        let corpus: Value = serde_json::from_str(&planted.provenance(10).unwrap().to_string()).unwrap();
        let made_again = Planted::of_corpus(&corpus, dir.path()).unwrap().unwrap();
        assert_eq!((made_again.truth(), made_again.rows(0..5)), (planted.truth(), planted.rows(0..5)), "{text}");
        // From the file beside; a damaged one is not believed.
        planted.truth().save(dir.path()).unwrap();
        assert_eq!(Planted::of_corpus(&corpus, dir.path()).unwrap().unwrap().truth(), planted.truth());
        std::fs::write(dir.path().join(TRUTH_FILE), b"damaged").unwrap();
        assert_eq!(Planted::of_corpus(&corpus, dir.path()).unwrap().unwrap().truth(), planted.truth());
        std::fs::remove_file(dir.path().join(TRUTH_FILE)).unwrap();
        let mut other = corpus.clone();
        other["generator"] = json!(99);
        assert!(Planted::of_corpus(&other, dir.path()).unwrap_err().to_string().contains("version 99"));
        let mut other = corpus;
        other["seed"] = json!(77);
        assert!(Planted::of_corpus(&other, dir.path()).unwrap_err().to_string().contains("differ"));
    }
    assert!(Planted::of_corpus(&json!({ "kind": "vectors" }), dir.path()).unwrap().is_none());
    assert!(Planted::of_corpus(&Value::Null, dir.path()).unwrap().is_none());
}
