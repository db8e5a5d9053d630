//! FVU against L0: what each latent more per row buys. One colour per width; a point per run, a line through the means over seeds;
//! baselines in grey.

use super::collect::natural;
use super::figure::{colour, dash, mark, Axis, Dash, Entry, Figure, Mark, Panel, Scale, Series, Style, GREY};
use super::{Chart, Run};
use crate::score::{thousands, Metrics};

/// See the module.
pub struct Frontier;

/// A point of the plane, with the setting whose seeds are averaged.
struct Point<'a> {
    setting: &'a str,
    l0: f64,
    fvu: f64,
}

impl Chart for Frontier {
    fn id(&self) -> &'static str {
        "frontier"
    }

    fn title(&self) -> &'static str {
        "FVU against L0"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let scored: Vec<_> = runs.iter().filter_map(|run| Some((run, run.score.as_ref()?))).collect();
        let plane = |m: &Metrics| Some((*m.get("l0")?, *m.get("fvu")?)).filter(|(l0, fvu)| l0.is_finite() && fvu.is_finite());
        let mut groups: Vec<(Option<usize>, Vec<Point<'_>>)> = Vec::new();
        type Beside<'a> = ((&'a str, Option<usize>), Vec<Point<'a>>);
        let mut baselines: Vec<Beside<'_>> = Vec::new();
        for (run, score) in &scored {
            if let Some((l0, fvu)) = plane(&score.metrics) {
                push(&mut groups, run.d_sae, Point { setting: run.setting(), l0, fvu });
            }
            for (name, metrics) in score.baselines.iter() {
                if let Some((l0, fvu)) = plane(metrics) {
                    push(&mut baselines, (name, run.d_sae), Point { setting: run.setting(), l0, fvu });
                }
            }
        }
        if groups.is_empty() {
            return None;
        }
        groups.sort_by_key(|(d_sae, _)| *d_sae);
        baselines.sort_by(|(a, _), (b, _)| natural(a.0, b.0).then(a.1.cmp(&b.1)));
        let points = || groups.iter().flat_map(|g| &g.1).chain(baselines.iter().flat_map(|b| &b.1));
        let x = Axis::fitting("L0 (active latents per row)", points().map(|p| p.l0), 3.0);
        let x = if x.scale == Scale::Log { x.marking(points().map(|p| p.l0)) } else { x };
        let y = Axis::fitting("FVU (fraction of variance unexplained)", points().map(|p| p.fvu), 4.0);
        let (mut series, mut legend) = (Vec::new(), Vec::new());
        // Baselines first, so that they lie below.
        let marks = [Mark::Cross, Mark::Triangle, Mark::Square, Mark::Diamond];
        let mut below: Vec<Entry> = Vec::new();
        for ((name, _), points) in &baselines {
            let label = format!("baseline {name}");
            // One mark per name; the widths of a sweep (they matter to random atoms) are lines of their own.
            let i = below.iter().position(|e| e.label == label).unwrap_or(below.len());
            let style = Style::Points(marks[i % marks.len()], 5.0);
            if i == below.len() {
                below.push(Entry { label, note: String::new(), style: Some(style), colour: GREY });
            }
            series.push(Series { points: means(points), style: Style::Line(Dash::Dotted, 1.2), colour: GREY });
            series.push(Series { points: means(points), style, colour: GREY });
        }
        for (i, (d_sae, points)) in groups.iter().enumerate() {
            let means = means(points);
            if means.len() > 1 {
                series.push(Series { points: means.clone(), style: Style::Line(dash(i), 2.2), colour: colour(i) });
            }
            let style = Style::Points(mark(i), 4.5);
            series.push(Series { points: points.iter().map(|p| (p.l0, p.fvu)).collect(), style, colour: colour(i) });
            let label = d_sae.map_or_else(|| "dictionary".into(), |d| format!("{} latents", thousands(d as u64)));
            legend.push(Entry { label, note: String::new(), style: Some(style), colour: colour(i) });
        }
        legend.extend(below);
        let (split, rows) = scored.iter().map(|(_, s)| (s.split.as_str(), s.rows)).next()?;
        let is_one = scored.iter().all(|(_, s)| s.split == split && s.rows == rows);
        let over = if is_one { format!("{} rows of the {split} split; ", thousands(rows)) } else { String::new() };
        Some(Figure {
            title: "Sparsity against reconstruction".into(),
            subtitle: format!("{over}a point per run, lines through the means over seeds; down and left is better"),
            panels: vec![Panel::new(x, y, series)],
            legend,
            size: (900, 540),
        })
    }
}

fn push<K: PartialEq, T>(groups: &mut Vec<(K, Vec<T>)>, key: K, item: T) {
    match groups.iter_mut().find(|g| g.0 == key) {
        Some(group) => group.1.push(item),
        None => groups.push((key, vec![item])),
    }
}

/// The mean of each setting, by L0.
fn means(points: &[Point<'_>]) -> Vec<(f64, f64)> {
    let mut settings: Vec<(&str, Vec<&Point<'_>>)> = Vec::new();
    for p in points {
        push(&mut settings, p.setting, p);
    }
    let mean = |points: &[&Point<'_>], of: fn(&Point<'_>) -> f64| points.iter().map(|p| of(p)).sum::<f64>() / points.len() as f64;
    let mut means: Vec<(f64, f64)> = settings.iter().map(|(_, p)| (mean(p, |p| p.l0), mean(p, |p| p.fvu))).collect();
    means.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    means
}
