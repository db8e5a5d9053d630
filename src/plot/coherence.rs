//! Histogram of how close each atom comes to another: largest |cosine|, per setting.

use super::collect::by_setting;
use super::figure::{colour, dash, Axis, Entry, Figure, Panel, Series, Style};
use super::{Chart, Run};
use crate::score::thousands;

/// Of [0, 1].
const BINS: usize = 40;

/// Up to so many histograms are filled outlines; more are curves.
const FILLED: usize = 3;

/// See the module.
pub struct Coherence;

impl Chart for Coherence {
    fn id(&self) -> &'static str {
        "coherence"
    }

    fn title(&self) -> &'static str {
        "histogram of each atom's largest |cosine| to another atom"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        // Seeds of a setting are one histogram: the share of their atoms together.
        let settings = by_setting(runs, |run| run.densities.as_ref().map(|d| &d.max_cos).filter(|c| !c.is_empty()));
        settings.first()?;
        let few = settings.len() <= FILLED;
        let (mut series, mut legend, mut highest) = (Vec::new(), Vec::new(), 0f64);
        for (i, setting) in settings.iter().enumerate() {
            let values = || setting.runs.iter().flat_map(|c| c.iter().copied());
            let (n, mut counts) = (values().count(), [0u64; BINS]);
            values().for_each(|v| counts[((v * BINS as f64) as usize).min(BINS - 1)] += 1);
            let percent = counts.map(|c| 100.0 * c as f64 / n as f64);
            highest = percent.into_iter().fold(highest, f64::max);
            let style = if few { Style::Steps(dash(i)) } else { Style::Line(dash(i), 2.0) };
            // Outlines begin at a bin's edge and need the last one's end; a curve goes through the middles.
            let at = |b: usize| (b as f64 + if few { 0.0 } else { 0.5 }) / BINS as f64;
            let mut points: Vec<(f64, f64)> = percent.iter().enumerate().map(|(b, &p)| (at(b), p)).collect();
            if few {
                points.push((1.0, 0.0));
            }
            series.push(Series { points, style, colour: colour(i) });
            let note = format!(": mean {:.2}", values().sum::<f64>() / n as f64);
            legend.push(Entry { label: setting.label(), note, style: Some(style), colour: colour(i) });
        }
        let x = Axis::linear("largest |cosine| to another atom", (0.0, 1.0));
        let y = Axis::linear("atoms per bin (%)", (0.0, (1.12 * highest).max(1.0)));
        let atoms: usize = settings.iter().flat_map(|s| &s.runs).map(|c| c.len()).sum();
        let pooled = if settings.iter().any(|s| s.runs.len() > 1) { "; seeds are pooled" } else { "" };
        Some(Figure {
            title: "How close atoms come to each other".into(),
            subtitle: format!("{} atoms; 1 = another atom points the same way (or the opposite){pooled}", thousands(atoms as u64)),
            panels: vec![Panel::new(x, y, series)],
            legend,
            size: (900, 540),
        })
    }
}
