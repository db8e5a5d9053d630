//! 2a, 2b: MSAE on Zipf superposition (Zaigrajew, Baniecki, Biecek, arXiv 2502.20578). One dictionary read at many k: the k largest of the
//! ReLU code are kept.

use super::lab::{figure, Lab, Toy};
use super::picture::{self, Axes, Curve};
use super::report::{Row, Table};
use super::rows::{held_out, PlantedRows};
use super::Outcome;
use crate::corpus::planted::{Planted, PlantedConfig};
use crate::dictionary::{Activation, Dictionary};
use crate::error::Result;
use crate::sae::{AuxKConfig, MsaeConfig, SaeConfig, TopKConfig, Weighting};

const D_SAE: usize = 256;
/// k at inference, and the levels of MSAE.
const KS: [usize; 7] = [4, 8, 16, 32, 64, 128, 256];
/// TopK is trained at these: up to the width of the rows, from where on it reconstructs anything.
const TRAINED: [usize; 5] = [4, 8, 16, 32, 64];
/// Those of the source's table.
const NEAR: [usize; 3] = [4, 8, 16];
const ROWS: u64 = 16_384;

/// Weight of a seed in the progress.
pub const WEIGHT: u64 = 24;

const OFF: &str = "TopK k=4, AuxK off";
const UW: &str = "MSAE UW";
const RW: &str = "MSAE RW";

fn topk(k: usize) -> String {
    format!("TopK k={k}")
}

fn learners() -> Vec<(String, SaeConfig)> {
    let mut all: Vec<(String, SaeConfig)> =
        TRAINED.iter().map(|&k| (topk(k), SaeConfig::TopK(TopKConfig { d_sae: D_SAE, k, ..Default::default() }))).collect();
    let off = AuxKConfig { coef: 0.0, ..Default::default() };
    all.push((OFF.into(), SaeConfig::TopK(TopKConfig { d_sae: D_SAE, k: 4, aux_k: off })));
    for (name, weighting) in [(UW, Weighting::Uniform), (RW, Weighting::Reverse)] {
        let config = MsaeConfig { d_sae: D_SAE, k: KS[0], levels: KS.to_vec(), weighting, ..Default::default() };
        all.push((name.into(), SaeConfig::Msae(config)));
    }
    all
}

/// Trains, reads at every k, judges.
pub fn run(lab: &Lab<'_>) -> Result<Outcome> {
    let mut fvu = Table::new(
        &["2a", "2b"],
        format!("Zipf superposition (128 features in 64 dimensions, true L0 5), {D_SAE} latents, {} steps of 256 rows: held-out FVU with the k \
         largest ReLU codes kept, by k; L0 of all ReLU codes; MCC", lab.steps(3000)),
    );
    let columns: Vec<String> = KS.iter().map(usize::to_string).collect();
    let learners = learners();
    let configs: Vec<SaeConfig> = learners.iter().map(|l| l.1.clone()).collect();
    for &seed in lab.seeds {
        lab.status(&format!("2a, 2b: seed {seed}"));
        let planted = Planted::new(&PlantedConfig::Zipf(Default::default()), seed)?;
        let (dictionaries, _) = lab.train(&mut PlantedRows::new(&planted), seed, &Toy::default(), &configs)?;
        let rows = held_out(&planted, ROWS);
        for ((name, _), dictionary) in learners.iter().zip(dictionaries) {
            let read = |a: Activation| dictionary.clone().with_activation(a);
            let by_k: Vec<Dictionary> = KS.iter().map(|&k| read(Activation::TopK { k })).collect::<Result<_>>()?;
            for (column, value) in columns.iter().zip(lab.metric("fvu", &by_k, &rows)?) {
                fvu.add(name, column, value);
            }
            let relu = &lab.score(&[&read(Activation::Relu)?], &rows, Some(&planted))?[0];
            fvu.add(name, "ReLU L0", figure(relu, "l0"));
            fvu.add(name, "MCC", figure(relu, "mcc"));
        }
        lab.finished(&format!("2a, 2b: seed {seed}"), WEIGHT);
    }
    let rows = judge(lab, &fvu, &columns);
    let shown = [topk(4), OFF.to_string(), topk(8), topk(16), UW.into(), RW.into()];
    let curves: Vec<Curve<'_>> = shown.iter().map(|name| Curve::of(&fvu, name, &KS)).collect();
    let axes = Axes { x: "k at inference", y: "FVU (held-out)", log_above: 4.0 };
    let subtitle = "Zipf superposition, true L0 5; the k largest ReLU codes kept; a point per seed, lines through the means";
    let picture = picture::figure("2a, 2b: one dictionary read at many k", subtitle, &axes, &curves, true);
    Ok(Outcome { rows, tables: vec![fvu], figures: vec![("2-progressive".into(), picture)] })
}

