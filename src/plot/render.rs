//! Draws a [`Figure`] with plotters, to SVG and PNG by the same code. Everything is laid out in logical pixels and drawn at twice that:
//! PNG for sharp screens, SVG with its size set back (coordinates are whole numbers there, so twice as many are twice as fine).
//!
//! Deterministic: no date, no system font, no random id.

use std::path::Path;

use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::{BitMapBackend, DrawingBackend, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, ShapeStyle, TextStyle, WHITE};

use super::figure::{Axis, Dash, Entry, Figure, Label, Mark, Panel, Series, Style, Ticks};
use super::fonts;
use crate::artefact;
use crate::error::{Error, Result};

/// Pixels drawn per logical pixel.
const SCALE: f64 = 2.0;
const TITLE: f64 = 19.0;
const SUBTITLE: f64 = 14.0;
const LABEL: f64 = 15.0;
const TICK: f64 = 14.0;
const LEGEND: f64 = 14.0;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 21.0;
/// The legend takes at most this share of the width.
const LEGEND_SHARE: f64 = 0.36;
const MARGIN: f64 = 16.0;

/// The bitmap backend centres the box of a line, descenders included; SVG centres the small letters, as the eye does.
const BITMAP_NUDGE: f64 = 0.13;

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(226, 226, 226);
const FRAME: RGBColor = RGBColor(150, 150, 150);

/// Draws as SVG.
///
/// # Errors
/// When the drawing fails.
pub fn svg(figure: &Figure) -> Result<String> {
    fonts::register()?;
    let size = drawn_size(figure);
    let mut text = String::new();
    paint(figure, SVGBackend::with_string(&mut text, size).into_drawing_area(), 0.0)
        .map_err(|problem| Error::io("draw", "an SVG", std::io::Error::other(problem)))?;
    let drawn = format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1);
    let shown = format!("<svg width=\"{}\" height=\"{}\"", figure.size.0, figure.size.1);
    Ok(text.replacen(&drawn, &shown, 1))
}

fn drawn_size(figure: &Figure) -> (u32, u32) {
    ((f64::from(figure.size.0) * SCALE) as u32, (f64::from(figure.size.1) * SCALE) as u32)
}

/// Draws into `path`; `.svg` and `.png` are known.
///
/// # Errors
/// Another extension; I/O errors.
pub fn draw(figure: &Figure, path: &Path) -> Result<()> {
    let failed = |problem: String| Error::io("draw", path, std::io::Error::other(problem));
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => {
            let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| failed("its name is not Unicode".into()))?;
            artefact::write(dir, name, svg(figure)?.as_bytes())
        }
        Some("png") => {
            fonts::register()?;
            // plotters chooses the encoder by the extension and writes to a path.
            let temp = tempfile::Builder::new().suffix(".png").tempfile_in(dir).map_err(|e| Error::io("create a file in", dir, e))?;
            paint(figure, BitMapBackend::new(temp.path(), drawn_size(figure)).into_drawing_area(), BITMAP_NUDGE).map_err(failed)?;
            artefact::persist(temp, path)
        }
        _ => Err(Error::request(format!("{} is neither SVG nor PNG", path.display()), "name the file .svg or .png")),
    }
}

fn paint<B: DrawingBackend>(figure: &Figure, area: DrawingArea<B, Shift>, nudge: f64) -> Result<(), String> {
    let canvas = Canvas { area, nudge };
    canvas.paint(figure).map_err(|e| e.to_string())?;
    canvas.area.present().map_err(|e| e.to_string())
}

