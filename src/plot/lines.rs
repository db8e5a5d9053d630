//! Figures of one's own: a few named lines or clouds of points over a pair of axes, with colours, marks and a legend chosen.

use super::figure::{colour, dash, mark, Axis, Entry, Figure, Panel, Series, Style};

type Points = Vec<(f64, f64)>;

impl Figure {
    /// Named lines; an axis whose values are positive and span more than a factor of 100 is logarithmic. A single line has no legend.
    ///
    /// ```
    /// let figure = lapidary::plot::Figure::lines("a parabola", "x", "y", [("x^2", (0..9).map(|x| (x as f64, (x * x) as f64)).collect())]);
    /// assert_eq!(figure.panels.len(), 1);
    /// ```
    pub fn lines<'a>(title: &str, x: &str, y: &str, lines: impl IntoIterator<Item = (&'a str, Points)>) -> Self {
        Self::drawn(title, x, y, lines, |i| vec![Style::Line(dash(i), 2.0)])
    }

    /// Named clouds of points, each with a mark of its own, joined by a line in their order.
    pub fn joined<'a>(title: &str, x: &str, y: &str, clouds: impl IntoIterator<Item = (&'a str, Points)>) -> Self {
        Self::drawn(title, x, y, clouds, |i| vec![Style::Points(mark(i), 4.5), Style::Line(dash(i), 1.6)])
    }

    fn drawn<'a>(
        title: &str,
        x: &str,
        y: &str,
        groups: impl IntoIterator<Item = (&'a str, Points)>,
        styles: impl Fn(usize) -> Vec<Style>,
    ) -> Self {
        let groups: Vec<(&str, Points)> = groups.into_iter().collect();
        let axis =
            |label: &str, at: fn(&(f64, f64)) -> f64| Axis::fitting(label, groups.iter().flat_map(|(_, points)| points).map(at), 100.0);
        let (x, y) = (axis(x, |p| p.0), axis(y, |p| p.1));
        let (mut series, mut legend) = (Vec::new(), Vec::new());
        for (i, (name, points)) in groups.iter().enumerate() {
            let styles = styles(i);
            if groups.len() > 1 {
                legend.push(Entry { label: (*name).into(), note: String::new(), style: styles.first().copied(), colour: colour(i) });
            }
            series.extend(styles.into_iter().map(|style| Series { points: points.clone(), style, colour: colour(i) }));
        }
        let panels = vec![Panel::new(x, y, series)];
        Self { title: title.into(), subtitle: String::new(), panels, legend, size: (760, 440) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::figure::Scale;

    #[test]
    fn groups_differ_and_wide_axes_are_logarithmic() {
        let figure = Figure::joined("t", "x", "y", [("a", vec![(1.0, 1.0), (2.0, 1e4)]), ("b", vec![(1.5, 3.0)])]);
        let panel = &figure.panels[0];
        assert_eq!((panel.x.scale, panel.y.scale), (Scale::Linear, Scale::Log));
        assert_eq!((panel.series.len(), figure.legend.len()), (4, 2));
        assert!(figure.legend[0].colour != figure.legend[1].colour && figure.legend[0].style != figure.legend[1].style);
        assert!(Figure::lines("t", "x", "y", [("only", vec![(0.0, 1.0)])]).legend.is_empty());
    }
}
