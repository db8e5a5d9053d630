//! Charts of made-up but realistic runs: what they hold, and that the same runs give the same bytes. With `LAPIDARY_KEEP_PLOTS=DIR` set,
//! the pictures stay there to be looked at.

use std::fs;

use super::*;
use crate::rng::Rng;
use crate::score::concepts::{ClassSummary, Recovery};
use crate::score::{Metrics, Ordered, ScoreReport};
use crate::train::LogRecord;

/// A sweep over k, width and seed, shaped like real ones.
fn sweep(ks: &[usize], widths: &[usize], seeds: u64) -> Vec<Run> {
    let mut runs = Vec::new();
    for (&k, &d_sae, seed) in ks.iter().flat_map(|k| widths.iter().flat_map(move |d| (0..seeds).map(move |s| (k, d, s)))) {
        let mut rng = Rng::stream(seed, "plot test", (k * 100_000 + d_sae) as u64);
        let floor = 0.9 * (k as f64).powf(-0.55) * (d_sae as f64 / 512.0).powf(-0.18) * (1.0 + 0.02 * rng.normal());
        let log = (0..=100)
            .map(|i| {
                let t = i as f64 / 100.0;
                let fvu = floor + (1.0 - floor) * (-12.0 * t).exp() + 0.01 * floor * rng.normal();
                let dead = (d_sae as f64 * 0.3 * ((t - 0.05).max(0.0) * 6.0).min(1.0) * (1.2 - t)).max(0.0) as u64;
                LogRecord {
                    step: i * 20,
                    tokens: i * 10_240,
                    epoch: 0,
                    lr: 1e-3,
                    loss: fvu * 64.0,
                    fvu,
                    l0: k as f64,
                    dead,
                    dead_after_tokens: 50_000,
                    aux_loss: None,
                    grad_norm: 1.0,
                    parts: Default::default(),
                }
            })
            .collect();
        let metrics = |l0: f64, fvu: f64| -> Metrics { [("fvu".to_string(), fvu), ("l0".to_string(), l0)].into_iter().collect() };
        let k = k as f64;
        let baselines: Ordered<Metrics> = [
            ("random".to_string(), metrics(k, 1.02 * k.powf(-0.2))),
            ("pca".to_string(), metrics(k, 0.97 * k.powf(-0.35))),
            ("kmeans".to_string(), metrics(k, 0.9 * k.powf(-0.22))),
        ]
        .into_iter()
        .collect();
        let score = ScoreReport {
            split: "held-out".into(),
            rows: 51_200,
            metrics: metrics(k + 0.02 * rng.normal(), floor),
            baselines,
            ..Default::default()
        };
        let max_cos = (0..d_sae).map(|_| (0.3 + 0.12 * rng.normal()).clamp(0.0, 1.0)).collect();
        let values = (0..d_sae)
            .map(|_| {
                let log10 = -2.1 + 0.5 * (k / 16.0).log10() - (d_sae as f64 / 1024.0).log10() + 0.55 * rng.normal();
                let fires = (10f64.powf(log10) * 51_200.0).floor().min(51_200.0);
                if rng.uniform() < 0.08 {
                    0.0
                } else {
                    fires / 51_200.0
                }
            })
            .collect();
        runs.push(Run {
            name: format!("k{k}-d{d_sae}-s{seed}"),
            d_sae: Some(d_sae),
            log: Some(log),
            score: Some(score),
            densities: Some(Densities { rows: Some(51_200), values, max_cos }),
            ..Run::default()
        });
    }
    runs
}

fn keep(name: &str, figures: &[Figure]) {
    if let Some(dir) = std::env::var_os("LAPIDARY_KEEP_PLOTS") {
        for figure in figures {
            for extension in ["svg", "png"] {
                let file = format!("{name}-{}.{extension}", figure.title.to_lowercase().replace(' ', "-"));
                draw(figure, &Path::new(&dir).join(file)).unwrap();
            }
        }
    }
}

