//! The map of atoms of a feature table: a point per latent, colour by how often it fires, the clearest ones labelled.

use super::figure::{Axis, Entry, Figure, Label, Mark, Panel, Series, Style, Ticks};
use super::{Atom, Chart, Run};
use crate::score::thousands;

/// Upper ends of the steps of density, their names, colours from light to dark, and radii.
type Step = (f64, &'static str, (u8, u8, u8), f64);
const STEPS: [Step; 5] = [
    (1e-4, "up to 0.01 %", (240, 175, 60), 2.2),
    (1e-3, "0.01 to 0.1 %", (218, 110, 60), 2.5),
    (1e-2, "0.1 to 1 %", (178, 50, 100), 2.8),
    (1e-1, "1 to 10 %", (102, 25, 120), 3.1),
    (f64::INFINITY, "above 10 % (dense)", (15, 10, 50), 3.6),
];
const DEAD: (u8, u8, u8) = (205, 205, 205);

/// Labels that are tried, the clearest first; those without room are left out.
const LABELS: usize = 24;
/// Letters of a label.
const LETTERS: usize = 22;

/// From so many latents on, points are smaller.
const MANY: usize = 3000;

/// See the module.
pub struct AtlasMap;

impl Chart for AtlasMap {
    fn id(&self) -> &'static str {
        "atlas"
    }

    fn title(&self) -> &'static str {
        "the map of atoms, by firing density (features.parquet)"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let all: Vec<_> = runs.iter().filter_map(|run| Some((run, run.atlas.as_ref()?))).filter(|(_, a)| !a.atoms.is_empty()).collect();
        let (run, atlas) = all.first()?;
        let mut series = Vec::new();
        let mut legend = vec![Entry { label: "fires on".into(), note: String::new(), style: None, colour: DEAD }];
        let shrink = if atlas.atoms.len() > MANY { 0.6 } else { 1.0 };
        let mut add = |label: &str, radius: f64, colour, is_in: &dyn Fn(&Atom) -> bool| {
            let points: Vec<(f64, f64)> = atlas.atoms.iter().filter(|a| is_in(a)).map(|a| a.at).collect();
            let style = Style::Points(Mark::Disc, shrink * radius);
            let note = format!(": {}", thousands(points.len() as u64));
            legend.push(Entry { label: label.into(), note, style: Some(Style::Points(Mark::Disc, radius + 1.5)), colour });
            series.push(Series { points, style, colour });
        };
        add("no row (dead)", 2.2, DEAD, &|a| a.dead);
        let mut from = f64::NEG_INFINITY;
        for (to, name, colour, radius) in STEPS {
            add(name, radius, colour, &|a| !a.dead && a.density > from && a.density <= to);
            from = to;
        }
        let mut named: Vec<&Atom> =
            atlas.atoms.iter().filter(|a| !a.dead && a.label.as_ref().is_some_and(|l| !l.trim().is_empty())).collect();
        // The best concepts first; where none are known, texts that hold a word before scraps of words, then the frequent.
        let clarity = |a: &Atom| (a.f1.unwrap_or(-1.0), has_word(a.label.as_deref().unwrap_or_default()), a.density);
        named.sort_by(|a, b| {
            let (a, b) = (clarity(a), clarity(b));
            b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.total_cmp(&a.2))
        });
        let mut labels: Vec<Label> = Vec::new();
        for atom in named {
            let text = cut(atom.label.as_deref().unwrap_or_default());
            // Latents of one concept are near each other: one of them says it.
            if labels.len() < LABELS && labels.iter().all(|l| l.text != text) {
                labels.push(Label { at: atom.at, text, is_centred: false, room: None });
            }
        }
        let axis = |values: &dyn Fn(&Atom) -> f64| {
            let (low, high) = atlas.atoms.iter().map(values).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            let room = (0.03 * (high - low)).max(1e-3);
            Axis { ticks: Ticks::Named(Vec::new()), ..Axis::linear("", (low - room, high + room)) }
        };
        let mut panel = Panel::new(axis(&|a| a.at.0), axis(&|a| a.at.1), series);
        panel.labels = labels;
        let others = match all.len() {
            1 => String::new(),
            n => format!("; one of {n} maps found, the others are drawn from their own folders"),
        };
        Some(Figure {
            title: "The atlas of atoms".into(),
            subtitle: format!(
                "{}: {} latents, near each other when their atoms are{others}",
                run.name,
                thousands(atlas.atoms.len() as u64)
            ),
            panels: vec![panel],
            legend,
            size: (900, 620),
        })
    }
}

/// One line, not too long.
fn cut(label: &str) -> String {
    let clean: String = label.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= LETTERS {
        return clean;
    }
    clean.chars().take(LETTERS - 1).chain(['…']).collect()
}

/// Does it hold four letters in a row?
fn has_word(label: &str) -> bool {
    label.split(|c: char| !c.is_alphabetic()).any(|word| word.chars().count() > 3)
}
