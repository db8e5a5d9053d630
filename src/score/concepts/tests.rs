use super::*;
use crate::rng::Rng;

const N: usize = 6000;

fn known(n: usize) -> Vec<Known> {
    (0..n).map(|i| Known { name: format!("c{i}"), class: if i < 2 { "early" } else { "late" }.to_owned() }).collect()
}

fn splits() -> (Vec<u32>, Vec<u32>) {
    (0..N as u32).partition(|r| r % 10 < 6)
}

/// Labels of four concepts with prevalence 0.3, 0.1, 0.02 and 0 beside codes in which latent 3 + c fires with concept c.
fn planted(misses: f64) -> (Vec<u128>, Codes) {
    let mut rng = Rng::stream(1, "test", 0);
    let (mut labels, mut codes) = (Vec::new(), Codes::new(12));
    for _ in 0..N {
        let mut label = 0u128;
        let mut row = Vec::new();
        for (c, p) in [0.3, 0.1, 0.02].into_iter().enumerate() {
            let holds = rng.uniform() < p;
            label |= u128::from(holds) << c;
            if holds && rng.uniform() >= misses {
                row.push((3 + c as u32, 1.0 + rng.uniform() as f32));
            } else if !holds && rng.uniform() < 0.3 {
                // Weak firing elsewhere: only a threshold tells the two apart.
                row.push((3 + c as u32, 0.1 + 0.8 * rng.uniform() as f32));
            }
        }
        row.push((rng.below(3) as u32, 5.0));
        row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        labels.push(label);
        codes.push_row(row.into_iter());
    }
    (labels, codes)
}

#[test]
fn planted_latents_are_found() {
    let (labels, codes) = planted(0.0);
    let (selection, test) = splits();
    let concepts = known(4);
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    let recovery = latents("codes", &codes, &task).unwrap();
    assert_eq!(recovery.skipped, ["c3"]);
    for (c, score) in recovery.concepts.iter().enumerate() {
        assert_eq!(score.feature, Some(3 + c as u32));
        assert!(score.f1 > 0.999 && (0.85..=1.05).contains(&score.threshold), "{score:?}");
        assert_eq!(score.positives, task.positives(&test, c));
    }
    let late = recovery.class("late").unwrap();
    assert_eq!((late.concepts, late.skipped, late.recovered), (1, 1, 1));
    assert_eq!(recovery.classes.iter().map(|c| c.class.as_str()).collect::<Vec<_>>(), ["early", "late"]);
}

/// The other direction: each latent's best concept is the one that was planted into it, with the same figures.
#[test]
fn latents_find_their_concepts() {
    let (labels, codes) = planted(0.25);
    let (selection, test) = splits();
    let concepts = known(4);
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    let recovery = latents("codes", &codes, &task).unwrap();
    let found = by_latent(&codes, &task).unwrap();
    assert_eq!(found.len(), 12);
    for score in &recovery.concepts {
        assert_eq!(found[score.feature.unwrap() as usize].as_ref(), Some(score));
    }
    assert!(found[6..].iter().all(Option::is_none), "latents that are never active find nothing");
}

#[test]
fn misses_lower_recall_as_they_should() {
    let (labels, codes) = planted(0.25);
    let (selection, test) = splits();
    let concepts = known(3);
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    let score = &latents("codes", &codes, &task).unwrap().concepts[0];
    assert!((score.recall - 0.75).abs() < 0.05 && score.precision > 0.999, "{score:?}");
    assert!((score.f1 - 2.0 * score.precision * score.recall / (score.precision + score.recall)).abs() < 1e-12);
}

