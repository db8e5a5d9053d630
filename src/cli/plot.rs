//! `lapidary plot`: charts of what runs left behind, and slices through a dictionary.

use std::fmt;
use std::path::{Path, PathBuf};

use lapidary::dictionary::slice::{Plane, PlaneChoice, Slice};
use lapidary::plot::{self, Run, Sliced};
use lapidary::shard::Shards;
use lapidary::{Dictionary, Error, Result};
use serde::Serialize;

/// Rows whose principal directions are taken.
const ROWS: usize = 8192;

/// Draw charts from runs: training curves, firing density, FVU against L0, concepts, the atlas; slices through a dictionary.
#[derive(Debug, clap::Args)]
#[command(after_help = teach())]
pub struct Args {
    /// Folder of runs; searched through. For `slice`: the folder of a dictionary.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Which charts; may be repeated [default: all that there is data for].
    #[arg(long, value_name = "NAME")]
    pub chart: Vec<String>,
    /// Folder for SVG and PNG files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The plane of `slice`, through b_dec: random:SEED, latents:I,J (spanned by two atoms) or pca [default: random:0].
    #[arg(long, value_name = "PLANE", help_heading = "Slices")]
    pub plane: Option<PlaneChoice>,
    /// Half the width of the box, in units of activations [default: the RMS norm of the rows it was trained on, if it says].
    #[arg(long, value_name = "S", help_heading = "Slices")]
    pub plane_size: Option<f64>,
    /// With --plane pca: the mean and principal directions of these shards' training rows, instead of the atoms'.
    #[arg(long, value_name = "DIR", help_heading = "Slices")]
    pub shards: Option<PathBuf>,
}

impl Args {
    /// Charts of everything below a folder, or some of them.
    pub fn new(from: PathBuf, chart: &[&str], out: PathBuf) -> Self {
        let chart = chart.iter().map(|c| c.to_string()).collect();
        Self { from, chart, out, plane: None, plane_size: None, shards: None }
    }
}

fn teach() -> String {
    let charts: String = plot::ALL.iter().map(|c| format!("  {:<10} {}\n", c.id(), c.title())).collect();
    format!(
        "Charts:\n{charts}
Examples:
  lapidary plot --from runs/sweep --out plots
  lapidary plot --from runs --chart frontier --chart density --out plots
  lapidary plot --from runs/k8-d512-s0 --chart slice --plane latents:3,17 --out plots
Every folder below --from with a log.jsonl, score.json, latents.parquet, concepts.json or features.parquet takes part."
    )
}

/// The files drawn.
#[derive(Debug, Serialize)]
pub struct Report {
    /// SVG and PNG.
    pub files: Vec<PathBuf>,
    /// How much of a slice was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(slice) = &self.slice {
            writeln!(f, "slice: {slice}")?;
        }
        f.write_str(&self.files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join("\n"))
    }
}

/// Draws.
pub fn run(args: &Args) -> Result<Report> {
    let wants_slice = args.chart.iter().any(|c| c == "slice");
    if !wants_slice && (args.plane.is_some() || args.plane_size.is_some() || args.shards.is_some()) {
        return Err(Error::request("--plane, --plane-size and --shards are for slices", "add --chart slice, or leave them out"));
    }
    for id in &args.chart {
        plot::chart(id)?;
    }
    let mut runs = if wants_slice && args.chart.len() == 1 { Vec::new() } else { plot::collect(&args.from)? };
    let mut slice = None;
    if wants_slice {
        let sliced = sliced(args)?;
        slice = Some(sliced.extent());
        let name = plot::name_of(&args.from, &args.from);
        runs.push(Run { name, slice: Some(sliced), ..Run::default() });
    }
    Ok(Report { files: plot::draw_all(&runs, &args.chart, &args.out)?, slice })
}

fn sliced(args: &Args) -> Result<Sliced> {
    let dictionary = Dictionary::load(&args.from)?;
    let choice = args.plane.unwrap_or(PlaneChoice::Random { seed: 0 });
    let plane = match &args.shards {
        None => Plane::choose(choice, &dictionary)?,
        Some(_) if choice != PlaneChoice::Pca => {
            return Err(Error::request("--shards gives the rows of --plane pca", "add --plane pca, or leave --shards out"))
        }
        Some(shards) => of_rows(&dictionary, shards)?,
    };
    let slice = Slice::of(&dictionary, &plane)?;
    let half = match args.plane_size {
        Some(half) if half.is_finite() && half > 0.0 => half,
        Some(half) => return Err(Error::request(format!("--plane-size {half} is no width"), "give a positive number")),
        // `scale` made the mean square of a row's norm d_in.
        None => match dictionary.provenance.notes["scale"].as_f64().filter(|s| *s > 0.0) {
            Some(scale) => (dictionary.d_in() as f64).sqrt() / scale,
            None => slice.fitting_half(),
        },
    };
    Ok(Sliced { cells: slice.cells(half, plot::MAX_CELLS), k: slice.k(), d_sae: slice.d_sae(), names: plane.names })
}

/// Through the mean of training rows, along the directions in which they spread most.
fn of_rows(dictionary: &Dictionary, shards: &Path) -> Result<Plane> {
    let shards = Shards::open(shards)?;
    let own = &dictionary.provenance.hook;
    let known = shards.columns().any(|c| c.name == *own);
    let column = shards.column(known.then_some(own.as_str()))?.name.clone();
    let mut rows: Vec<f32> = Vec::new();
    for batch in shards.sample(&column, 0, ROWS)? {
        rows.extend_from_slice(&batch?.x);
    }
    let (d, n) = (dictionary.d_in(), rows.len() / shards.width(&column)?);
    let mut mean = vec![0f64; d];
    for row in rows.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / n as f64);
    }
    if shards.width(&column)? != d {
        let help = "point to the shards it was trained on".to_string();
        return Err(Error::Width { what: format!("column `{column}` of the shards"), expected: d, got: shards.width(&column)?, help });
    }
    Plane::principal(mean, &rows, "training rows")
}
