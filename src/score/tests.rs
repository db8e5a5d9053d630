//! Metrics against slow obvious computations, planted cases that tell the look-alikes apart, and what must not matter (cuts, threads).

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::dictionary::{Activation, Provenance};
use crate::kernels::Coder;
use crate::progress::Silent;
use crate::rng::Rng;

/// Rows as batches of `size`.
pub(super) fn batches(x: &[f32], d: usize, size: usize) -> Vec<Result<Batch>> {
    let mut out = Vec::new();
    for (i, x) in x.chunks(size * d).enumerate() {
        let n = x.len() / d;
        let position: Vec<u32> = (0..n).map(|r| (i * size + r) as u32).collect();
        out.push(Ok(Batch { n, x: x.to_vec(), doc_id: vec![3; n], position, token_id: vec![] }));
    }
    out
}

/// Rows with correlated columns of different means and scales.
pub(super) fn rows(seed: u64, n: usize, d: usize) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "test rows", 0);
    let mut x = Vec::with_capacity(n * d);
    for _ in 0..n {
        let common = rng.normal();
        x.extend((0..d).map(|c| (5.0 * c as f64 + (1.0 + c as f64) * rng.normal() + 2.0 * common) as f32));
    }
    x
}

/// `xhat = x + offset`: plus and minus each axis, ReLU.
pub(super) fn identity(d: usize, offset: &[f32]) -> Dictionary {
    let eye = Tensor::eye(d, DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::cat(&[&eye, &eye.neg().unwrap()], 0).unwrap();
    let coder = Coder {
        w_enc: w.clone(),
        b_enc: Tensor::zeros(2 * d, DType::F32, &Device::Cpu).unwrap(),
        w_dec: w,
        b_dec: Tensor::from_slice(offset, d, &Device::Cpu).unwrap(),
    };
    Dictionary::new(coder, Activation::Relu, false, Provenance::default()).unwrap()
}

/// `xhat = value`, whatever x.
pub(super) fn constant(value: &[f32]) -> Dictionary {
    let mut dictionary = identity(value.len(), value);
    dictionary.activation = Activation::Threshold { threshold: 1e30 };
    dictionary
}

pub(super) fn random_dictionary(seed: u64, d: usize, d_sae: usize, k: usize) -> Dictionary {
    let mut rng = Rng::stream(seed, "test dictionary", 0);
    let mut draw = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| (rng.normal() / (d as f64).sqrt()) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let coder = Coder { w_enc: draw(&[d_sae, d]), b_enc: draw(&[d_sae]), w_dec: draw(&[d_sae, d]), b_dec: draw(&[d]) };
    Dictionary::new(coder, Activation::TopK { k }, true, Provenance::default()).unwrap()
}

pub(super) fn run(dictionary: &Dictionary, x: &[f32], size: usize) -> Scores {
    score(dictionary, batches(x, dictionary.d_in(), size), &ScoreConfig::default(), &Silent).unwrap()
}

fn get(scores: &Scores, id: &str) -> f64 {
    *scores.metrics.get(id).unwrap_or_else(|| panic!("no {id}"))
}

/// Mean row and total variance, two passes in f64.
fn two_pass(x: &[f32], d: usize) -> (Vec<f64>, f64) {
    let n = x.len() / d;
    let mut mean = vec![0f64; d];
    x.chunks(d).for_each(|row| row.iter().zip(&mut mean).for_each(|(v, m)| *m += f64::from(*v) / n as f64));
    let total = x.chunks(d).map(|row| row.iter().zip(&mean).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum::<f64>()).sum();
    (mean, total)
}

#[test]
fn the_identity_explains_everything() {
    let x = rows(1, 500, 6);
    let s = run(&identity(6, &[0.0; 6]), &x, 64);
    for (id, want) in [
        ("fvu", 0.0),
        ("explained_variance", 1.0),
        ("mse", 0.0),
        ("frac_variance_explained_dl", 1.0),
        ("explained_variance_legacy", 1.0),
        ("explained_variance_saebench", 1.0),
        ("fvu_sparsify", 0.0),
        ("fvu_row", 0.0),
        ("relative_reconstruction_bias", 1.0),
        ("l2_ratio", 1.0),
        ("rows", 500.0),
        ("enc_dec_cosine", 1.0),
        ("decoder_coherence", 1.0), // each atom has its opposite
    ] {
        assert_eq!(get(&s, id), want, "{id}");
    }
    assert!((get(&s, "cosine") - 1.0).abs() < 1e-12);
}

#[test]
fn the_mean_of_the_scored_rows_explains_nothing() {
    let x = rows(2, 5000, 6);
    let (mean, _) = two_pass(&x, 6);
    let mean: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
    let s = run(&constant(&mean), &x, 100);
    assert!(get(&s, "explained_variance").abs() < 1e-6, "{}", get(&s, "explained_variance"));
    assert!(get(&s, "frac_variance_explained_dl").abs() < 1e-6);
    assert_eq!((get(&s, "l0"), get(&s, "dead_fraction"), get(&s, "alive")), (0.0, 1.0, 0.0));
}

#[test]
fn fvu_and_its_kin_equal_two_passes_in_f64() {
    let (n, d) = (3000, 12);
    let x = rows(3, n, d);
    let dictionary = random_dictionary(3, d, 40, 5);
    let s = run(&dictionary, &x, 333);
    let (_, x_hat) = dictionary.reconstruct(&Tensor::from_slice(&x, (n, d), &Device::Cpu).unwrap()).unwrap();
    let x_hat: Vec<f32> = x_hat.flatten_all().unwrap().to_vec1().unwrap();
    let r: Vec<f32> = x.iter().zip(&x_hat).map(|(a, b)| a - b).collect();
    let sq: f64 = x.iter().zip(&x_hat).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let (_, total) = two_pass(&x, d);
    let close = |id: &str, want: f64, tolerance: f64| assert!((get(&s, id) / want - 1.0).abs() < tolerance, "{id}: {} {want}", get(&s, id));
    close("fvu", sq / total, 1e-12);
    close("explained_variance", 1.0 - sq / total, 1e-12);
    close("frac_variance_explained_dl", 1.0 - two_pass(&r, d).1 / total, 1e-5); // r in f32 here
    close("mse", sq / (n * d) as f64, 1e-12);
    close("mse_per_token", sq / n as f64, 1e-12);
    let (mut cosine, mut ratio, mut nmse, mut fvu_row, mut norm, mut dots) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for ((x, y), r) in x.chunks(d).zip(x_hat.chunks(d)).zip(r.chunks(d)) {
        cosine += dot(x, y) / (dot(x, x) * dot(y, y)).sqrt() / n as f64;
        ratio += (dot(y, y) / dot(x, x)).sqrt() / n as f64;
        nmse += dot(r, r) / dot(x, x) / n as f64;
        fvu_row += two_pass(r, 1).1 / two_pass(x, 1).1 / n as f64;
        norm += dot(y, y);
        dots += dot(x, y);
    }
    close("cosine", cosine, 1e-12);
    close("l2_ratio", ratio, 1e-12);
    close("nmse", nmse, 1e-5);
    close("fvu_row", fvu_row, 1e-5);
    close("relative_reconstruction_bias", norm / dots, 1e-12);
    assert_eq!((get(&s, "l0"), get(&s, "l0_max")), (5.0, 5.0));
}

#[test]
fn a_large_mean_does_not_cancel() {
    // Spread 1 around 6000 (no power of two is near, so f32 adds the offset exactly): E x^2 - (E x)^2 in f32 would have no digit left.
    let (n, d) = (2000, 4);
    let mut rng = Rng::stream(4, "test", 0);
    let x: Vec<f32> = (0..n * d).map(|_| (6000.0 + rng.normal()) as f32).collect();
    let offset = [0.25f32, 0.0, 0.0, 0.0];
    let s = run(&identity(d, &offset), &x, 128);
    let (_, total) = two_pass(&x, d);
    assert!((get(&s, "fvu") / (n as f64 * 0.0625 / total) - 1.0).abs() < 1e-9, "{}", get(&s, "fvu"));
}

#[test]
fn an_offset_tells_the_forms_apart() {
    // SAEBench's documented case: d 16, mean 3, unit variance, error of variance .09 per value, here as a constant offset of .3.
    let (n, d) = (20_480, 16);
    let mut rng = Rng::stream(5, "test", 0);
    let x: Vec<f32> = (0..n * d).map(|_| (3.0 + rng.normal()) as f32).collect();
    let s = run(&identity(d, &[0.3; 16]), &x, 1000);
    assert!((get(&s, "explained_variance") - 0.91).abs() < 2e-3, "{}", get(&s, "explained_variance"));
    assert!((get(&s, "explained_variance_saebench") - 0.976).abs() < 2e-3, "{}", get(&s, "explained_variance_saebench"));
    assert!((get(&s, "frac_variance_explained_dl") - 1.0).abs() < 1e-9, "an offset is invisible to it");
    assert!(get(&s, "fvu_row") < 1e-9, "so it is to the variance around the row's mean");
    // mean of 1 / ||x - mean||^2 with 16 degrees of freedom is 1/14, so the legacy form reads 1 - 1.44 / 14.
    assert!((get(&s, "explained_variance_legacy") - (1.0 - 1.44 / 14.0)).abs() < 2e-3, "{}", get(&s, "explained_variance_legacy"));
    assert!((get(&s, "fvu_sparsify") - get(&s, "fvu")).abs() < 1e-4);
}

#[test]
fn batch_means_leave_the_last_short_block_out_and_only_that() {
    let d = 3;
    let x = rows(6, 50, d);
    let dictionary = identity(d, &[1.0, 0.0, 0.0]);
    let with = |x: &[f32]| score(&dictionary, batches(x, d, 7), &ScoreConfig { block_rows: 49 }, &Silent).unwrap();
    let (whole, cut) = (with(&x), with(&x[..49 * d]));
    assert_eq!(get(&whole, "fvu_sparsify"), get(&cut, "fvu_sparsify"));
    assert_eq!(get(&whole, "explained_variance_legacy"), get(&cut, "explained_variance_legacy"));
    assert_ne!(get(&whole, "fvu"), get(&cut, "fvu"));
    let only = with(&x[..10 * d]);
    assert!((get(&only, "fvu_sparsify") - get(&only, "fvu")).abs() < 1e-12, "a single block is the whole set");
}

#[test]
fn neither_cuts_nor_threads_matter() {
    let (n, d) = (2500, 10);
    let x = rows(7, n, d);
    let dictionary = random_dictionary(7, d, 300, 4);
    let in_pool = |threads: usize, size: usize, block_rows: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| score(&dictionary, batches(&x, d, size), &ScoreConfig { block_rows }, &Silent).unwrap())
    };
    let bits = |s: &Scores| s.metrics.iter().map(|(id, v)| (id.to_string(), v.to_bits())).collect::<Vec<_>>();
    let reference = in_pool(1, n, 512);
    for (threads, size) in [(1, 1), (3, 7), (2, 511), (4, 513)] {
        let other = in_pool(threads, size, 512);
        assert_eq!(bits(&reference), bits(&other), "{threads} threads, batches of {size}");
        assert_eq!(reference.latents, other.latents);
    }
    // Another block size moves only the forms that depend on a batch.
    let other = in_pool(2, 100, 64);
    let depends = ["explained_variance_legacy", "fvu_sparsify"];
    for (id, &v) in reference.metrics.iter().filter(|(id, _)| !depends.contains(id)) {
        let w = get(&other, id);
        assert!((v - w).abs() <= 1e-6 * v.abs(), "{id}: {v} {w}");
    }
    assert_ne!(get(&reference, "fvu_sparsify"), get(&other, "fvu_sparsify"));
}