/// The fast sweep finds what trying every threshold finds, ties included.
#[test]
fn sweep_is_exhaustive() {
    let mut rng = Rng::stream(2, "test", 0);
    let n = 300;
    let labels: Vec<u128> = (0..n).map(|_| u128::from(rng.below(8))).collect();
    // Few distinct values, so runs of ties abound; the first dimension leans on concept 0.
    let x: Vec<f32> = (0..n)
        .flat_map(|r| [(rng.below(5) as f32) + 2.0 * (labels[r] & 1) as f32, rng.below(4) as f32 - 2.0, rng.normal() as f32])
        .collect();
    let rows: Vec<u32> = (0..n as u32).collect();
    let columns = Columns::from_dense(&x, 3);
    let best = sweep_columns(&columns, &labels, &rows, 3);
    for (c, best) in best.iter().enumerate() {
        let positives = labels.iter().filter(|l| *l >> c & 1 == 1).count() as u64;
        let mut highest = 0f64;
        for (j, sign) in (0..3).flat_map(|j| [(j, 1.0), (j, -1.0)]) {
            let value = |r: usize| sign * f64::from(x[r * 3 + j]);
            for at in 0..n {
                let threshold = value(at) - 1e-9;
                let scores: Vec<_> = (0..n).map(|r| (value(r), labels[r] >> c & 1 == 1)).collect();
                highest = highest.max(confusion(&scores, threshold).f1(positives));
            }
        }
        let (column, cut) = best.unwrap();
        assert!((cut.f1 - highest).abs() < 1e-12, "{} {highest}", cut.f1);
        let again = columns.confusion(column, &cut, |r| (true, labels[r as usize] >> c & 1 == 1));
        assert!((again.f1(positives) - highest).abs() < 1e-12);
    }
}

/// A concept that is a linear direction of dense activations: the probe finds it, no single neuron does; a concept that is a token is
/// found by the token controls; one that context decides is not.
#[test]
fn controls_see_what_they_can() {
    let mut rng = Rng::stream(3, "test", 0);
    let d = 16;
    // Spread over all dimensions: 6 standard deviations along it, 1.5 along each.
    let direction = |i: usize| if i.is_multiple_of(3) { -1.5 } else { 1.5 };
    let (mut labels, mut tokens, mut x) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..N {
        let token = rng.below(8) as u32;
        let linear = rng.uniform() < 0.15;
        let is_token = token == 3 || token == 5;
        labels.push(u128::from(linear) | u128::from(is_token) << 1 | u128::from(token == 6) << 2);
        tokens.push(token);
        x.extend((0..d).map(|i| (rng.normal() + if linear { direction(i) } else { 0.0 }) as f32));
    }
    let (selection, test) = splits();
    let concepts = known(3);
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    let probe = probe("probe", &x, d, &task, &ProbeOptions::default()).unwrap();
    let neurons = neurons("neurons", &x, d, &task).unwrap();
    assert!(probe.concepts[0].f1 > 0.97, "{:?}", probe.concepts[0]);
    assert!(neurons.concepts[0].f1 < 0.9, "{:?}", neurons.concepts[0]);
    let word = word_alone("word", &tokens, &task).unwrap();
    let token = best_token("token", &tokens, &task).unwrap();
    assert!(word.concepts[0].f1 < 0.35 && token.concepts[0].f1 < 0.35);
    // Two tokens make the concept: together they are exact, one alone has half the recall.
    assert_eq!(word.concepts[1].f1, 1.0);
    assert!((token.concepts[1].f1 - 2.0 / 3.0).abs() < 0.05);
    assert_eq!((token.concepts[2].f1, token.concepts[2].feature), (1.0, Some(6)));
}

/// A neuron whose low values mean the concept is found by its negative.
#[test]
fn neurons_are_read_in_both_signs() {
    let labels: Vec<u128> = (0..N).map(|r| u128::from(r % 7 == 0)).collect();
    let x: Vec<f32> = (0..N).flat_map(|r| [0.5, if r % 7 == 0 { -3.0 } else { 1.0 + (r % 3) as f32 }]).collect();
    let (selection, test) = splits();
    let concepts = known(1);
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    let score = &neurons("neurons", &x, 2, &task).unwrap().concepts[0];
    assert_eq!((score.f1, score.feature, score.negated, score.threshold), (1.0, Some(1), true, 1.0));
}

#[test]
fn the_impossible_is_refused() {
    let (labels, codes) = planted(0.0);
    let (selection, test) = splits();
    let concepts = known(3);
    let good = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: 20 };
    assert!(latents("x", &codes, &Task { labels: &labels[1..], ..good.clone() }).is_err());
    assert!(latents("x", &codes, &Task { test: &selection, ..good.clone() }).is_err());
    assert!(latents("x", &codes, &Task { test: &[N as u32], ..good.clone() }).is_err());
    assert!(neurons("x", &[f32::NAN; N], 1, &good).is_err());
    assert!(neurons("x", &[0.0; N + 1], 2, &good).is_err());
    assert!(probe("x", &[0.0; N], 1, &Task { selection: &[], ..good.clone() }, &ProbeOptions::default()).is_err());
    // A constant activation is no reason to fail.
    assert!(probe("x", &[1.0; N], 1, &good, &ProbeOptions::default()).is_ok());
}
