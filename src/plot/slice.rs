//! The cells of a TopK dictionary in a plane, exactly: every polygon is where one set of latents is active.

use super::figure::{Axis, Dash, Entry, Figure, Label, Mark, Panel, Series, Style, GREY, PALETTE};
use super::{Chart, Run};
use crate::dictionary::slice::{Cell, Cells};
use crate::score::thousands;

/// More cells than this are no picture any more.
pub const MAX_CELLS: usize = 4000;

/// Cells that are labelled when they have room: the largest.
const LABELS: usize = 60;

/// Lines between cells, thinner where there are many.
const EDGE: (u8, u8, u8) = (70, 70, 70);

/// A slice worked out, as the chart wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliced {
    /// The cells.
    pub cells: Cells,
    /// Latents active at once, at most.
    pub k: usize,
    /// Latents in all.
    pub d_sae: usize,
    /// What the plane's two directions are.
    pub names: [String; 2],
}

impl Sliced {
    /// How much of the box the cells are, in words: all of it, or the middle.
    pub fn extent(&self) -> String {
        let cells = thousands(self.cells.cells.len() as u64);
        if self.cells.is_complete {
            format!("{cells} cells, all that the box holds")
        } else {
            format!("the {cells} cells nearest the middle, {:.3} % of the box", 100.0 * self.cells.share())
        }
    }
}

/// See the module.
pub struct SliceMap;

impl Chart for SliceMap {
    fn id(&self) -> &'static str {
        "slice"
    }

    fn title(&self) -> &'static str {
        "exact cells of a TopK dictionary in a plane (only on request; --plane)"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let (run, sliced) = runs.iter().find_map(|run| Some((run, run.slice.as_ref()?)))?;
        let Sliced { cells, k, d_sae, names } = sliced;
        let all = &cells.cells;
        let colours = coloured(all);
        // Tints say how many are active: the fewer, the lighter; none is white.
        let tint = |n: usize| if n == 0 { 0.0 } else { 0.12 + 0.43 * n as f64 / *k as f64 };
        let width = if all.len() > 300 { 0.5 } else { 1.0 };
        let mut series = Vec::new();
        for (cell, &c) in all.iter().zip(&colours) {
            series.push(Series {
                points: cell.corners.clone(),
                style: Style::Fill(tint(cell.latents.len())),
                colour: PALETTE[c % PALETTE.len()],
            });
        }
        for cell in all {
            let closed = cell.corners.iter().chain(cell.corners.first()).copied().collect();
            series.push(Series { points: closed, style: Style::Line(Dash::Solid, width), colour: EDGE });
        }
        series.push(Series { points: vec![(0.0, 0.0)], style: Style::Points(Mark::Cross, 5.0), colour: (0, 0, 0) });
        let mut largest: Vec<&Cell> = all.iter().collect();
        largest.sort_by(|a, b| b.area.total_cmp(&a.area).then(a.latents.cmp(&b.latents)));
        let half = if cells.is_complete { cells.half } else { reach(all).min(cells.half) };
        let axis = |name: &str| Axis::linear(format!("{name} (activation units)"), (-half, half));
        let mut panel = Panel::new(axis(&names[0]), axis(&names[1]), series);
        panel.labels = largest.into_iter().take(LABELS).map(label).collect();
        panel.is_isometric = true;
        let mut legend = vec![
            Entry { label: "active latents".into(), note: String::new(), style: None, colour: GREY },
            Entry { label: format!("{k}"), note: String::new(), style: Some(Style::Fill(tint(*k))), colour: GREY },
        ];
        let fewer = all.iter().any(|c| (1..*k).contains(&c.latents.len()));
        if fewer {
            legend.push(Entry { label: "fewer: lighter".into(), note: String::new(), style: Some(Style::Fill(tint(1))), colour: GREY });
        }
        if all.iter().any(|c| c.latents.is_empty()) {
            legend.push(Entry { label: "none".into(), note: String::new(), style: Some(Style::Fill(0.0)), colour: GREY });
        }
        legend.push(Entry {
            label: "the plane's origin".into(),
            note: String::new(),
            style: Some(Style::Points(Mark::Cross, 5.0)),
            colour: (0, 0, 0),
        });
        legend.push(Entry { label: "colours tell neighbours apart".into(), note: String::new(), style: None, colour: GREY });
        Some(Figure {
            title: format!("Which {k} of {} latents are active", thousands(*d_sae as u64)),
            subtitle: format!("{}: {}", run.name, sliced.extent()),
            panels: vec![panel],
            legend,
            size: (900, 680),
        })
    }
}