/// A rectangle in logical pixels.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Frame {
    fn at(&self, x: &Axis, y: &Axis, p: (f64, f64)) -> (f64, f64) {
        (self.left + x.place(p.0) * (self.right - self.left), self.bottom - y.place(p.1) * (self.bottom - self.top))
    }

    /// The largest part, from the top left, in which a unit of x is as long as one of y.
    fn isometric(self, x: &Axis, y: &Axis) -> Self {
        let (dx, dy) = (x.range.1 - x.range.0, y.range.1 - y.range.0);
        let unit = ((self.right - self.left) / dx).min((self.bottom - self.top) / dy);
        Self { right: self.left + unit * dx, bottom: self.top + unit * dy, ..self }
    }

    /// A point held inside (a little outside, so that an edge stays hidden); not finite when `p` is not.
    fn clamp(&self, p: (f64, f64)) -> (f64, f64) {
        if p.0.is_finite() && p.1.is_finite() {
            (p.0.clamp(self.left, self.right), p.1.clamp(self.top, self.bottom))
        } else {
            (f64::NAN, f64::NAN)
        }
    }
}

struct Canvas<B: DrawingBackend> {
    area: DrawingArea<B, Shift>,
    /// Moves vertically centred text down, in em.
    nudge: f64,
}

type Drawn<B> = std::result::Result<(), plotters::drawing::DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn px(p: (f64, f64)) -> (i32, i32) {
    ((p.0 * SCALE).round() as i32, (p.1 * SCALE).round() as i32)
}

fn font(size: f64, style: FontStyle) -> FontDesc<'static> {
    // The SVG backend divides by 1.24 to turn plotters' size into an em; the bitmap backend does the like. Undone here, so that
    // a size is an em.
    FontDesc::new(FontFamily::Name(fonts::FAMILY), size * SCALE * 1.24, style)
}

/// Width of a text in logical pixels.
fn width(text: &str, size: f64, style: FontStyle) -> f64 {
    font(size, style).box_size(text).map_or(0.0, |(w, _)| f64::from(w) / SCALE)
}

/// `text`, with its middle left out where it is wider than `room`.
fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size, FontStyle::Normal) <= room {
        return text.to_string();
    }
    let letters: Vec<char> = text.chars().collect();
    for kept in (2..letters.len()).rev() {
        let (head, tail) = (kept.div_ceil(2), kept / 2);
        let short: String = letters[..head].iter().chain(&['…']).chain(&letters[letters.len() - tail..]).collect();
        if width(&short, size, FontStyle::Normal) <= room {
            return short;
        }
    }
    "…".into()
}

/// A legend's text that fits into `room`.
fn label(entry: &Entry, room: f64) -> String {
    let name = fit(&entry.label, LEGEND, room - width(&entry.note, LEGEND, FontStyle::Normal));
    format!("{name}{}", entry.note)
}

/// Labels that have room, with their middles and boxes (left, top, right, bottom): in the order given, each where it lies inside the frame
/// and on none before it.
fn placed<'a>(labels: &'a [Label], x: &Axis, y: &Axis, frame: &Frame) -> Vec<(&'a Label, (f64, f64), [f64; 4])> {
    let (h, gap, apart) = (TICK * 1.25, 5.0, 4.0);
    let mut taken: Vec<[f64; 4]> = Vec::new();
    let mut placed = Vec::new();
    for label in labels {
        let at = frame.at(x, y, label.at);
        let w = width(&label.text, TICK, FontStyle::Normal);
        let length = |axis: &Axis, units: f64| (axis.place(axis.range.0 + units) - axis.place(axis.range.0)).abs();
        if let Some((room_w, room_h)) = label.room {
            if w > length(x, room_w) * (frame.right - frame.left) || h > length(y, room_h) * (frame.bottom - frame.top) {
                continue;
            }
        }
        let beside = [(0.5 * w + gap, 0.0), (-0.5 * w - gap, 0.0), (0.0, -0.5 * h - gap), (0.0, 0.5 * h + gap)];
        let places: &[(f64, f64)] = if label.is_centred { &[(0.0, 0.0)] } else { &beside };
        let boxes = places.iter().map(|(dx, dy)| {
            let (mx, my) = (at.0 + dx, at.1 + dy);
            ((mx, my), [mx - 0.5 * w, my - 0.5 * h, mx + 0.5 * w, my + 0.5 * h])
        });
        let is_free = |b: &[f64; 4]| {
            b[0] > frame.left + 2.0
                && b[1] > frame.top + 2.0
                && b[2] < frame.right - 2.0
                && b[3] < frame.bottom - 2.0
                && taken.iter().all(|t| b[0] > t[2] + apart || b[2] < t[0] - apart || b[1] > t[3] || b[3] < t[1])
        };
        let free = boxes.into_iter().find(|(_, b)| is_free(b));
        if let Some((middle, around)) = free {
            taken.push(around);
            placed.push((label, middle, around));
        }
    }
    placed
}

