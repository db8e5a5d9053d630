//! What was measured, as one JSON object and as a table.

use std::fmt;

use serde::Serialize;

use super::process::Sample;
use super::step::Stage;
use crate::kernels::Screen;

/// The samples of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// [`Stage::name`].
    pub stage: &'static str,
    /// Timed samples.
    pub samples: usize,
    /// Median wall milliseconds of one batch.
    pub median_wall_ms: f64,
    /// The fastest.
    pub min_wall_ms: f64,
    /// Median CPU milliseconds, all threads together.
    pub median_cpu_ms: Option<f64>,
    /// Rows per second of wall time, at the median.
    pub tokens_per_s: f64,
    /// CPU microseconds per row, at the median.
    pub cpu_us_per_token: Option<f64>,
}

impl StageReport {
    /// Of samples of batches of `n` rows.
    pub fn of(stage: Stage, samples: &[Sample], n: usize) -> Self {
        let wall: Vec<f64> = samples.iter().map(|s| s.wall_ms).collect();
        let cpu: Option<Vec<f64>> = samples.iter().map(|s| s.cpu_ms).collect();
        let median_wall_ms = median(&wall);
        let median_cpu_ms = cpu.filter(|c| !c.is_empty()).map(|c| median(&c));
        Self {
            stage: stage.name(),
            samples: samples.len(),
            median_wall_ms,
            min_wall_ms: wall.iter().copied().fold(f64::INFINITY, f64::min),
            median_cpu_ms,
            tokens_per_s: n as f64 / median_wall_ms * 1e3,
            cpu_us_per_token: median_cpu_ms.map(|ms| 1e3 * ms / n as f64),
        }
    }
}

/// The middle value, or the mean of the two in the middle; NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.len()) {
        (Some(upper), n) if n % 2 == 0 => (sorted[n / 2 - 1] + upper) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// Memory of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// Parameters and the optimiser's state.
    pub state_bytes: u64,
    /// How far resident memory rose above that and what the process held before; null where the system does not say.
    pub peak_above_state_bytes: Option<i64>,
}

/// A short training run at a constant rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// Rows trained on.
    pub tokens: u64,
    /// The rate.
    pub lr: f64,
    /// Rows scored.
    pub held_out_rows: u64,
    /// `sum |x - xhat|^2 / sum |x - mean x|^2` over them, f64.
    pub fvu: f64,
    /// Codes per row.
    pub l0: f64,
    /// Latents dead at the end.
    pub dead: u64,
    /// After so many tokens of silence.
    pub dead_after_tokens: u64,
    /// Wall seconds of the training.
    pub seconds: f64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// This version.
    pub lapidary: &'static str,
    /// The processor's name.
    pub cpu: Option<String>,
    /// Which of the instructions that the kernels look for it has.
    pub features: Vec<&'static str>,
    /// The screen of encodes.
    pub screen: Screen,
    /// Threads computed with.
    pub threads: usize,
    /// The learner.
    pub arch: &'static str,
    /// Rows of a batch.
    pub n: usize,
    /// Their width.
    pub d: usize,
    /// Latents.
    pub d_sae: usize,
    /// Codes per row, where the learner is told.
    pub k: Option<usize>,
    /// Learning rate.
    pub lr: f64,
    /// The norm gradients are clipped to; 0: they are not.
    pub clip_norm: f64,
    /// What the rows are.
    pub rows: String,
    /// What was timed.
    pub stages: Vec<StageReport>,
    /// Memory of a step, if it was asked for.
    pub memory: Option<MemoryReport>,
    /// A short training run, if it was asked for.
    pub quality: Option<QualityReport>,
}

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let k = self.k.map_or(String::new(), |k| format!(", k {k}"));
        writeln!(f, "{}: batch {}, d {}, d_sae {}{k}; {}", self.arch, self.n, self.d, self.d_sae, self.rows)?;
        let cpu = self.cpu.as_deref().unwrap_or("a processor without a name");
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        write!(f, "{} {threads} of {cpu} ({}); screen {:?}", self.threads, self.features.join(" "), self.screen)?;
        if !self.stages.is_empty() {
            write!(
                f,
                "\n{:<8} {:>11} {:>11} {:>11} {:>11} {:>11}  samples",
                "stage", "wall ms", "min ms", "CPU ms", "tokens/s", "CPU us/tok"
            )?;
        }
        let or_none = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
        for s in &self.stages {
            write!(
                f,
                "\n{:<8} {:>11.2} {:>11.2} {:>11} {:>11.0} {:>11}  {}",
                s.stage,
                s.median_wall_ms,
                s.min_wall_ms,
                or_none(s.median_cpu_ms, 2),
                s.tokens_per_s,
                or_none(s.cpu_us_per_token, 2),
                s.samples
            )?;
        }
        let mb = |bytes: f64| bytes / (1 << 20) as f64;
        if let Some(m) = &self.memory {
            write!(f, "\nparameters and optimiser state {:.1} MiB", mb(m.state_bytes as f64))?;
            if let Some(above) = m.peak_above_state_bytes {
                write!(f, "; a step's peak above them {:.1} MiB", mb(above as f64))?;
            }
        }
        if let Some(q) = &self.quality {
            write!(
                f,
                "\nafter {} tokens at lr {:e} ({:.1} s): held-out FVU {:.4} on {} rows, L0 {:.2}, {} latents silent for {} tokens",
                q.tokens, q.lr, q.seconds, q.fvu, q.held_out_rows, q.l0, q.dead, q.dead_after_tokens
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_rates() {
        let sample = |ms: f64| Sample { wall_ms: ms, cpu_ms: Some(2.0 * ms) };
        let of = |ms: &[f64]| StageReport::of(Stage::Step, &ms.iter().map(|&m| sample(m)).collect::<Vec<_>>(), 100);
        let report = of(&[3.0, 1.0, 100.0]);
        assert_eq!((report.median_wall_ms, report.min_wall_ms, report.median_cpu_ms), (3.0, 1.0, Some(6.0)));
        assert!((report.tokens_per_s - 100.0 / 3e-3).abs() < 1e-6 && report.cpu_us_per_token == Some(60.0));
        assert_eq!(of(&[1.0, 2.0]).median_wall_ms, 1.5);
        assert!(of(&[]).median_wall_ms.is_nan());
    }
}
