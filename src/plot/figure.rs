//! A chart as data: panels, axes, marks, a legend. Charts make these; `render` draws them; tests look at them without a picture.

/// Colours that people with any of the common colour deficiencies tell apart (Okabe and Ito), dark enough on white; black and grey are
/// kept for baselines and guides.
pub const PALETTE: [(u8, u8, u8); 7] =
    [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (148, 103, 60)];

/// Grey of baselines.
pub const GREY: (u8, u8, u8) = (90, 90, 90);

/// The colour of the i-th group; from the eighth on they repeat, with another dash.
pub fn colour(i: usize) -> (u8, u8, u8) {
    PALETTE[i % PALETTE.len()]
}

/// The dash of the i-th group.
pub fn dash(i: usize) -> Dash {
    match (i / PALETTE.len()) % 3 {
        0 => Dash::Solid,
        1 => Dash::Dashed,
        _ => Dash::Dotted,
    }
}

/// The mark of the i-th group.
pub fn mark(i: usize) -> Mark {
    [Mark::Disc, Mark::Square, Mark::Triangle, Mark::Diamond, Mark::Cross][i % 5]
}

/// How an axis maps values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors.
    Log,
}

/// Which values of an axis are marked.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Ticks {
    /// Round ones.
    #[default]
    Round,
    /// These.
    At(Vec<f64>),
    /// These, under these names; no grid line, since what stands between names means nothing. Empty = an axis without units.
    Named(Vec<(f64, String)>),
}

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// From, to; from < to, both positive on a log axis.
    pub range: (f64, f64),
    /// What is marked.
    pub ticks: Ticks,
}

impl Axis {
    /// A linear axis of this range, with round marks.
    pub fn linear(label: impl Into<String>, range: (f64, f64)) -> Self {
        Self { label: label.into(), scale: Scale::Linear, range, ticks: Ticks::Round }
    }

    /// An axis that holds all values with some room, log when they are positive and span more than a factor of `log_above`.
    /// Values that the scale cannot show are ignored.
    pub fn fitting(label: impl Into<String>, values: impl Iterator<Item = f64>, log_above: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(|v| v.is_finite()) {
            low = low.min(v);
            high = high.max(v);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let scale = if low > 0.0 && high / low > log_above { Scale::Log } else { Scale::Linear };
        let range = match scale {
            Scale::Log => {
                let room = (high / low).powf(0.06).max(1.05);
                (low / room, high * room)
            }
            Scale::Linear => {
                // Values that differ by a hair are not pulled apart.
                let room = if high > low { (0.06 * (high - low)).max(0.03 * high.abs()) } else { (0.1 * high.abs()).max(0.5) };
                // Zero is a better floor than a little above it.
                let floor = if low >= 0.0 && low - room < 0.3 * high { 0.0 } else { low - room };
                (floor, high + room)
            }
        };
        Self { label: label.into(), scale, range, ticks: Ticks::Round }
    }

    /// Marks the values that occur (rounded) where these are few: the k of a sweep rather than 5, 10, 20.
    pub fn marking(mut self, values: impl Iterator<Item = f64>) -> Self {
        let mut marks: Vec<f64> = values.filter(|v| v.is_finite()).map(f64::round).filter(|v| *v > 0.0).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        if (2..=8).contains(&marks.len()) {
            self.ticks = Ticks::At(marks);
        }
        self
    }

    /// Where on the axis a value stands: 0 at its beginning, 1 at its end; may lie outside. NaN where the scale has no place for it.
    pub fn place(&self, value: f64) -> f64 {
        let (a, b) = self.range;
        match self.scale {
            Scale::Linear => (value - a) / (b - a),
            Scale::Log => (value.ln() - a.ln()) / (b.ln() - a.ln()),
        }
    }

    /// Values to mark, with their labels.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match (&self.ticks, self.scale) {
            (Ticks::At(values), _) => values.iter().map(|&v| (v, short(v, v))).collect(),
            (Ticks::Named(names), _) => names.clone(),
            (Ticks::Round, Scale::Linear) => linear_ticks(self.range),
            (Ticks::Round, Scale::Log) => log_ticks(self.range),
        }
    }
}

fn linear_ticks((a, b): (f64, f64)) -> Vec<(f64, String)> {
    let raw = (b - a) / 5.0;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|s| *s >= raw * 0.999).unwrap_or(10.0 * magnitude);
    let first = (a / step - 1e-9).ceil() as i64;
    let last = (b / step + 1e-9).floor() as i64;
    (first..=last).map(|i| (i as f64 * step, short(i as f64 * step, step))).collect()
}

/// Powers of ten; with 2 and 5 between when there are few of them, with all digits when there is hardly one.
fn log_ticks((a, b): (f64, f64)) -> Vec<(f64, String)> {
    let decades = (b / a).log10();
    let inside = |v: f64| v >= a * 0.999_999 && v <= b * 1.000_001;
    let exponents = a.log10().floor() as i32..=b.log10().ceil() as i32;
    let count =
        |digits: &[f64]| exponents.clone().flat_map(|e| digits.iter().map(move |d| d * 10f64.powi(e))).filter(|v| inside(*v)).count();
    let coarse: &[f64] = &[1.0, 2.0, 5.0];
    let digits: &[f64] = if decades > 3.5 {
        &[1.0]
    } else if decades > 0.8 && count(coarse) > 2 {
        coarse
    } else {
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    };
    let skip = (decades / 8.0).ceil().max(1.0) as i32;
    let mut ticks = Vec::new();
    for exponent in exponents.clone() {
        if digits.len() == 1 && exponent.rem_euclid(skip) != 0 {
            continue;
        }
        for digit in digits {
            let value = digit * 10f64.powi(exponent);
            if inside(value) {
                ticks.push((value, short(value, value)));
            }
        }
    }
    ticks
}