/// A colour at an opacity on white, as a colour of its own: what lies below does not shine through, and edges of neighbours do not add up.
fn over_white(colour: RGBColor, opacity: f64) -> RGBColor {
    let mix = |c: u8| (255.0 - (255.0 - f64::from(c)) * opacity.clamp(0.0, 1.0)).round() as u8;
    RGBColor(mix(colour.0), mix(colour.1), mix(colour.2))
}

fn rgb((r, g, b): (u8, u8, u8)) -> RGBColor {
    RGBColor(r, g, b)
}

fn stroke(colour: RGBColor, width: f64) -> ShapeStyle {
    colour.stroke_width(((width * SCALE).round() as u32).max(1))
}

impl<B: DrawingBackend> Canvas<B> {
    fn paint(&self, figure: &Figure) -> Drawn<B> {
        self.area.fill(&WHITE)?;
        let (w, h) = (f64::from(figure.size.0), f64::from(figure.size.1));
        self.text(&fit(&figure.title, TITLE * 1.08, w - 2.0 * MARGIN), (MARGIN, 12.0), TITLE, FontStyle::Bold, HPos::Left, VPos::Top)?;
        let mut top = 12.0 + TITLE + 8.0;
        if !figure.subtitle.is_empty() {
            self.text(
                &fit(&figure.subtitle, SUBTITLE, w - 2.0 * MARGIN),
                (MARGIN, top),
                SUBTITLE,
                FontStyle::Normal,
                HPos::Left,
                VPos::Top,
            )?;
            top += SUBTITLE + 8.0;
        }
        top += 8.0;
        let mut right = w - MARGIN;
        if !figure.legend.is_empty() {
            let widest =
                figure.legend.iter().map(|e| width(&format!("{}{}", e.label, e.note), LEGEND, FontStyle::Normal)).fold(0.0, f64::max);
            let room = (widest + 44.0).min(LEGEND_SHARE * w);
            right -= room + 14.0;
            self.legend(&figure.legend, right + 14.0, top, room, h - MARGIN)?;
        }
        let is_bare = |axis: &Axis| axis.label.is_empty() && axis.ticks().is_empty();
        let labels = figure.panels.iter().flat_map(|p| p.y.ticks()).map(|(_, label)| width(&label, TICK, FontStyle::Normal));
        let is_bare_y = figure.panels.iter().all(|p| is_bare(&p.y));
        let left = if is_bare_y { MARGIN } else { MARGIN + LABEL + 14.0 + labels.fold(20.0, f64::max) };
        // Panels share one x axis: only the last one labels it.
        let gap = 16.0;
        let foot = match figure.panels.last() {
            Some(last) if is_bare(&last.x) => MARGIN,
            _ => MARGIN + LABEL + 10.0 + TICK + 8.0,
        };
        let height = (h - top - foot - gap * (figure.panels.len() as f64 - 1.0)) / figure.panels.len() as f64;
        for (i, panel) in figure.panels.iter().enumerate() {
            let top = top + i as f64 * (height + gap);
            self.panel(panel, Frame { left, top, right, bottom: top + height }, i + 1 == figure.panels.len())?;
        }
        Ok(())
    }

    fn text(&self, text: &str, at: (f64, f64), size: f64, style: FontStyle, h: HPos, v: VPos) -> Drawn<B> {
        let at = if matches!(v, VPos::Center) { (at.0, at.1 + self.nudge * size) } else { at };
        let style = TextStyle::from(font(size, style)).color(&INK).pos(Pos::new(h, v));
        self.area.draw(&Text::new(text.to_string(), px(at), style))
    }

