//! Training curves: FVU, L0 and dead latents over tokens; the runs of a sweep in one picture.

use super::figure::{colour, dash, Axis, Entry, Figure, Panel, Scale, Series, Style};
use super::{Chart, Run};
use crate::score::thousands;
use crate::train::LogRecord;

/// See the module.
pub struct Training;

impl Chart for Training {
    fn id(&self) -> &'static str {
        "training"
    }

    fn title(&self) -> &'static str {
        "FVU, L0 and dead latents over training tokens"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let logged: Vec<(&Run, &[LogRecord])> =
            runs.iter().filter_map(|run| Some((run, run.log.as_deref()?))).filter(|(_, log)| !log.is_empty()).collect();
        let (_, first) = logged.first()?;
        // Seeds of a setting share a colour and a line of the legend.
        let mut settings: Vec<&str> = Vec::new();
        for (run, _) in &logged {
            if !settings.contains(&run.setting()) {
                settings.push(run.setting());
            }
        }
        let group = |run: &Run| settings.iter().position(|s| *s == run.setting()).unwrap_or(0);
        let x = Axis { range: x_range(&logged), ..Axis::fitting("training tokens", std::iter::empty(), f64::INFINITY) };
        let panel = |label: &str, log_above: f64, value: fn(&LogRecord) -> f64| {
            let y = Axis::fitting(label, logged.iter().flat_map(|(_, log)| log.iter().map(value)), log_above);
            let series = logged.iter().map(|(run, log)| Series {
                points: log.iter().map(|r| (r.tokens as f64, value(r))).collect(),
                style: Style::Line(dash(group(run)), 1.8),
                colour: colour(group(run)),
            });
            Panel::new(x.clone(), y, series.collect())
        };
        let mut panels = vec![
            panel("FVU (batch)", 4.0, |r| r.fvu),
            panel("L0 (latents/row)", 4.0, |r| r.l0),
            panel("dead latents", f64::INFINITY, |r| r.dead as f64),
        ];
        if panels[1].y.scale == Scale::Log {
            let last = logged.iter().filter_map(|(_, log)| Some(log.last()?.l0));
            panels[1].y = panels[1].y.clone().marking(last);
        }
        let legend = if settings.len() < 2 {
            Vec::new()
        } else {
            let entry = |(i, setting): (usize, &&str)| {
                let seeds = logged.iter().filter(|(run, _)| run.setting() == *setting).count();
                let label = if seeds > 1 { format!("{setting} ({seeds} seeds)") } else { setting.to_string() };
                Entry { label, note: String::new(), style: Some(Style::Line(dash(i), 2.5)), colour: colour(i) }
            };
            settings.iter().enumerate().map(entry).collect()
        };
        let mut subtitle = format!("dead: silent for {} tokens", thousands(first.first()?.dead_after_tokens));
        if settings.len() == 1 {
            subtitle = format!("{}; {subtitle}", if logged.len() == 1 { &logged[0].0.name } else { settings[0] });
        }
        Some(Figure { title: "Training".into(), subtitle, panels, legend, size: (900, 640) })
    }
}

fn x_range(logged: &[(&Run, &[LogRecord])]) -> (f64, f64) {
    let last = logged.iter().flat_map(|(_, log)| log.last()).map(|r| r.tokens).max().unwrap_or(1);
    (0.0, (last as f64 * 1.02).max(1.0))
}
