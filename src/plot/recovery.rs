//! Bars of concept recovery: mean F1 of each representation (a dictionary, a probe, controls), a panel per class of concepts.

use super::figure::{Axis, Figure, Label, Panel, Series, Style, Ticks, PALETTE};
use super::{Chart, Run};
use crate::score::concepts::RECOVERED;
use crate::score::thousands;

/// Colour of what is neither the first representation nor a probe.
const CONTROL: (u8, u8, u8) = (150, 150, 150);

/// Letters of a representation's name.
const NAME: usize = 36;

/// See the module.
pub struct RecoveryBars;

/// One bar: a class under a representation, with a value per run.
#[derive(Default)]
struct Bar {
    f1: Vec<f64>,
    recovered: Vec<f64>,
    concepts: usize,
}

impl Bar {
    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }
}

impl Chart for RecoveryBars {
    fn id(&self) -> &'static str {
        "recovery"
    }

    fn title(&self) -> &'static str {
        "concept recovery by representation, with controls (concepts.json)"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let tables: Vec<_> = runs.iter().filter_map(|run| run.concepts.as_ref()).collect();
        let (mut names, mut classes): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for recovery in tables.iter().flat_map(|t| &t.representations) {
            if !names.contains(&recovery.features.as_str()) {
                names.push(&recovery.features);
            }
            for class in recovery.classes.iter().filter(|c| c.concepts > 0) {
                if !classes.contains(&class.class.as_str()) {
                    classes.push(&class.class);
                }
            }
        }
        if names.is_empty() || classes.is_empty() {
            return None;
        }
        let n = names.len() as f64;
        // The first representation on top.
        let row = |r: usize| n - 1.0 - r as f64;
        let ticks: Vec<(f64, String)> = names.iter().enumerate().map(|(r, name)| (row(r), cut(name))).collect();
        let panel = |class: &&str| {
            let mut panel = Panel::new(
                Axis {
                    ticks: Ticks::At(vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
                    ..Axis::linear("mean F1 over the concepts of a class (0 to 1)", (0.0, 1.24))
                },
                Axis { ticks: Ticks::Named(ticks.clone()), ..Axis::linear(*class, (-0.6, n - 0.4)) },
                Vec::new(),
            );
            let mut most = 0;
            for (r, name) in names.iter().enumerate() {
                let mut bar = Bar::default();
                for recovery in tables.iter().flat_map(|t| &t.representations).filter(|x| x.features == *name) {
                    if let Some(class) = recovery.class(class).filter(|c| c.concepts > 0) {
                        bar.f1.push(class.mean_f1);
                        bar.recovered.push(class.recovered as f64);
                        bar.concepts = bar.concepts.max(class.concepts);
                    }
                }
                if bar.f1.is_empty() {
                    continue;
                }
                most = most.max(bar.concepts);
                let (mean, y) = (Bar::mean(&bar.f1), row(r));
                let corners = vec![(0.0, y - 0.38), (mean, y - 0.38), (mean, y + 0.38), (0.0, y + 0.38)];
                let colour = match r {
                    0 => PALETTE[0],
                    _ if name.contains("probe") => PALETTE[4],
                    _ => CONTROL,
                };
                panel.series.push(Series { points: corners, style: Style::Fill(if r == 0 { 1.0 } else { 0.75 }), colour });
                let (low, high) = bar.f1.iter().fold((f64::INFINITY, 0f64), |(l, h), &v| (l.min(v), h.max(v)));
                if bar.f1.len() > 1 {
                    panel.series.push(Series {
                        points: vec![(low, y), (high, y)],
                        style: Style::Line(super::Dash::Solid, 2.2),
                        colour: (30, 30, 30),
                    });
                }
                let recovered = Bar::mean(&bar.recovered);
                let recovered = if bar.f1.len() > 1 { format!("{recovered:.1}") } else { format!("{recovered:.0}") };
                panel.labels.push(Label { at: (high, y), text: format!("{mean:.2} [{recovered}]"), is_centred: false, room: None });
            }
            panel.y.label = format!("{class} ({most})");
            panel
        };
        let panels: Vec<Panel> = classes.iter().map(panel).collect();
        let rows = match &tables[..] {
            [one] if one.test_rows > 0 => format!("{} test rows; ", thousands(one.test_rows)),
            [_] => String::new(),
            many => format!("means of {} runs, lines: least to greatest; ", many.len()),
        };
        let height = 130.0 + panels.len() as f64 * (n * 20.0 + 16.0);
        Some(Figure {
            title: "Which concepts one feature finds".into(),
            subtitle: format!("{rows}in brackets: concepts above F1 {RECOVERED}, of those beside the class"),
            panels,
            legend: Vec::new(),
            size: (900, height.min(1400.0) as u32),
        })
    }
}

fn cut(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.to_string();
    }
    name.chars().take(NAME - 1).chain(['…']).collect()
}