    fn panel(&self, panel: &Panel, frame: Frame, is_last: bool) -> Drawn<B> {
        let (x, y) = (&panel.x, &panel.y);
        let frame = if panel.is_isometric { frame.isometric(x, y) } else { frame };
        let is_named = |axis: &Axis| matches!(axis.ticks, Ticks::Named(_));
        for (value, label) in y.ticks() {
            let (_, at) = frame.at(x, y, (x.range.0, value));
            if !is_named(y) {
                self.path(&[(frame.left, at), (frame.right, at)], stroke(GRID, 1.0))?;
            }
            self.text(&label, (frame.left - 7.0, at), TICK, FontStyle::Normal, HPos::Right, VPos::Center)?;
        }
        let mut free = f64::NEG_INFINITY;
        for (value, label) in x.ticks() {
            let (at, _) = frame.at(x, y, (value, y.range.0));
            if !is_named(x) {
                self.path(&[(at, frame.top), (at, frame.bottom)], stroke(GRID, 1.0))?;
            }
            let half = 0.5 * width(&label, TICK, FontStyle::Normal);
            // A label that would touch the one before it is left out.
            if is_last && at - half > free {
                free = at + half + 8.0;
                self.text(&label, (at, frame.bottom + 7.0), TICK, FontStyle::Normal, HPos::Center, VPos::Top)?;
            }
        }
        for (value, label) in &panel.guides {
            let (at, _) = frame.at(x, y, (*value, y.range.0));
            if at > frame.left && at < frame.right {
                self.dashed(&[(at, frame.top), (at, frame.bottom)], stroke(FRAME, 1.5), Dash::Dashed)?;
                let is_right = at + 6.0 + width(label, TICK, FontStyle::Normal) < frame.right;
                let (anchor, side) = if is_right { (HPos::Left, at + 6.0) } else { (HPos::Right, at - 6.0) };
                self.text(label, (side, frame.top + 6.0), TICK, FontStyle::Normal, anchor, VPos::Top)?;
            }
        }
        for series in &panel.series {
            self.series(series, x, y, &frame)?;
        }
        for (label, at, [left, top, right, bottom]) in placed(&panel.labels, x, y, &frame) {
            if !label.is_centred {
                // What lies behind fades, or it would be read as a part of the letters.
                let veil = Rectangle::new([px((left, top)), px((right, bottom))], WHITE.mix(0.8).filled());
                self.area.draw(&veil)?;
            }
            self.text(&label.text, at, TICK, FontStyle::Normal, HPos::Center, VPos::Center)?;
        }
        let corners = [(frame.left, frame.top), (frame.right, frame.top), (frame.right, frame.bottom), (frame.left, frame.bottom)];
        self.path(&[corners[0], corners[1], corners[2], corners[3], corners[0]], stroke(FRAME, 1.0))?;
        if is_last {
            let middle = 0.5 * (frame.left + frame.right);
            self.text(&x.label, (middle, frame.bottom + 7.0 + TICK + 8.0), LABEL, FontStyle::Normal, HPos::Center, VPos::Top)?;
        }
        let style = TextStyle::from(font(LABEL, FontStyle::Normal).transform(FontTransform::Rotate270)).color(&INK);
        let style = style.pos(Pos::new(HPos::Center, VPos::Top));
        self.area.draw(&Text::new(y.label.clone(), px((MARGIN - 6.0, 0.5 * (frame.top + frame.bottom))), style))
    }