#[test]
fn a_sweep_fills_every_chart() {
    let runs = sweep(&[4, 8, 16, 32], &[512, 2048], 3);
    let figures: Vec<Figure> = ["training", "density", "frontier", "coherence"].map(|c| chart(c).unwrap().figure(&runs).unwrap()).into();
    keep("sweep", &figures);
    let [training, density, frontier, coherence] = &figures[..] else { panic!("four charts") };
    assert_eq!(training.panels.len(), 3);
    assert_eq!(training.panels[0].series.len(), 24);
    assert_eq!(training.legend.len(), 8, "one line per setting, not per seed");
    assert!(training.legend[0].label.contains("3 seeds"));
    assert_eq!(density.legend.len(), 8);
    assert_eq!(density.legend[0].label, "k4-d512");
    assert!(density.legend[0].note.ends_with(" of 1,536 dead") && density.subtitle.ends_with("seeds are pooled"));
    assert_eq!((coherence.legend.len(), coherence.legend[0].label.as_str()), (8, "k4-d512 (3 seeds)"));
    assert!(coherence.legend[0].note.starts_with(": mean 0."), "{}", coherence.legend[0].note);
    assert_eq!(frontier.panels[0].x.scale, Scale::Log);
    let labels: Vec<&str> = frontier.legend.iter().map(|e| e.label.as_str()).collect();
    assert_eq!(labels, ["512 latents", "2,048 latents", "baseline kmeans", "baseline pca", "baseline random"]);
    // Two widths: a line of four means each, and twelve points each.
    let sizes: Vec<usize> = frontier.panels[0].series[12..].iter().map(|s| s.points.len()).collect();
    assert_eq!(sizes, [4, 12, 4, 12]);
    for panel in figures.iter().flat_map(|f| &f.panels) {
        for &(x, y) in panel.series.iter().filter(|s| !matches!(s.style, Style::Steps(_))).flat_map(|s| &s.points) {
            assert!((0.0..=1.0).contains(&panel.x.place(x)) && (0.0..=1.0).contains(&panel.y.place(y)), "{x} {y} is outside");
        }
    }
}

#[test]
fn a_single_run_needs_no_legend() {
    let runs = sweep(&[16], &[1024], 1);
    let figures: Vec<Figure> = ALL.iter().filter_map(|c| c.figure(&runs)).collect();
    assert_eq!(figures.len(), 4);
    keep("single", &figures);
    assert!(figures[0].legend.is_empty() && figures[0].subtitle.contains("k16-d1024-s0"));
    let dead = runs[0].densities.as_ref().unwrap().values.iter().filter(|&&v| v == 0.0).count();
    assert_eq!(figures[1].legend[0].note, format!(": {dead} of 1,024 dead"));
    let total: f64 = figures[1].panels[0].series[0].points.iter().map(|p| p.1).sum();
    assert!((total - 100.0 * (1024 - dead) as f64 / 1024.0).abs() < 1e-9, "every living latent is in a bin");
}

#[test]
fn two_settings_are_filled_outlines() {
    let runs = sweep(&[4, 32], &[1024], 1);
    let figure = density::Density.figure(&runs).unwrap();
    keep("two", std::slice::from_ref(&figure));
    assert!(figure.legend.iter().all(|e| matches!(e.style, Some(Style::Steps(_)))));
    assert!(figure.legend[1].label == "k32-d1024-s0");
}

#[test]
fn same_runs_same_bytes() {
    let runs = sweep(&[4, 8], &[256], 2);
    let dir = tempfile::tempdir().unwrap();
    let first = draw_all(&runs, &[], &dir.path().join("a")).unwrap();
    let second = draw_all(&runs, &[], &dir.path().join("b")).unwrap();
    assert_eq!(first.len(), 8);
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{}", a.display());
    }
    let svg = fs::read_to_string(&first[0]).unwrap();
    assert!(svg.starts_with("<svg width=\"900\" height=\"640\" viewBox=\"0 0 1800 1280\""), "{}", &svg[..80]);
    assert_eq!(&fs::read(&first[1]).unwrap()[1..4], b"PNG");
}

