//! FVU of a Matryoshka dictionary's first latents alone, against how many.

use super::collect::by_setting;
use super::curves::{self, Curve};
use super::figure::Figure;
use super::{Chart, Run};

/// See the module.
pub struct Prefixes;

impl Chart for Prefixes {
    fn id(&self) -> &'static str {
        "prefixes"
    }

    fn title(&self) -> &'static str {
        "FVU of nested dictionaries against their width (Matryoshka)"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let settings = by_setting(runs, |run| {
            let score = run.score.as_ref().filter(|s| !s.prefixes.is_empty())?;
            let fvu = |(width, m): (&str, &crate::score::Metrics)| Some((width.parse().ok()?, *m.get("fvu")?));
            let mut curve: Curve = score.prefixes.iter().filter_map(fvu).collect();
            if let (Some(d_sae), Some(&fvu)) = (run.d_sae, score.metrics.get("fvu")) {
                curve.push((d_sae as f64, fvu));
            }
            Some(curve)
        });
        let frame = curves::Frame {
            title: "What the first latents explain alone",
            subtitle: "each prefix scored as a dictionary of its own; its last point is the whole".into(),
            x: "prefix (first latents)",
            y: "FVU (fraction of variance unexplained)",
        };
        curves::figure(frame, &settings)
    }
}
