//! Charts of results: they read what other stages wrote, and never run anything.
//!
//! A chart is a file that turns [`Run`]s into a [`Figure`]; [`ALL`] lists them. One renderer draws figures to SVG and PNG, without system
//! fonts, the same bytes each time. Not for: interactive pages (`dashboard`).

mod atlas;
mod coherence;
mod collect;
mod curves;
mod density;
mod figure;
mod fonts;
mod frontier;
mod lines;
mod prefixes;
mod recovery;
mod render;
mod slice;
mod steps;
mod tables;
mod training;

use std::path::{Path, PathBuf};

pub use collect::{collect, name_of, Run};
pub use figure::{Axis, Dash, Entry, Figure, Label, Mark, Panel, Scale, Series, Style, Ticks, GREY, PALETTE};
pub use render::{draw, svg};
pub use slice::{Sliced, MAX_CELLS};
pub use tables::{Atlas, Atom, Concepts, Densities};

use crate::error::{Error, Result};

/// A kind of picture.
pub trait Chart: Sync {
    /// Name in `--chart` and of the files.
    fn id(&self) -> &'static str;

    /// What it shows, for help.
    fn title(&self) -> &'static str;

    /// The picture; `None` when no run has what it needs.
    fn figure(&self, runs: &[Run]) -> Option<Figure>;
}

/// Every chart; adding one is a file and a line here.
pub const ALL: &[&dyn Chart] = &[
    &training::Training,
    &density::Density,
    &frontier::Frontier,
    &prefixes::Prefixes,
    &steps::Steps,
    &coherence::Coherence,
    &recovery::RecoveryBars,
    &atlas::AtlasMap,
    &slice::SliceMap,
];

/// The chart of an id.
///
/// # Errors
/// An unknown id; the message lists those that exist.
pub fn chart(id: &str) -> Result<&'static dyn Chart> {
    ALL.iter().copied().find(|c| c.id() == id).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|c| c.id()).collect();
        Error::request(format!("no chart `{id}`"), format!("the charts are {}", known.join(", ")))
    })
}

/// The chart `id` of `runs`, drawn by whoever asks for it.
///
/// # Errors
/// An unknown id; runs without the data that it shows.
pub fn figure(id: &str, runs: &[Run]) -> Result<Figure> {
    let chart = chart(id)?;
    chart.figure(runs).ok_or_else(|| nothing_for(chart, runs))
}

fn nothing_for(chart: &dyn Chart, runs: &[Run]) -> Error {
    Error::request(
        format!("{} runs, and none has what the chart `{}` shows ({})", runs.len(), chart.id(), chart.title()),
        "train or score them first, or point to the folder that holds the runs",
    )
}

/// Draws charts as `out/<id>.svg` and `out/<id>.png` and returns the paths. `ids` empty = all that the runs have data for.
///
/// # Errors
/// An unknown id; runs without the data of a chart that was asked for, or of any; I/O errors.
pub fn draw_all(runs: &[Run], ids: &[String], out: &Path) -> Result<Vec<PathBuf>> {
    let asked: Vec<&dyn Chart> = if ids.is_empty() { ALL.to_vec() } else { ids.iter().map(|id| chart(id)).collect::<Result<_>>()? };
    let mut figures = Vec::new();
    for chart in asked {
        match chart.figure(runs) {
            Some(figure) => figures.push((chart.id(), figure)),
            None if ids.is_empty() => {}
            None => return Err(nothing_for(chart, runs)),
        }
    }
    if figures.is_empty() {
        return Err(Error::request(
            "there is nothing to draw: no log.jsonl, score.json, latents.parquet, concepts.json or features.parquet was found",
            "point to the folder of a training run, of a score, of a sweep, or of a feature table",
        ));
    }
    let mut written = Vec::new();
    for (id, figure) in &figures {
        for extension in ["svg", "png"] {
            let path = out.join(format!("{id}.{extension}"));
            draw(figure, &path)?;
            written.push(path);
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
