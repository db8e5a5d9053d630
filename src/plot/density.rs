//! Histogram of firing densities on a log axis. Dead latents have no place on it: their number stands in the legend.

use super::collect::{by_setting, Setting};
use super::figure::{colour, dash, Axis, Entry, Figure, Panel, Scale, Series, Style, Ticks};
use super::{Chart, Densities, Run};
use crate::score::{thousands, DENSE_ABOVE};

/// Bins per factor of ten.
const PER_DECADE: f64 = 5.0;

/// Up to so many histograms are filled outlines; more are curves.
const FILLED: usize = 3;

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
        let bins = -first;
        let bin = |v: f64| ((v.log10() * PER_DECADE + 1e-9).floor() as i32 - first).clamp(0, bins - 1) as usize;
        // Seeds of a setting are one curve: the share of their latents together.
        let settings = by_setting(runs, |run| run.densities.as_ref().filter(|d| !d.values.is_empty()));
        let few = settings.len() <= FILLED;
        let (mut series, mut legend, mut highest) = (Vec::new(), Vec::new(), 0f64);
        for (i, Setting { name, runs: densities }) in settings.iter().enumerate() {
            let values = || densities.iter().flat_map(|d| d.values.iter().copied());
            let (n, mut counts) = (values().count(), vec![0u64; bins as usize]);
            values().filter(|&v| v > 0.0).for_each(|v| counts[bin(v)] += 1);
            let percent: Vec<f64> = counts.iter().map(|&c| 100.0 * c as f64 / n as f64).collect();
            highest = percent.iter().copied().fold(highest, f64::max);
            let style = if few { Style::Steps(dash(i)) } else { Style::Line(dash(i), 2.0) };
            // Outlines begin at a bin's edge and need the last one's end; a curve goes through the middles.
            let at = |b: usize| 10f64.powf((f64::from(first + b as i32) + if few { 0.0 } else { 0.5 }) / PER_DECADE);
            let mut points: Vec<(f64, f64)> = percent.iter().enumerate().map(|(b, &p)| (at(b), p)).collect();
            if few {
                points.push((1.0, 0.0));
            }
            series.push(Series { points, style, colour: colour(i) });
            let dead = values().filter(|&v| v <= 0.0).count();
            let note = format!(": {} of {} dead", thousands(dead as u64), thousands(n as u64));
            legend.push(Entry { label: name.to_string(), note, style: Some(style), colour: colour(i) });
        }
        let x = Axis {
            label: "firing density (share of rows, log scale)".into(),
            scale: Scale::Log,
            range: (10f64.powf(f64::from(first) / PER_DECADE), 1.0),
            ticks: Ticks::Round,
        };
        let y = Axis::linear("latents per bin (%)", (0.0, (1.12 * highest).max(1.0)));
        let guides = vec![(DENSE_ABOVE, "dense".to_string())];
        let rows = all[0].1.rows.filter(|rows| all.iter().all(|(_, d)| d.rows == Some(*rows)));
        let over = rows.map_or(String::new(), |rows| format!(" over {} scored rows", thousands(rows)));
        let pooled = if settings.len() < all.len() { "; seeds are pooled" } else { "" };
        let subtitle = format!("dead: never fired{over}; dense: fires on more than {:.0} % of rows{pooled}", 100.0 * DENSE_ABOVE);
        Some(Figure {
            title: "How often latents fire".into(),
            subtitle,
            panels: vec![Panel { guides, ..Panel::new(x, y, series) }],
            legend,
            size: (900, 540),
        })
    }
}