#[test]
fn runs_are_found_with_what_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let runs = sweep(&[4, 16], &[256], 1);
    for run in &runs {
        let at = dir.path().join("sweep").join(&run.name);
        fs::create_dir_all(&at).unwrap();
        let lines: Vec<String> = run.log.as_ref().unwrap().iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
        fs::write(at.join("log.jsonl"), lines.concat()).unwrap();
        run.score.as_ref().unwrap().save(&at).unwrap();
        fs::write(at.join("dictionary.json"), r#"{"d_sae": 256}"#).unwrap();
    }
    fs::create_dir_all(dir.path().join("sweep/empty")).unwrap();
    let found = collect(&dir.path().join("sweep")).unwrap();
    assert_eq!(found.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["k4-d256-s0", "k16-d256-s0"]);
    assert_eq!(found[0].d_sae, Some(256));
    assert_eq!(found[0].log, runs[0].log);
    assert_eq!(found[1].score, runs[1].score);
    assert!(found[0].densities.is_none());
    let one = collect(&dir.path().join("sweep/k4-d256-s0")).unwrap();
    assert_eq!(one[0].name, "k4-d256-s0");
    // What is not there is not drawn, unless it was asked for.
    let out = dir.path().join("plots");
    assert_eq!(draw_all(&found, &[], &out).unwrap().len(), 4);
    assert!(draw_all(&found, &["density".into()], &out).unwrap_err().to_string().contains("none has"));
    assert!(draw_all(&found, &["pie".into()], &out).unwrap_err().to_string().contains("training, density, frontier, prefixes"));
    assert!(draw_all(&[], &[], &out).is_err() && collect(&dir.path().join("nowhere")).is_err());
    fs::write(dir.path().join("sweep/k4-d256-s0/score.json"), "{}").unwrap();
    assert_eq!(collect(&dir.path().join("sweep")).unwrap_err().exit_code(), 3);
}

#[test]
fn odd_values_do_not_break_a_picture() {
    let mut runs = sweep(&[4], &[64], 1);
    let log = runs[0].log.as_mut().unwrap();
    log.truncate(1);
    log[0].fvu = f64::NAN;
    runs[0].densities = Some(Densities { values: vec![0.0; 64], ..Densities::default() });
    runs[0].score.as_mut().unwrap().metrics.insert("fvu", 0.0);
    runs[0].name = "a-very-long-name-of-a-run/".repeat(6);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(draw_all(&runs, &[], dir.path()).unwrap().len(), 6, "no cosines, no coherence");
}

fn fvu(fvu: f64) -> Metrics {
    [("fvu".to_string(), fvu)].into_iter().collect()
}

/// Two seeds of each of two settings, with prefixes or steps at these places, in the order that JSON leaves them in.
fn nested(places: &[usize], put: fn(&mut ScoreReport, Ordered<Metrics>)) -> Vec<Run> {
    let mut runs = Vec::new();
    for (k, seed) in [(8, 0), (8, 1), (16, 0), (16, 1)] {
        let mut of: Vec<(String, Metrics)> =
            places.iter().map(|&p| (p.to_string(), fvu(0.5 / p as f64 + 0.001 * (k + seed) as f64))).collect();
        of.sort_by(|a, b| a.0.cmp(&b.0));
        let mut score = ScoreReport { metrics: fvu(0.01), ..Default::default() };
        put(&mut score, of.into_iter().collect());
        runs.push(Run { name: format!("k{k}-s{seed}"), d_sae: Some(512), score: Some(score), ..Run::default() });
    }
    runs
}

#[test]
fn prefixes_end_in_the_whole() {
    let runs = nested(&[32, 64, 128, 256], |score, of| score.prefixes = of);
    let figure = chart("prefixes").unwrap().figure(&runs).unwrap();
    keep("nested", std::slice::from_ref(&figure));
    let panel = &figure.panels[0];
    assert_eq!(panel.x.ticks, Ticks::At(vec![32.0, 64.0, 128.0, 256.0, 512.0]));
    // A line and marks per setting; the line is the mean over seeds, by width.
    assert_eq!(panel.series.len(), 4);
    let widths: Vec<f64> = panel.series[0].points.iter().map(|p| p.0).collect();
    assert_eq!(widths, [32.0, 64.0, 128.0, 256.0, 512.0]);
    assert!((panel.series[0].points[0].1 - (0.5 / 32.0 + 0.0085)).abs() < 1e-12);
    assert_eq!((panel.series[1].points.len(), panel.series[0].points[4].1), (10, 0.01));
    assert_ne!(panel.series[1].style, panel.series[3].style, "settings have marks of their own");
    assert_eq!(figure.legend[1].label, "k16 (2 seeds)");
    assert!(chart("steps").unwrap().figure(&runs).is_none());
}

