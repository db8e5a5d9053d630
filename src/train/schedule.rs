//! The learning rate over a run: linear warm-up, flat, linear decay to zero. Shares are of tokens.

use super::TrainConfig;

/// Learning rate by step.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    peak: f64,
    steps: f64,
    warmup: f64,
    decay: f64,
}

impl Schedule {
    /// Of a resolved configuration.
    pub fn new(config: &TrainConfig) -> Self {
        let steps = config.n_steps() as f64;
        Self { peak: config.lr, steps, warmup: config.warmup_fraction * steps, decay: config.decay_fraction * steps }
    }

    /// Rate at `step`, from 1.
    pub fn lr(&self, step: u64) -> f64 {
        let done = step as f64;
        let up = if self.warmup > 0.0 { (done / self.warmup).min(1.0) } else { 1.0 };
        // The last step still learns a little: at step == steps one step's share of the decay is left.
        let down = if self.decay > 0.0 { ((self.steps - done + 1.0) / self.decay).min(1.0) } else { 1.0 };
        self.peak * up.min(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_holds_and_falls() {
        let c = TrainConfig { n_tokens: 1000, batch: 1, lr: 1.0, warmup_fraction: 0.1, decay_fraction: 0.2, ..Default::default() };
        let s = Schedule::new(&c);
        assert!((s.lr(50) - 0.5).abs() < 1e-12);
        assert_eq!(s.lr(100), 1.0);
        assert_eq!(s.lr(800), 1.0);
        assert!((s.lr(901) - 0.5).abs() < 1e-12);
        assert!(s.lr(1000) > 0.0 && s.lr(1000) < 0.01);
    }
}