/// A tick's label: 0.05, 12, 250k, 1.5M, 1e-6. `step` says how many decimals are needed.
fn short(value: f64, step: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".into();
    }
    if size < 9.999e-4 {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let (divisor, suffix) = if size >= 999_999.5 {
        (1e6, "M")
    } else if size >= 9999.5 {
        (1e3, "k")
    } else {
        (1.0, "")
    };
    let step = (step / divisor).abs();
    let decimals =
        (0..6).find(|&d| (step * 10f64.powi(d) - (step * 10f64.powi(d)).round()).abs() < 1e-6 * step * 10f64.powi(d)).unwrap_or(2);
    let text = format!("{:.*}", decimals as usize, value / divisor);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dash {
    /// Without a gap.
    Solid,
    /// Dashes.
    Dashed,
    /// Dots.
    Dotted,
}

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A disc.
    Disc,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
    /// A cross.
    Cross,
    /// A diamond.
    Diamond,
}

/// How points become a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Style {
    /// Joined in their order, this wide (logical pixels).
    Line(Dash, f64),
    /// One mark each, of this radius (logical pixels).
    Points(Mark, f64),
    /// Level from each point to the next in x, and down to the axis at both ends: the outline of a histogram, filled faintly.
    Steps(Dash),
    /// The polygon of these corners, filled at this opacity (0 to 1).
    Fill(f64),
}

/// Points drawn in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// In the units of the axes; points that are not finite break a line.
    pub points: Vec<(f64, f64)>,
    /// How.
    pub style: Style,
    /// In which colour.
    pub colour: (u8, u8, u8),
}

/// One pair of axes with what is in them.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// In drawing order.
    pub series: Vec<Series>,
    /// Vertical guides, with a short text each.
    pub guides: Vec<(f64, String)>,
    /// Texts at points, the most important first: one that has no room beside those before it is left out.
    pub labels: Vec<Label>,
    /// Is a unit as long on one axis as on the other? The panel shrinks to make it so.
    pub is_isometric: bool,
}

impl Panel {
    /// Axes with series, and nothing else.
    pub fn new(x: Axis, y: Axis, series: Vec<Series>) -> Self {
        Self { x, y, series, guides: Vec::new(), labels: Vec::new(), is_isometric: false }
    }
}

/// A text in a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// Of what, in the units of the axes.
    pub at: (f64, f64),
    /// What it says.
    pub text: String,
    /// Stands in the middle of `at`; otherwise beside it.
    pub is_centred: bool,
    /// The width and height it must fit into, in the units of the axes.
    pub room: Option<(f64, f64)>,
}

/// A line of the legend.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it is; its middle is left out where room is short.
    pub label: String,
    /// A figure after it that is never shortened.
    pub note: String,
    /// How it is drawn; `None` = a heading.
    pub style: Option<Style>,
    /// In which colour.
    pub colour: (u8, u8, u8),
}

/// A whole picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Above it.
    pub title: String,
    /// Below the title, smaller: what the reader must know (rows, split).
    pub subtitle: String,
    /// From top to bottom.
    pub panels: Vec<Panel>,
    /// At the right; empty = none.
    pub legend: Vec<Entry>,
    /// Width and height, logical pixels.
    pub size: (u32, u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_few() {
        let axis = |scale, range| Axis { label: String::new(), scale, range, ticks: Ticks::Round };
        assert_eq!(labels(&axis(Scale::Linear, (0.0, 1_050_000.0))), ["0", "250k", "500k", "750k", "1M"]);
        assert_eq!(labels(&axis(Scale::Linear, (0.0, 0.31))), ["0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(&axis(Scale::Log, (3.6, 36.0))), ["5", "10", "20"]);
        assert_eq!(labels(&axis(Scale::Log, (1e-6, 1.0))), ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(&axis(Scale::Log, (0.05, 0.4))), ["0.05", "0.1", "0.2"]);
        assert_eq!(labels(&axis(Scale::Log, (0.021, 0.17))), ["0.03", "0.04", "0.05", "0.06", "0.08", "0.1", "0.15"]);
        for range in [(0.0, 1.0), (0.0, 37.0), (-3.0, 2.2), (0.017, 0.019), (1e7, 3e7)] {
            let n = axis(Scale::Linear, range).ticks().len();
            assert!((3..=7).contains(&n), "{range:?}: {n}");
        }
        for range in [(1e-9, 1.0), (2.0, 5.0), (0.9, 1e4)] {
            let n = axis(Scale::Log, range).ticks().len();
            assert!((3..=12).contains(&n), "{range:?}: {n}");
        }
    }

    #[test]
    fn axes_hold_their_values() {
        let wide = Axis::fitting("", [0.02, 0.9].into_iter(), 4.0);
        assert_eq!(wide.scale, Scale::Log);
        let narrow = Axis::fitting("", [0.5, 0.9].into_iter(), 4.0);
        assert_eq!(narrow.scale, Scale::Linear);
        for (axis, v) in [(&wide, 0.02), (&wide, 0.9), (&narrow, 0.5), (&narrow, 0.9)] {
            assert!((0.0..=1.0).contains(&axis.place(v)));
        }
        let none = Axis::fitting("", [f64::NAN].into_iter(), 4.0);
        assert_eq!(none.range.0, 0.0);
        let swept = Axis::fitting("", [4.01, 31.9].into_iter(), 4.0).marking([4.01, 31.9, 3.98, 16.0].into_iter());
        assert_eq!(labels(&swept), ["4", "16", "32"]);
        let same = Axis::fitting("", [16.0, 16.0].into_iter(), 4.0);
        assert!((0.1..0.9).contains(&same.place(16.0)));
    }
}
