//! FVU of a pursuit after each number of steps: it falls with every step, by theorem.

use super::collect::by_setting;
use super::curves;
use super::figure::Figure;
use super::{Chart, Run};

/// See the module.
pub struct Steps;

impl Chart for Steps {
    fn id(&self) -> &'static str {
        "steps"
    }

    fn title(&self) -> &'static str {
        "FVU after 1, 2, ... k steps (matching pursuit)"
    }

    fn figure(&self, runs: &[Run]) -> Option<Figure> {
        let settings = by_setting(runs, |run| {
            let score = run.score.as_ref().filter(|s| !s.steps.is_empty())?;
            let fvu = |(steps, m): (&str, &crate::score::Metrics)| Some((steps.parse().ok()?, *m.get("fvu")?));
            Some(score.steps.iter().filter_map(fvu).collect())
        });
        let frame = curves::Frame {
            title: "What each step of the pursuit explains",
            subtitle: "the same dictionary, rows and rule, ended early; the last point is its own k".into(),
            x: "steps per row",
            y: "FVU (fraction of variance unexplained)",
        };
        curves::figure(frame, &settings)
    }
}