#[test]
fn several_dictionaries_score_as_each_alone() {
    let x = rows(8, 300, 5);
    let (a, b) = (random_dictionary(8, 5, 20, 2), random_dictionary(9, 5, 30, 3));
    let together = score_all(&[&a, &b], batches(&x, 5, 50), &ScoreConfig::default(), &Silent).unwrap();
    assert_eq!(together[0].metrics, run(&a, &x, 50).metrics);
    assert_eq!(together[1].metrics, run(&b, &x, 50).metrics);
}

#[test]
fn nan_is_an_error_that_says_where() {
    let mut x = rows(9, 100, 4);
    x[4 * 57 + 2] = f32::NAN;
    x[4 * 60] = f32::INFINITY;
    let error = score(&identity(4, &[0.0; 4]), batches(&x, 4, 10), &ScoreConfig::default(), &Silent).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::NotFinite { count: 2, .. }) && text.contains("document 3, position 57"), "{text}");
}

#[test]
fn requests_that_cannot_be_met() {
    let d = identity(4, &[0.0; 4]);
    let empty = score(&d, Vec::new(), &ScoreConfig::default(), &Silent).unwrap_err();
    assert_eq!(empty.exit_code(), 2, "{empty}");
    let wide = score(&d, batches(&rows(1, 8, 5), 5, 4), &ScoreConfig::default(), &Silent).unwrap_err();
    assert!(matches!(wide, Error::Width { expected: 4, got: 5, .. }), "{wide}");
    assert!(score(&d, batches(&rows(1, 8, 4), 4, 4), &ScoreConfig { block_rows: 0 }, &Silent).is_err());
}