#[test]
fn steps_are_in_order() {
    let runs = nested(&[1, 2, 3, 4, 6, 8, 12, 16], |score, of| score.steps = of);
    let figure = chart("steps").unwrap().figure(&runs).unwrap();
    keep("pursuit", std::slice::from_ref(&figure));
    let steps: Vec<f64> = figure.panels[0].series[0].points.iter().map(|p| p.0).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0]);
    let one = chart("steps").unwrap().figure(&runs[..1]).unwrap();
    assert!(one.legend.is_empty() && one.subtitle.starts_with("k8-s0; "));
}

fn recovery(features: &str, mean_f1: f64) -> Recovery {
    let class = |class: &str, concepts, mean_f1: f64| ClassSummary {
        class: class.into(),
        concepts,
        skipped: 0,
        mean_f1,
        median_f1: mean_f1,
        recovered: (mean_f1 * 10.0) as usize,
    };
    let classes = vec![class("contextual", 32, mean_f1), class("lexical", 26, 0.9 * mean_f1), class("none", 0, 0.0)];
    Recovery { features: features.into(), concepts: Vec::new(), classes, skipped: Vec::new() }
}

#[test]
fn recovery_has_a_panel_per_class_and_a_bar_per_representation() {
    let names = ["dictionary: best latent", "linear probe (combines all dims)", "control: best single token"];
    let table = |shift: f64| Concepts {
        selection_rows: 100,
        test_rows: 2000,
        representations: names.iter().zip([0.5, 0.9, 0.3]).map(|(n, f)| recovery(n, f + shift)).collect(),
    };
    let run = |name: &str, shift| Run { name: name.into(), concepts: Some(table(shift)), ..Run::default() };
    let one = chart("recovery").unwrap().figure(&[run("a", 0.0)]).unwrap();
    assert_eq!(one.panels.len(), 2, "a class without concepts has none");
    assert!(one.subtitle.starts_with("2,000 test rows"));
    let panel = &one.panels[0];
    assert_eq!(panel.y.label, "contextual (32)");
    let Ticks::Named(ticks) = &panel.y.ticks else { panic!("names") };
    assert_eq!(ticks[0], (2.0, names[0].to_string()), "the dictionary is on top");
    assert_eq!(panel.series[0].points, [(0.0, 1.62), (0.5, 1.62), (0.5, 2.38), (0.0, 2.38)]);
    assert_eq!(panel.labels[0].text, "0.50 [5]");
    let three = chart("recovery").unwrap().figure(&[run("a", 0.0), run("b", 0.06), run("c", 0.03)]).unwrap();
    keep("three", std::slice::from_ref(&three));
    let panel = &three.panels[0];
    assert_eq!(panel.labels[0].text, "0.53 [5.0]");
    assert_eq!(panel.series[1].points, [(0.5, 2.0), (0.56, 2.0)], "from the least to the greatest");
    // And from the file.
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({ "selection_rows": 100, "test_rows": 2000, "representations": table(0.0).representations, "other": 1 });
    fs::write(dir.path().join("concepts.json"), json.to_string()).unwrap();
    assert_eq!(collect(dir.path()).unwrap()[0].concepts, Some(table(0.0)));
    fs::write(dir.path().join("concepts.json"), "{}").unwrap();
    assert_eq!(collect(dir.path()).unwrap_err().exit_code(), 3);
}