/// Half the width of the box that the cells found reach over.
fn reach(cells: &[Cell]) -> f64 {
    cells.iter().flat_map(|c| &c.corners).map(|p| p.0.abs().max(p.1.abs())).fold(0.0, f64::max)
}

/// The latents of a cell, at its centre of mass, if they fit into it there.
fn label(cell: &Cell) -> Label {
    let next = cell.corners.iter().cycle().skip(1);
    let (mut x, mut y) = (0.0, 0.0);
    for (a, b) in cell.corners.iter().zip(next) {
        let cross = a.0 * b.1 - b.0 * a.1;
        x += (a.0 + b.0) * cross;
        y += (a.1 + b.1) * cross;
    }
    let at = (x / (6.0 * cell.area), y / (6.0 * cell.area));
    let names: Vec<String> = cell.latents.iter().map(u32::to_string).collect();
    let text = if names.is_empty() { "none".to_string() } else { names.join(" ") };
    // A text as wide as two thirds of the chord through the centre, and as high, stays inside a convex cell nearly always.
    let room = (0.7 * chord(cell, at, |p| (p.0, p.1)), 0.5 * chord(cell, at, |p| (p.1, p.0)));
    Label { at, text, is_centred: true, room: Some(room) }
}

/// Length of the cut through a polygon along the first coordinate of `turn`, at the second of the centre.
fn chord(cell: &Cell, at: (f64, f64), turn: impl Fn((f64, f64)) -> (f64, f64)) -> f64 {
    let level = turn(at).1;
    let next = cell.corners.iter().cycle().skip(1);
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (a, b) in cell.corners.iter().zip(next) {
        let (a, b) = (turn(*a), turn(*b));
        if (a.1 - level) * (b.1 - level) <= 0.0 && a.1 != b.1 {
            let x = a.0 + (level - a.1) / (b.1 - a.1) * (b.0 - a.0);
            low = low.min(x);
            high = high.max(x);
        }
    }
    (high - low).max(0.0)
}

/// A colour per cell that no neighbour has. The cell with the fewest neighbours is set aside, again and again; coloured in reverse, each
/// meets at most five coloured neighbours (the graph is planar), so six colours do.
fn coloured(cells: &[Cell]) -> Vec<usize> {
    let mut degree: Vec<usize> = cells.iter().map(|c| c.neighbours.len()).collect();
    let mut waiting: std::collections::BTreeSet<(usize, usize)> = degree.iter().copied().zip(0..).collect();
    let mut order = Vec::with_capacity(cells.len());
    while let Some((_, i)) = waiting.pop_first() {
        order.push(i);
        for &n in &cells[i].neighbours {
            if waiting.remove(&(degree[n], n)) {
                degree[n] -= 1;
                waiting.insert((degree[n], n));
            }
        }
    }
    let mut colours = vec![usize::MAX; cells.len()];
    for &i in order.iter().rev() {
        let free = (0..).find(|c| cells[i].neighbours.iter().all(|&n| colours[n] != *c));
        colours[i] = free.unwrap_or(0);
    }
    colours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ_and_labels_fit() {
        // A 3 x 3 checkerboard.
        let cell = |i: usize| {
            let (x, y) = ((i % 3) as f64, (i / 3) as f64);
            let neighbours = (0..9).filter(|&j| (i % 3).abs_diff(j % 3) + (i / 3).abs_diff(j / 3) == 1).collect();
            Cell { latents: vec![i as u32], corners: vec![(x, y), (x + 1.0, y), (x + 1.0, y + 1.0), (x, y + 1.0)], area: 1.0, neighbours }
        };
        let cells: Vec<Cell> = (0..9).map(cell).collect();
        let colours = coloured(&cells);
        assert!(cells.iter().enumerate().all(|(i, c)| c.neighbours.iter().all(|&n| colours[n] != colours[i])));
        assert!(colours.iter().all(|&c| c < 3));
        let label = label(&cells[4]);
        assert!((label.at.0 - 1.5).abs() < 1e-12 && (label.at.1 - 1.5).abs() < 1e-12);
        let room = label.room.unwrap();
        assert!((room.0 - 0.7).abs() < 1e-12 && (room.1 - 0.5).abs() < 1e-12);
    }
}