#[test]
fn l0_and_density_have_their_distributions() {
    // Relu over +-axes of d = 2: a row (a, b) fires as many latents as it has non-zero values. Twenty rows: 10 with none, 9 with one
    // (latent 0), 1 with two (latents 0 and 3).
    let mut x = vec![0f32; 40];
    for r in 10..20 {
        x[2 * r] = r as f32;
    }
    x[39] = -2.0;
    let s = run(&identity(2, &[0.0; 2]), &x, 6);
    for (id, want) in [
        ("l0", 11.0 / 20.0),
        ("l0_min", 0.0),
        ("l0_p05", 0.0),
        ("l0_p50", 0.0),
        ("l0_p95", 1.0),
        ("l0_max", 2.0),
        ("alive", 2.0),
        ("dead_fraction", 0.5),
        ("dense_fraction", 0.25), // latent 0 fires on half of the rows, latent 3 on exactly .05
        ("density_p05", 0.0),
        ("density_p50", 0.0),
        ("density_p95", 0.5),
        ("density_max", 0.5),
    ] {
        assert_eq!(get(&s, id), want, "{id}");
    }
    assert_eq!(s.latents.fires, [10, 0, 0, 1]);
    assert_eq!(s.latents.max, [19.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 2.0]);
}

#[test]
fn the_table_of_latents_is_written_and_says_so() {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float32Type, Float64Type, UInt32Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let x: Vec<f32> = vec![1.0, 0.0, 3.0, 0.0, 0.0, -2.0, 0.0, 0.0];
    let s = run(&identity(2, &[0.0; 2]), &x, 3);
    let dir = tempfile::tempdir().unwrap();
    s.latents.save(dir.path()).unwrap();
    let open = || std::fs::File::open(dir.path().join(LATENTS_FILE)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(open()).unwrap();
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
    assert!(metadata.iter().any(|e| e.key == "rows" && e.value.as_deref() == Some("4")));
    let table = reader.build().unwrap().next().unwrap().unwrap();
    assert_eq!(table.column_by_name("latent").unwrap().as_primitive::<UInt32Type>().values(), &[0, 1, 2, 3]);
    assert_eq!(table.column_by_name("density").unwrap().as_primitive::<Float64Type>().values(), &[0.5, 0.0, 0.0, 0.25]);
    let mean = table.column_by_name("mean_active").unwrap().as_primitive::<Float64Type>();
    assert!(mean.value(0) == 2.0 && mean.is_null(1) && mean.value(3) == 2.0);
    assert!(table.column_by_name("max").unwrap().as_primitive::<Float32Type>().is_null(2));
    assert!(table.column_by_name("dead").unwrap().as_boolean().value(1));
    assert!(table.column_by_name("dense").unwrap().as_boolean().value(0));
    assert_eq!(table.column_by_name("max_cos").unwrap().as_primitive::<Float32Type>().values(), &[1.0; 4]);
    let first = std::fs::read(dir.path().join(LATENTS_FILE)).unwrap();
    s.latents.save(dir.path()).unwrap();
    assert_eq!(first, std::fs::read(dir.path().join(LATENTS_FILE)).unwrap(), "same table, same bytes");
}

#[test]
fn ids_are_unique_and_every_family_keeps_its_promise() {
    let ids = known_ids();
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), unique.len());
    let s = run(&random_dictionary(1, 4, 8, 2), &rows(1, 20, 4), 20);
    for kind in ALL {
        assert_eq!((kind.new)().values(&s.latents).len(), kind.definitions.len());
    }
    assert!(s.metrics.iter().all(|(id, v)| definition(id).is_some() && v.is_finite()));
}