/// A feature table's columns that the atlas reads, and one that it does not.
fn feature_table(path: &Path, n: usize) {
    use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, RecordBatch, StringArray, UInt32Array};
    let mut rng = Rng::stream(0, "atlas test", 0);
    let place: Vec<(f32, f32)> = (0..n)
        .map(|i| {
            let centre = ((i % 7) as f64 / 7.0 + 0.1, ((i * 3) % 5) as f64 / 5.0 + 0.1);
            ((centre.0 + 0.03 * rng.normal()) as f32, (centre.1 + 0.03 * rng.normal()) as f32)
        })
        .collect();
    let density: Vec<f64> = (0..n).map(|i| if i % 11 == 0 { 0.0 } else { 10f64.powf(-2.2 + 0.8 * rng.normal()).min(1.0) }).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("latent", std::sync::Arc::new(UInt32Array::from_iter_values(0..n as u32))),
        ("density", std::sync::Arc::new(Float64Array::from(density.clone()))),
        ("dead", std::sync::Arc::new(BooleanArray::from(density.iter().map(|d| *d == 0.0).collect::<Vec<_>>()))),
        ("label", std::sync::Arc::new((0..n).map(|i| (i % 3 > 0).then(|| format!("concept {}", i % 40))).collect::<StringArray>())),
        ("concept_f1", std::sync::Arc::new((0..n).map(|i| (i % 3 == 1).then_some(i as f64 / n as f64)).collect::<Float64Array>())),
        ("atlas_x", std::sync::Arc::new(Float32Array::from_iter_values(place.iter().map(|p| p.0)))),
        ("atlas_y", std::sync::Arc::new(Float32Array::from_iter_values(place.iter().map(|p| p.1)))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn the_atlas_reads_its_columns_and_shows_every_latent_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("deep/features")).unwrap();
    feature_table(&dir.path().join("deep/features/features.parquet"), 660);
    let runs = collect(dir.path()).unwrap();
    assert_eq!(runs[0].name, "deep/features");
    let atlas = runs[0].atlas.as_ref().unwrap();
    assert!(atlas.atoms.len() == 660 && atlas.atoms[0].dead && atlas.atoms[1].f1.is_some() && atlas.atoms[3].label.is_none());
    let figure = chart("atlas").unwrap().figure(&runs).unwrap();
    keep("map", std::slice::from_ref(&figure));
    let panel = &figure.panels[0];
    assert_eq!(panel.series.iter().map(|s| s.points.len()).sum::<usize>(), 660);
    assert_eq!(figure.legend[1].note, ": 60");
    assert_eq!(figure.legend.len(), panel.series.len() + 1);
    // The clearest first, each text once, of the living.
    assert_eq!(panel.labels[0].text, "concept 18");
    let mut texts: Vec<&str> = panel.labels.iter().map(|l| l.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), panel.labels.len());
    assert!(panel.series.iter().flat_map(|s| &s.points).all(|p| (0.0..=1.0).contains(&panel.x.place(p.0))));
    fs::write(dir.path().join("deep/features/features.parquet"), "no table").unwrap();
    assert_eq!(collect(dir.path()).unwrap_err().exit_code(), 3);
}

#[test]
fn a_slice_is_drawn_only_when_it_was_worked_out() {
    use crate::dictionary::slice::{Cell, Cells};
    let corners = |x: f64| vec![(x, -1.0), (x + 1.0, -1.0), (x + 1.0, 1.0), (x, 1.0)];
    let cell = |latents: Vec<u32>, x: f64, n: usize| Cell { latents, corners: corners(x), area: 2.0, neighbours: vec![n] };
    let cells = Cells { half: 1.0, cells: vec![cell(vec![3, 9], -1.0, 1), cell(vec![3], 0.0, 0)], is_complete: true };
    let names = ["u".to_string(), "v".to_string()];
    let mut run = Run { name: "d".into(), slice: Some(Sliced { cells, k: 2, d_sae: 16_384, names }), ..Run::default() };
    let figure = chart("slice").unwrap().figure(std::slice::from_ref(&run)).unwrap();
    keep("two", std::slice::from_ref(&figure));
    let panel = &figure.panels[0];
    assert_eq!(figure.subtitle, "d: 2 cells, all that the box holds");
    assert!(panel.is_isometric && panel.series.len() == 5);
    assert_ne!(panel.series[0].colour, panel.series[1].colour, "neighbours differ");
    let tint = |s: &Series| if let Style::Fill(t) = s.style { t } else { f64::NAN };
    assert!(tint(&panel.series[0]) > tint(&panel.series[1]), "fewer active latents are lighter");
    assert_eq!(panel.labels.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["3", "3 9"]);
    let slice = run.slice.as_mut().unwrap();
    slice.cells.is_complete = false;
    slice.cells.cells.pop();
    assert_eq!(slice.extent(), "the 1 cells nearest the middle, 50.000 % of the box");
    assert!(chart("slice").unwrap().figure(&[Run::default()]).is_none());
}