    fn series(&self, series: &Series, x: &Axis, y: &Axis, frame: &Frame) -> Drawn<B> {
        let colour = rgb(series.colour);
        match series.style {
            Style::Line(dash, width) => {
                let points: Vec<(f64, f64)> = series.points.iter().map(|&p| frame.clamp(frame.at(x, y, p))).collect();
                for run in points.split(|p| p.0.is_nan()).filter(|run| run.len() > 1) {
                    self.dashed(run, stroke(colour, width), dash)?;
                }
            }
            Style::Points(mark, radius) => {
                for &p in &series.points {
                    let (px, py) = frame.at(x, y, p);
                    let inside = px >= frame.left - 0.5 && px <= frame.right + 0.5 && py >= frame.top - 0.5 && py <= frame.bottom + 0.5;
                    if inside {
                        self.mark(mark, (px, py), radius, colour)?;
                    }
                }
            }
            Style::Steps(dash) => {
                let mut outline: Vec<(f64, f64)> = Vec::with_capacity(2 * series.points.len());
                for pair in series.points.windows(2) {
                    outline.push((pair[0].0, pair[0].1));
                    outline.push((pair[1].0, pair[0].1));
                }
                if let (Some(&(first, _)), Some(&(last, _))) = (outline.first(), outline.last()) {
                    outline.insert(0, (first, y.range.0));
                    outline.push((last, y.range.0));
                    let outline: Vec<(f64, f64)> = outline.into_iter().map(|p| frame.clamp(frame.at(x, y, p))).collect();
                    self.area.draw(&Polygon::new(outline.iter().map(|&p| px(p)).collect::<Vec<_>>(), colour.mix(0.10)))?;
                    self.dashed(&outline, stroke(colour, 2.0), dash)?;
                }
            }
            Style::Fill(opacity) => {
                let corners: Vec<(f64, f64)> = series.points.iter().map(|&p| frame.clamp(frame.at(x, y, p))).collect();
                if corners.len() > 2 && corners.iter().all(|p| !p.0.is_nan()) {
                    self.area.draw(&Polygon::new(corners.into_iter().map(px).collect::<Vec<_>>(), over_white(colour, opacity).filled()))?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, points: &[(f64, f64)], style: ShapeStyle) -> Drawn<B> {
        self.area.draw(&PathElement::new(points.iter().map(|&p| px(p)).collect::<Vec<_>>(), style))
    }

    /// A path cut into dashes along its length.
    fn dashed(&self, points: &[(f64, f64)], style: ShapeStyle, dash: Dash) -> Drawn<B> {
        let (on, off) = match dash {
            Dash::Solid => return self.path(points, style),
            Dash::Dashed => (8.0, 5.0),
            Dash::Dotted => (2.0, 4.0),
        };
        let (mut is_on, mut left) = (true, on);
        let mut piece = vec![points[0]];
        for pair in points.windows(2) {
            let (mut from, to) = (pair[0], pair[1]);
            loop {
                let rest = (to.0 - from.0).hypot(to.1 - from.1);
                if rest <= left {
                    left -= rest;
                    if is_on {
                        piece.push(to);
                    }
                    break;
                }
                let share = left / rest;
                from = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
                if is_on {
                    piece.push(from);
                    self.path(&piece, style)?;
                    piece.clear();
                } else {
                    piece = vec![from];
                }
                is_on = !is_on;
                left = if is_on { on } else { off };
            }
        }
        if is_on && piece.len() > 1 {
            self.path(&piece, style)?;
        }
        Ok(())
    }

    fn mark(&self, mark: Mark, (x, y): (f64, f64), r: f64, colour: RGBColor) -> Drawn<B> {
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<(i32, i32)> = corners.iter().map(|c| px((x + r * c.0, y + r * c.1))).collect();
            self.area.draw(&Polygon::new(corners, colour.filled()))
        };
        match mark {
            Mark::Disc => self.area.draw(&Circle::new(px((x, y)), (r * SCALE).round() as i32, colour.filled())),
            Mark::Square => {
                self.area.draw(&Rectangle::new([px((x - 0.9 * r, y - 0.9 * r)), px((x + 0.9 * r, y + 0.9 * r))], colour.filled()))
            }
            Mark::Triangle => polygon(&[(0.0, -1.15), (1.05, 0.8), (-1.05, 0.8)]),
            Mark::Diamond => polygon(&[(0.0, -1.25), (1.1, 0.0), (0.0, 1.25), (-1.1, 0.0)]),
            Mark::Cross => {
                self.path(&[(x - r, y - r), (x + r, y + r)], stroke(colour, 2.2))?;
                self.path(&[(x - r, y + r), (x + r, y - r)], stroke(colour, 2.2))
            }
        }
    }

    fn legend(&self, entries: &[Entry], left: f64, top: f64, room: f64, bottom: f64) -> Drawn<B> {
        let lines = ((bottom - top) / LEGEND_LINE).floor() as usize;
        let shown = if entries.len() > lines { lines.saturating_sub(1) } else { entries.len() };
        for (i, entry) in entries[..shown].iter().enumerate() {
            let y = top + (i as f64 + 0.5) * LEGEND_LINE;
            let Some(style) = entry.style else {
                self.text(&label(entry, room), (left, y), LEGEND, FontStyle::Normal, HPos::Left, VPos::Center)?;
                continue;
            };
            let colour = rgb(entry.colour);
            match style {
                Style::Line(dash, width) => self.dashed(&[(left, y), (left + 28.0, y)], stroke(colour, width.max(2.0)), dash)?,
                Style::Points(mark, radius) => self.mark(mark, (left + 14.0, y), radius, colour)?,
                Style::Steps(dash) => {
                    let (a, b) = (px((left + 2.0, y - 6.0)), px((left + 26.0, y + 6.0)));
                    self.area.draw(&Rectangle::new([a, b], colour.mix(0.18).filled()))?;
                    self.dashed(&[(left + 2.0, y - 6.0), (left + 26.0, y - 6.0)], stroke(colour, 2.0), dash)?;
                }
                Style::Fill(opacity) => {
                    let (a, b) = (px((left + 2.0, y - 6.0)), px((left + 26.0, y + 6.0)));
                    self.area.draw(&Rectangle::new([a, b], over_white(colour, opacity).filled()))?;
                    self.area.draw(&Rectangle::new([a, b], stroke(FRAME, 1.0)))?;
                }
            }
            self.text(&label(entry, room - 36.0), (left + 36.0, y), LEGEND, FontStyle::Normal, HPos::Left, VPos::Center)?;
        }
        if shown < entries.len() {
            let y = top + (shown as f64 + 0.5) * LEGEND_LINE;
            let more = format!("and {} more", entries.len() - shown);
            self.text(&more, (left + 36.0, y), LEGEND, FontStyle::Normal, HPos::Left, VPos::Center)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(at: (f64, f64), text: &str) -> Label {
        Label { at, text: text.into(), is_centred: false, room: None }
    }

    #[test]
    fn labels_lie_inside_and_on_no_other() {
        fonts::register().unwrap();
        let axis = Axis::linear("", (0.0, 1.0));
        let frame = Frame { left: 0.0, top: 0.0, right: 200.0, bottom: 100.0 };
        // At the left edge it goes right, at the right edge left; in the middle there is room for one at each side.
        let mut labels = vec![label((0.0, 0.5), "west"), label((1.0, 0.5), "east")];
        labels.extend((0..5).map(|i| label((0.5, 0.5), &format!("m{i}"))));
        let found = placed(&labels, &axis, &axis, &frame);
        assert_eq!(found.iter().map(|f| f.0.text.as_str()).collect::<Vec<_>>(), ["west", "east", "m0", "m1"]);
        assert!(found[0].1 .0 > 0.0 && found[1].1 .0 < 200.0);
        let tight = Label { room: Some((0.01, 1.0)), ..label((0.5, 0.5), "too wide") };
        assert!(placed(&[tight], &axis, &axis, &frame).is_empty());
    }

    #[test]
    fn isometric_panels_have_one_unit() {
        let frame = Frame { left: 10.0, top: 0.0, right: 410.0, bottom: 100.0 };
        let f = frame.isometric(&Axis::linear("", (-1.0, 1.0)), &Axis::linear("", (0.0, 1.0)));
        assert_eq!((f.right - f.left, f.bottom - f.top), (200.0, 100.0));
    }
}