/// The means of some cells of a line: `.270@4, .206@8`.
fn cells(fvu: &Table, line: &str, columns: &[String]) -> String {
    columns.iter().map(|c| format!("{} @{c}", fvu.get(line, c))).collect::<Vec<_>>().join(", ")
}

/// Falls first and rises then: the smallest value is at neither end.
pub fn is_u_shaped(values: &[f64]) -> bool {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    values.first().is_some_and(|v| *v > least) && values.last().is_some_and(|v| *v > least)
}

/// Relative error of an FVU whose reconstructions are f32: two readings that differ by less are the same number.
const RESOLUTION: f64 = 1e-6;

/// Never rises, as far as f32 reconstructions can tell.
pub fn is_non_increasing(values: &[f64]) -> bool {
    values.windows(2).all(|w| w[1] <= w[0] * (1.0 + RESOLUTION))
}

/// The largest relative step up; 0 where there is none.
fn rise(values: &[f64]) -> f64 {
    values.windows(2).map(|w| w[1] / w[0] - 1.0).fold(0.0, f64::max)
}

fn judge(lab: &Lab<'_>, fvu: &Table, columns: &[String]) -> Vec<Row> {
    let seeds = 0..lab.seeds.len();
    let each = |f: &dyn Fn(usize) -> bool| seeds.clone().map(f).collect::<Vec<bool>>();
    let line = |name: &str, seed: usize| fvu.of_seed(name, columns, seed);
    let cell = |name: &str, k: usize, seed: usize| fvu.get(name, &k.to_string()).values.get(seed).copied().unwrap_or(f64::NAN);
    let mut rows = Vec::new();
    for (name, condition) in [(topk(4), "AuxK on (our default)"), (OFF.to_string(), "AuxK off, as in the source")] {
        rows.push(Row::judged(
            "2a",
            "TopK trained at k = 4, below the true L0 of 5, is U-shaped in the k it is read at",
            "the least FVU at neither end of k = 4..256",
            cells(fvu, &name, columns),
            &each(&|s| is_u_shaped(&line(&name, s))),
            condition,
        ));
    }
    for name in [UW, RW] {
        rows.push(Row::judged(
            "2a",
            &format!("{name}: FVU non-increasing over its k list"),
            "no rise from one k to the next",
            cells(fvu, name, columns),
            &each(&|s| is_non_increasing(&line(name, s))),
            &format!(
                "largest rise from one k to the next: {:.2e} of the FVU",
                seeds.clone().map(|s| rise(&line(name, s))).fold(0.0, f64::max)
            ),
        ));
    }
    for (ks, condition) in [
        (&NEAR[..], "the k of the source's table"),
        (&TRAINED[..], "every k up to the width of the rows, 64, where TopK reconstructs anything"),
    ] {
        let worst = |s: usize| ks.iter().map(|&k| cell(UW, k, s) / cell(&topk(k), k, s)).fold(f64::NEG_INFINITY, f64::max);
        let ratios = ks.iter().map(|&k| {
            let (ours, theirs) = (fvu.get(UW, &k.to_string()).mean(), fvu.get(&topk(k), &k.to_string()).mean());
            format!("{:.2} @{k}", ours / theirs)
        });
        rows.push(Row::judged(
            "2a",
            "MSAE (UW) within 25 % of the TopK trained at that k",
            "FVU ratio at most 1.25 at each k",
            ratios.collect::<Vec<_>>().join(", "),
            &each(&|s| worst(s) <= 1.25),
            condition,
        ));
    }
    for (k, is_small) in [(KS[0], true), (KS[KS.len() - 1], false)] {
        let (assertion, expected) = match is_small {
            true => (format!("RW is at or below UW at the smallest k = {k}"), "RW <= UW"),
            false => (format!("RW is at or above UW at the largest k = {k}"), "RW >= UW"),
        };
        let held = |s: usize| {
            let (rw, uw) = (cell(RW, k, s), cell(UW, k, s));
            if is_small {
                rw <= uw
            } else {
                rw >= uw
            }
        };
        let column = k.to_string();
        let measured = format!("RW {}, UW {}", fvu.get(RW, &column), fvu.get(UW, &column));
        rows.push(Row::judged("2b", &assertion, expected, measured, &each(&held), ""));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_what_they_are_called() {
        assert!(is_u_shaped(&[0.27, 0.2, 0.3]) && is_u_shaped(&[0.3, 0.2, 0.2, 0.21]));
        assert!(!is_u_shaped(&[0.3, 0.2, 0.1]) && !is_u_shaped(&[0.1, 0.2, 0.3]) && !is_u_shaped(&[0.1, 0.1]) && !is_u_shaped(&[]));
        assert!(is_non_increasing(&[0.3, 0.2, 0.2]) && !is_non_increasing(&[0.3, 0.2, 0.21]));
        assert!(is_non_increasing(&[0.2, 0.2 + 1e-9]) && !is_non_increasing(&[0.2, 0.20001]));
    }
}
