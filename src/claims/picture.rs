//! Pictures of claims: a point per seed, lines through the means.

use super::report::Table;
use crate::plot::{Axis, Dash, Entry, Figure, Mark, Panel, Scale, Series, Style, GREY, PALETTE};

/// A line of a picture.
pub struct Curve<'a> {
    /// In the legend.
    pub label: &'a str,
    /// Its x, and its y for each seed.
    pub points: Vec<(f64, Vec<f64>)>,
    /// A baseline: grey and dotted.
    pub is_baseline: bool,
}

impl<'a> Curve<'a> {
    /// A line of a table whose columns are numbers.
    pub fn of(table: &Table, line: &'a str, columns: &[usize]) -> Self {
        let point = |c: &usize| (*c as f64, table.get(line, &c.to_string()).values);
        Self { label: line, points: columns.iter().map(point).collect(), is_baseline: false }
    }
}

/// The look of a panel's axes.
pub struct Axes<'a> {
    /// Horizontal, with its unit.
    pub x: &'a str,
    /// Vertical, with its unit.
    pub y: &'a str,
    /// Factor above which an axis is logarithmic.
    pub log_above: f64,
}

/// One panel of curves; `joined` draws lines through the means.
pub fn panel(axes: &Axes<'_>, curves: &[Curve<'_>], joined: bool) -> Panel {
    let xs = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.0));
    let ys = curves.iter().flat_map(|c| c.points.iter().flat_map(|p| p.1.iter().copied()));
    let x = Axis::fitting(axes.x, xs(), axes.log_above);
    let x = if joined && x.scale == Scale::Log { x.marking(xs()) } else { x };
    let y = Axis::fitting(axes.y, ys, axes.log_above);
    let mut series = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let colour = colour(curves, i);
        if joined {
            let mean = |(x, ys): &(f64, Vec<f64>)| (*x, ys.iter().sum::<f64>() / ys.len() as f64);
            series.push(Series { points: curve.points.iter().map(mean).collect(), style: line(curves, i), colour });
        }
        let points = curve.points.iter().flat_map(|(x, ys)| ys.iter().map(|y| (*x, *y))).collect();
        series.push(Series { points, style: Style::Points(mark(curves, i), if joined { 2.6 } else { 5.0 }), colour });
    }
    Panel::new(x, y, series)
}

/// A legend of the same curves.
pub fn legend(curves: &[Curve<'_>], joined: bool) -> Vec<Entry> {
    let entry = |(i, curve): (usize, &Curve<'_>)| Entry {
        label: curve.label.to_string(),
        note: String::new(),
        style: Some(if joined { line(curves, i) } else { Style::Points(mark(curves, i), 5.0) }),
        colour: colour(curves, i),
    };
    curves.iter().enumerate().map(entry).collect()
}

/// One panel with its legend.
pub fn figure(title: &str, subtitle: &str, axes: &Axes<'_>, curves: &[Curve<'_>], joined: bool) -> Figure {
    Figure {
        title: title.into(),
        subtitle: subtitle.into(),
        panels: vec![panel(axes, curves, joined)],
        legend: legend(curves, joined),
        size: (900, 520),
    }
}

/// Place among the curves that are no baselines, or among those that are.
fn rank(curves: &[Curve<'_>], i: usize) -> usize {
    curves[..i].iter().filter(|c| c.is_baseline == curves[i].is_baseline).count()
}

fn colour(curves: &[Curve<'_>], i: usize) -> (u8, u8, u8) {
    if curves[i].is_baseline {
        GREY
    } else {
        PALETTE[rank(curves, i) % PALETTE.len()]
    }
}

fn line(curves: &[Curve<'_>], i: usize) -> Style {
    if curves[i].is_baseline {
        return Style::Line([Dash::Dotted, Dash::Dashed, Dash::Solid][rank(curves, i) % 3], 1.4);
    }
    Style::Line([Dash::Solid, Dash::Dashed, Dash::Dotted][(rank(curves, i) / PALETTE.len()) % 3], 2.2)
}

fn mark(curves: &[Curve<'_>], i: usize) -> Mark {
    [Mark::Disc, Mark::Square, Mark::Triangle, Mark::Diamond, Mark::Cross][rank(curves, i) % 5]
}
