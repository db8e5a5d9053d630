//! 7: the wrong k harms features although reconstruction improves. TopK at many k on Zipf superposition with true L0 6, beside dictionaries
//! that nobody trained and the true one.

use candle_core::{DType, Device, Tensor};

use super::lab::{figure, Lab, Toy};
use super::nested::is_non_increasing;
use super::picture::{self, Axes, Curve};
use super::report::{Row, Table};
use super::rows::{held_out, PlantedRows};
use super::Outcome;
use crate::corpus::planted::{Planted, PlantedConfig, ZipfConfig};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::Coder;
use crate::plot::{Figure, Panel};
use crate::sae::{AuxKConfig, SaeConfig, TopKConfig};

const KS: [usize; 7] = [2, 4, 6, 9, 13, 18, 30];
const TRUE_L0: usize = 6;
const D_SAE: usize = 128;
const ROWS: u64 = 16_384;

/// Weight of a seed in the progress.
pub const WEIGHT: u64 = 20;

/// Columns: their names, the metric, its factor.
const COLUMNS: [(&str, &str, f64); 5] = [
    ("FVU", "fvu", 1.0),
    ("MCC", "mcc", 1.0),
    ("F1", "f1_mean", 1.0),
    ("share F1 > .8", "f1_above_08", 1.0),
    ("dead", "dead_fraction", D_SAE as f64),
];

/// The two series, with what stands behind a row's verdict.
const SERIES: [(&str, &str); 2] = [("TopK", "AuxK on (our default)"), ("TopK, AuxK off", "AuxK off, as in the source")];

/// The true directions as a dictionary with a tied encoder: what a linear encoder makes of the right answer.
fn truth(planted: &Planted, k: usize) -> Result<Dictionary> {
    let truth = planted.truth();
    let w = Tensor::from_slice(&truth.features, (truth.len(), truth.d), &Device::Cpu)?;
    let coder = Coder {
        w_enc: w.clone(),
        b_enc: Tensor::zeros(truth.len(), DType::F32, &Device::Cpu)?,
        w_dec: w,
        b_dec: Tensor::from_slice(&truth.bias, truth.d, &Device::Cpu)?,
    };
    Dictionary::new(coder, Activation::TopK { k }, true, Provenance { made_by: "truth".into(), ..Default::default() })
}

/// Trains, scores against the truth, judges.
pub fn run(lab: &Lab<'_>) -> Result<Outcome> {
    let toy = Toy { steps: 4000, ..Toy::default() };
    let mut table = Table::new(
        &["7"],
        format!(
            "Zipf superposition (128 features in 64 dimensions, true L0 {TRUE_L0}), {D_SAE} latents, {} steps of 256 rows, held-out",
            lab.steps(toy.steps)
        ),
    );
    let topk = |k, coef| SaeConfig::TopK(TopKConfig { d_sae: D_SAE, k, aux_k: AuxKConfig { coef, ..Default::default() } });
    let mut configs: Vec<SaeConfig> = KS.iter().map(|&k| topk(k, AuxKConfig::default().coef)).collect();
    configs.extend(KS.iter().map(|&k| topk(k, 0.0)));
    let mut names: Vec<String> = SERIES.iter().flat_map(|(series, _)| KS.map(|k| line(series, k))).collect();
    for &seed in lab.seeds {
        lab.status(&format!("7: seed {seed}"));
        let planted = Planted::new(&PlantedConfig::Zipf(ZipfConfig { l0: TRUE_L0 as f64, ..Default::default() }), seed)?;
        let (mut dictionaries, _) = lab.train(&mut PlantedRows::new(&planted), seed, &toy, &configs)?;
        names.truncate(configs.len());
        for (name, dictionary) in lab.baselines(&planted, D_SAE, TRUE_L0, seed)? {
            names.push(line(&name, TRUE_L0));
            dictionaries.push(dictionary);
        }
        names.push(line("true dictionary, tied encoder,", TRUE_L0));
        dictionaries.push(truth(&planted, TRUE_L0)?);
        let refs: Vec<&Dictionary> = dictionaries.iter().collect();
        for (name, scores) in names.iter().zip(lab.score(&refs, &held_out(&planted, ROWS), Some(&planted))?) {
            for (column, id, factor) in COLUMNS {
                table.add(name, column, figure(&scores, id) * factor);
            }
        }
        lab.finished(&format!("7: seed {seed}"), WEIGHT);
    }
    let rows = judge(lab, &table);
    let figures = vec![("7-wrong-k".to_string(), pictures(&table))];
    Ok(Outcome { rows, tables: vec![table], figures })
}

