//! Figures over a number that each run has several values for: a curve per setting through the means over its seeds, a mark per run.

use super::collect::Setting;
use super::figure::{colour, dash, mark, Axis, Entry, Figure, Panel, Scale, Series, Style};

/// `(x, y)` of one run.
pub type Curve = Vec<(f64, f64)>;

/// What stands around the curves.
pub struct Frame<'a> {
    pub title: &'a str,
    pub subtitle: String,
    pub x: &'a str,
    pub y: &'a str,
}

/// The figure; `None` without a finite value.
pub fn figure(frame: Frame<'_>, settings: &[Setting<'_, Curve>]) -> Option<Figure> {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points = || settings.iter().flat_map(|s| &s.runs).flatten().filter(finite);
    points().next()?;
    let x = Axis::fitting(frame.x, points().map(|p| p.0), 4.0);
    let x = if x.scale == Scale::Log { x.marking(points().map(|p| p.0)) } else { x };
    let y = Axis::fitting(frame.y, points().map(|p| p.1), 4.0);
    let (mut series, mut legend) = (Vec::new(), Vec::new());
    for (i, setting) in settings.iter().enumerate() {
        let all: Curve = setting.runs.iter().flatten().filter(finite).copied().collect();
        let marks = Style::Points(mark(i), 4.5);
        series.push(Series { points: means(&all), style: Style::Line(dash(i), 2.2), colour: colour(i) });
        series.push(Series { points: all, style: marks, colour: colour(i) });
        legend.push(Entry { label: setting.label(), note: String::new(), style: Some(marks), colour: colour(i) });
    }
    let mut subtitle = frame.subtitle;
    if let [one] = settings {
        legend.clear();
        subtitle = format!("{}; {subtitle}", one.label());
    }
    Some(Figure { title: frame.title.into(), subtitle, panels: vec![Panel::new(x, y, series)], legend, size: (900, 540) })
}

/// The mean at each x, ascending.
fn means(points: &[(f64, f64)]) -> Curve {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    sorted.chunk_by(|a, b| a.0 == b.0).map(|same| (same[0].0, same.iter().map(|p| p.1).sum::<f64>() / same.len() as f64)).collect()
}