#[test]
fn the_page_of_metrics_says_what_the_code_does() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let missing: Vec<String> = definitions()
        .map(|d| format!("| `{}` | {} | {} | {} |", d.id, d.unit, d.formula.replace('|', "\\|"), d.whose))
        .filter(|line| !page.contains(line.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks or contradicts:\n{}", missing.join("\n"));
}

/// Each step leaves no more than the one before (no tolerance, unit atoms), and one pass over all gives what each alone gives.
#[test]
fn shorter_pursuits_score_together_as_alone() {
    let (d, x) = (6, rows(4, 500, 6));
    let dictionary = random_dictionary(3, d, 24, 4).with_activation("mp:6".parse().unwrap()).unwrap();
    let shorter: Vec<Dictionary> = dictionary.step_counts().into_iter().map(|s| dictionary.shorter(s).unwrap()).collect();
    let refs: Vec<&Dictionary> = shorter.iter().collect();
    let config = ScoreConfig { block_rows: 128 };
    let all = score_all(&refs, batches(&x, d, 100), &config, &Silent).unwrap();
    let fvu: Vec<f64> = all.iter().map(|s| *s.metrics.get("fvu").unwrap()).collect();
    assert!(fvu.len() == 5 && fvu.windows(2).all(|w| w[1] <= w[0]) && fvu[4] < fvu[0], "{fvu:?}");
    let alone = random_dictionary(3, d, 24, 4).with_activation("mp:3".parse().unwrap()).unwrap();
    let alone = score(&alone, batches(&x, d, 100), &config, &Silent).unwrap();
    assert_eq!((&alone.metrics, &alone.latents), (&all[2].metrics, &all[2].latents));
}