fn line(series: &str, k: usize) -> String {
    format!("{series} k={k}")
}

/// A column along k for one seed.
fn along(table: &Table, series: &str, column: &str, seed: usize) -> Vec<f64> {
    KS.iter().map(|&k| table.get(&line(series, k), column).values.get(seed).copied().unwrap_or(f64::NAN)).collect()
}

fn argmax(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, v)| if *v > values[best] { i } else { best })
}

/// Is the largest value at neither end?
fn has_interior_maximum(values: &[f64]) -> bool {
    let at = argmax(values);
    at > 0 && at + 1 < values.len()
}

fn judge(lab: &Lab<'_>, table: &Table) -> Vec<Row> {
    let mut rows = Vec::new();
    for (series, condition) in SERIES {
        let each = |column: &str, f: &dyn Fn(&[f64]) -> bool| -> Vec<bool> {
            (0..lab.seeds.len()).map(|s| f(&along(table, series, column, s))).collect()
        };
        let cells = |column: &str| KS.map(|k| format!("{} @{k}", table.get(&line(series, k), column))).join(", ");
        let mut push = |assertion: &str, expected: &str, column: &str, f: &dyn Fn(&[f64]) -> bool| {
            rows.push(Row::judged("7", assertion, expected, cells(column), &each(column, f), condition));
        };
        push("FVU only falls with k", "no rise over k = 2..30", "FVU", &is_non_increasing);
        push("F1 has an interior maximum in k", "the largest at neither end of k = 2..30", "F1", &has_interior_maximum);
        push("F1 at k = 9 above that at 2 and at 30", "F1(9) > F1(2), F1(30)", "F1", &|v| v[3] > v[0] && v[3] > v[6]);
        push("the share of clean latents (F1 > .8) peaks at the true L0", "argmax at k = 6", "share F1 > .8", &|v| {
            KS[argmax(v)] == TRUE_L0
        });
    }
    rows
}

fn pictures(table: &Table) -> Figure {
    let mut figure = Figure {
        title: "7: the wrong k harms features although FVU improves".into(),
        subtitle: format!("TopK on Zipf superposition, true L0 {TRUE_L0}, {D_SAE} latents; a point per seed, lines through the means"),
        panels: Vec::new(),
        legend: Vec::new(),
        size: (900, 860),
    };
    for (column, label, log_above) in [
        ("FVU", "FVU (held-out)", 4.0),
        ("F1", "F1 (mean over latents)", f64::INFINITY),
        ("share F1 > .8", "share with F1 > .8", f64::INFINITY),
    ] {
        let point = |series: &str| KS.iter().map(|&k| (k as f64, table.get(&line(series, k), column).values)).collect();
        let curves: Vec<Curve<'_>> =
            SERIES.iter().map(|(series, _)| Curve { label: series, points: point(series), is_baseline: false }).collect();
        let panel = picture::panel(&Axes { x: "k", y: label, log_above }, &curves, true);
        let guides = vec![(TRUE_L0 as f64, "true L0".to_string())];
        // The same horizontal axis in every panel.
        let x = figure.panels.first().map_or_else(|| panel.x.clone(), |first: &Panel| first.x.clone());
        figure.legend = picture::legend(&curves, true);
        figure.panels.push(Panel { guides, x, ..panel });
    }
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_is_interior_or_not() {
        assert!(has_interior_maximum(&[0.1, 0.4, 0.2]));
        assert!(!has_interior_maximum(&[0.5, 0.4, 0.2]) && !has_interior_maximum(&[0.1, 0.2, 0.3]) && !has_interior_maximum(&[0.1]));
    }

    #[test]
    fn the_true_dictionary_knows_every_feature() {
        let planted = Planted::new(&PlantedConfig::parse("zipf").unwrap(), 3).unwrap();
        let lab = Lab::new(&[3], 1.0, 1, &crate::progress::Silent);
        let scores = lab.score(&[&truth(&planted, 6).unwrap()], &held_out(&planted, 500), Some(&planted)).unwrap();
        assert!((figure(&scores[0], "mcc") - 1.0).abs() < 1e-5);
    }
}
