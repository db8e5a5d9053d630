//! Histogram of firing densities on a log axis. Dead latents have no place on it: their number stands in the legend.

use super::figure::{colour, dash, Axis, Entry, Figure, Panel, Scale, Series, Style};
use super::{Chart, Densities, Run};
use crate::score::{thousands, DENSE_ABOVE};

/// Bins per factor of ten.
const PER_DECADE: f64 = 5.0;

/// See the module.
pub struct Density;

impl Chart for Density {
    fn id(&self) -> &'static str {
        "density"
    }

    fn title(&self) -> &'static str {
        "histogram of firing densities"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let all: Vec<(&Run, &Densities)> =
            runs.iter().filter_map(|run| Some((run, run.densities.as_ref()?))).filter(|(_, d)| !d.values.is_empty()).collect();
        all.first()?;
        // Densities are at least one row in all rows; without that number, the smallest seen.
        let positive = all.iter().flat_map(|(_, d)| d.values.iter().copied()).filter(|&v| v > 0.0);
        let least = all.iter().filter_map(|(_, d)| d.rows).map(|rows| 1.0 / rows as f64).chain(positive).fold(0.1, f64::min);
        let first = (least.log10() * PER_DECADE + 1e-9).floor() as i32;
        let edge = |i: i32| 10f64.powf(f64::from(i) / PER_DECADE);
        let (mut series, mut legend, mut highest) = (Vec::new(), Vec::new(), 0f64);
        for (i, (run, densities)) in all.iter().enumerate() {
            let n = densities.values.len();
            let mut counts = vec![0u64; (-first) as usize];
            for v in densities.values.iter().filter(|&&v| v > 0.0) {
                let bin = (v.log10() * PER_DECADE + 1e-9).floor() as i32 - first;
                counts[(bin.max(0) as usize).min((-first) as usize - 1)] += 1;
            }
            let percent = |count: u64| 100.0 * count as f64 / n as f64;
            highest = counts.iter().map(|&c| percent(c)).fold(highest, f64::max);
            let mut points: Vec<(f64, f64)> = counts.iter().enumerate().map(|(b, &c)| (edge(first + b as i32), percent(c))).collect();
            points.push((1.0, 0.0));
            series.push(Series { points, style: Style::Steps(dash(i)), colour: colour(i) });
            let dead = densities.values.iter().filter(|&&v| v <= 0.0).count();
            let label = format!("{}: {} of {} dead", run.name, thousands(dead as u64), thousands(n as u64));
            legend.push(Entry { label, style: Some(Style::Steps(dash(i))), colour: colour(i) });
        }
        let x = Axis { label: "firing density (share of rows, log scale)".into(), scale: Scale::Log, range: (edge(first), 1.0) };
        let y = Axis { label: "latents per bin (%)".into(), scale: Scale::Linear, range: (0.0, (1.12 * highest).max(1.0)) };
        let guides = vec![(DENSE_ABOVE, "dense".to_string())];
        let rows = all[0].1.rows.filter(|rows| all.iter().all(|(_, d)| d.rows == Some(*rows)));
        let over = rows.map_or(String::new(), |rows| format!(" over {} scored rows", thousands(rows)));
        let subtitle = format!("dead: never fired{over}; dense: fires on more than {:.0} % of rows", 100.0 * DENSE_ABOVE);
        Some(Figure {
            title: "How often latents fire".into(),
            subtitle,
            panels: vec![Panel { x, y, series, guides }],
            legend,
            size: (900, 540),
        })
    }
}
