//! Charts of made-up but realistic runs: what they hold, and that the same runs give the same bytes. With `LAPIDARY_KEEP_PLOTS=DIR` set,
//! the pictures stay there to be looked at.

use std::fs;

use super::*;
use crate::rng::Rng;
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
            densities: Some(Densities { rows: Some(51_200), values }),
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
    let figures: Vec<Figure> = ALL.iter().map(|c| c.figure(&runs).unwrap()).collect();
    keep("sweep", &figures);
    let [training, density, frontier] = &figures[..] else { panic!("three charts") };
    assert_eq!(training.panels.len(), 3);
    assert_eq!(training.panels[0].series.len(), 24);
    assert_eq!(training.legend.len(), 8, "one line per setting, not per seed");
    assert!(training.legend[0].label.contains("3 seeds"));
    assert_eq!(density.legend.len(), 8);
    assert_eq!(density.legend[0].label, "k4-d512");
    assert!(density.legend[0].note.ends_with(" of 1,536 dead") && density.subtitle.ends_with("seeds are pooled"));
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
    let figures: Vec<Figure> = ALL.iter().map(|c| c.figure(&runs).unwrap()).collect();
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
    assert_eq!(first.len(), 6);
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{}", a.display());
    }
    let svg = fs::read_to_string(&first[0]).unwrap();
    assert!(svg.starts_with("<svg width=\"900\" height=\"760\" viewBox=\"0 0 1800 1520\""), "{}", &svg[..80]);
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
    assert!(draw_all(&found, &["pie".into()], &out).unwrap_err().to_string().contains("training, density, frontier"));
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
    runs[0].densities = Some(Densities { rows: None, values: vec![0.0; 64] });
    runs[0].score.as_mut().unwrap().metrics.insert("fvu", 0.0);
    runs[0].name = "a-very-long-name-of-a-run/".repeat(6);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(draw_all(&runs, &[], dir.path()).unwrap().len(), 6);
}
