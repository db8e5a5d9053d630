//! A learner that is timed one piece of work at a time, as the training loop would run it.

use std::time::Instant;

use candle_core::{Device, Tensor};

use super::dense::{dense_topk, sorted_topk};
use super::process::{Clock, Memory, Sample};
use super::report::{MemoryReport, QualityReport, StageReport, StepReport};
use super::rows::BenchRows;

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::kernels::{encode_batch_topk, encode_topk, fill_gram, new_gram, pursuit, PursuitRule};
use crate::sae::{self, Learner, SaeConfig};
use crate::shard::Batch;
use crate::train::{normalised, scale_for, Optimizer, TrainConfig};

/// Rows scored at a time.
const SCORE_ROWS: usize = 2048;

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct StepConfig {
    /// The learner.
    pub sae: SaeConfig,
    /// Batch, learning rate (constant here: no warm-up, no decay), Adam, clipping, seed, rows of the start.
    pub train: TrainConfig,
    /// Timed samples of each stage.
    pub steps: usize,
    /// Samples before those, thrown away.
    pub warmup: usize,
    /// Share of the latents that count as dead in [`Stage::AuxK`].
    pub aux_dead: f64,
    /// Is a latent ever dead by itself? Only then do the settings of AuxK decide who is.
    pub latents_die: bool,
}

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Codes of a batch, as the learner's step selects them.
    Encode,
    /// A whole step: rows normalised, loss and gradient, norm and clipping, Adam. No latent is dead.
    Step,
    /// The same with a share of the latents dead before it.
    AuxK,
    /// The encode's selection by dense product and quickselect (`topk` only).
    Dense,
    /// The encode's selection by dense product and a full sort (`topk` only).
    Sorted,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Encode, Self::Step, Self::AuxK, Self::Dense, Self::Sorted];

    /// `encode`, `step`, `auxk`, `dense`, `sorted`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Step => "step",
            Self::AuxK => "auxk",
            Self::Dense => "dense",
            Self::Sorted => "sorted",
        }
    }
}

/// A learner with its optimiser and the rows it sees, in order and again from the beginning.
pub struct StepBench {
    config: StepConfig,
    rows: BenchRows,
    scale: f64,
    learner: Box<dyn Learner>,
    optimizer: Optimizer,
    /// Batches handed out so far.
    at: usize,
    /// The smallest code that the last encode of a batch kept.
    smallest: Option<f32>,
    /// Of [`Stage::Encode`] alone; filled anew each time, as the step does.
    gram: Option<Tensor>,
    /// Resident bytes before there were parameters.
    base: Option<u64>,
}

impl StepBench {
    /// A learner at its start, which sees `rows` in batches of `config.train.batch`.
    ///
    /// # Errors
    /// Impossible settings, fewer rows than a batch.
    pub fn new(config: StepConfig, rows: BenchRows) -> Result<Self> {
        let (d, n) = (rows.width, rows.n_train());
        if !(0.0..=1.0).contains(&config.aux_dead) {
            return Err(Error::request(format!("{} is no share of the latents", config.aux_dead), "choose one from 0 to 1"));
        }
        let sae = config.sae.resolve(d, config.train.n_tokens.max(1))?;
        let train = config.train.resolve(sae.d_sae(), n as u64)?;
        if n < train.batch {
            return Err(Error::request(format!("{n} rows make no batch of {}", train.batch), "give more rows, or make smaller batches"));
        }
        let sq: f64 = rows.train.chunks_exact(d).map(|row| row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()).sum();
        let scale = scale_for(sq / n as f64, d)?;
        let base = Memory::now().map(|m| m.resident);
        let first = n.min(train.init_rows);
        let learner = sae::build(&sae, &tensor(&rows, 0, first, scale)?, train.seed)?;
        let optimizer = Optimizer::new(&train, learner.as_ref())?;
        let config = StepConfig { sae, train, ..config };
        let mut bench = Self { config, rows, scale, learner, optimizer, at: 0, smallest: None, gram: None, base };
        if !bench.config.latents_die {
            bench.learner.body_mut().silence.dead_after_tokens = u64::MAX / 2;
        }
        Ok(bench)
    }

    /// The settings, resolved.
    pub fn config(&self) -> &StepConfig {
        &self.config
    }

    /// The learner.
    pub fn learner(&self) -> &dyn Learner {
        self.learner.as_ref()
    }

    /// The next batch's place; from the beginning again when there is no whole one left.
    fn next(&mut self) -> usize {
        let batch = self.config.train.batch;
        let at = self.at % (self.rows.n_train() / batch);
        self.at += 1;
        at * batch
    }

    /// Does the work once, on the next batch.
    ///
    /// # Errors
    /// A stage that this learner does not have, a loss that is not finite.
    pub fn sample(&mut self, stage: Stage) -> Result<Sample> {
        let at = self.next();
        match stage {
            Stage::Encode => self.encode(at),
            Stage::Dense | Stage::Sorted => self.baseline(at, stage),
            Stage::Step => self.step(at),
            Stage::AuxK => {
                let share = self.config.aux_dead;
                let silence = &mut self.learner.body_mut().silence;
                let after = silence.dead_after_tokens;
                for (j, tokens) in silence.tokens.iter_mut().enumerate() {
                    // Evenly spread: as many as the share says among the first j, for every j.
                    let dead = ((j + 1) as f64 * share).floor() > (j as f64 * share).floor();
                    *tokens = if dead { after } else { 0 };
                }
                let sample = self.step(at);
                self.learner.body_mut().silence.tokens.fill(0);
                sample
            }
        }
    }

    fn step(&mut self, at: usize) -> Result<Sample> {
        let (d, n) = (self.rows.width, self.config.train.batch);
        // Reading the rows is the reader's work, which other threads do ahead.
        let batch = Batch { n, x: self.rows.train[at * d..(at + n) * d].to_vec(), ..Default::default() };
        let lr = self.config.train.lr;
        let clock = Clock::start();
        let (x, _) = normalised(batch, d, self.scale)?;
        let made = self.learner.step(&x)?;
        let norm = self.optimizer.apply(self.learner.as_ref(), &made.grad, lr)?;
        drop((made.grad, x));
        let sample = clock.sample();
        match [made.loss, norm].into_iter().find(|v| !v.is_finite()) {
            Some(loss) => Err(Error::Diverged { step: self.optimizer.step + 1, loss, lr }),
            None => Ok(sample),
        }
    }

    fn encode(&mut self, at: usize) -> Result<Sample> {
        let x = tensor(&self.rows, at, self.config.train.batch, self.scale)?;
        let coder = self.learner.coder();
        let n = self.config.train.batch;
        let batch_topk = |k: usize, smallest: &mut Option<f32>| -> Result<Sample> {
            let clock = Clock::start();
            let guess = smallest.map(|s| 0.9 * s);
            let (_, last) = encode_batch_topk(&x.broadcast_sub(&coder.b_dec)?, &coder.w_enc, &coder.b_enc, n * k, guess)?;
            let sample = clock.sample();
            *smallest = last.is_finite().then_some(last);
            Ok(sample)
        };
        match &self.config.sae {
            SaeConfig::TopK(c) => {
                let clock = Clock::start();
                encode_topk(&x.broadcast_sub(&coder.b_dec)?, &coder.w_enc, &coder.b_enc, c.k, None)?;
                Ok(clock.sample())
            }
            SaeConfig::BatchTopK(c) => batch_topk(c.k, &mut self.smallest),
            SaeConfig::Matryoshka(c) => batch_topk(c.k, &mut self.smallest),
            SaeConfig::Mp(c) => {
                if self.gram.is_none() {
                    self.gram = new_gram(&coder.w_dec)?;
                }
                let rule = PursuitRule {
                    steps: c.k,
                    pick: c.selection,
                    tolerance: c.tolerance,
                    relative: c.relative,
                    stop_on_repeat: c.stop_on_repeat,
                };
                let clock = Clock::start();
                if let Some(gram) = &self.gram {
                    fill_gram(&coder.w_dec, gram)?;
                }
                pursuit(&x.broadcast_sub(&coder.b_dec)?, &coder.w_dec, self.gram.as_ref(), &rule)?;
                Ok(clock.sample())
            }
            SaeConfig::Msae(_) | SaeConfig::JumpRelu(_) | SaeConfig::Gated(_) | SaeConfig::Relu(_) => {
                let dictionary = self.learner.finish(1.0, &x)?;
                let clock = Clock::start();
                dictionary.encode(&x)?;
                Ok(clock.sample())
            }
        }
    }

    fn baseline(&mut self, at: usize, stage: Stage) -> Result<Sample> {
        let SaeConfig::TopK(c) = &self.config.sae else {
            let arch = self.config.sae.arch();
            return Err(Error::request(
                format!("`{}` is a baseline of topk's encode, this is {arch}", stage.name()),
                "measure it with --arch topk",
            ));
        };
        let x = tensor(&self.rows, at, self.config.train.batch, self.scale)?;
        let coder = self.learner.coder();
        let clock = Clock::start();
        let xc = x.broadcast_sub(&coder.b_dec)?;
        let of = if stage == Stage::Dense { dense_topk } else { sorted_topk };
        of(&xc, &coder.w_enc, &coder.b_enc, c.k)?;
        Ok(clock.sample())
    }

    /// Warms up, then takes the samples of each stage, in turn.
    ///
    /// # Errors
    /// As [`StepBench::sample`].
    pub fn stages(&mut self, stages: &[Stage]) -> Result<Vec<StageReport>> {
        let mut samples = vec![Vec::new(); stages.len()];
        for round in 0..self.config.warmup + self.config.steps {
            for (stage, samples) in stages.iter().zip(&mut samples) {
                let sample = self.sample(*stage)?;
                if round >= self.config.warmup {
                    samples.push(sample);
                }
            }
        }
        Ok(stages.iter().zip(&samples).map(|(stage, samples)| StageReport::of(*stage, samples, self.config.train.batch)).collect())
    }

    /// Bytes of parameters and of the optimiser's state.
    pub fn state_bytes(&self) -> u64 {
        let c = self.learner.coder();
        let coder: usize = [&c.w_enc, &c.b_enc, &c.w_dec, &c.b_dec].iter().map(|t| t.elem_count()).sum();
        let extras: usize = self.learner.extras().iter().map(|(_, t)| t.elem_count()).sum();
        (3 * 4 * (coder + extras)) as u64
    }

    /// One more step, and how far resident memory rose above the process without a learner plus parameters and optimiser state.
    ///
    /// # Errors
    /// As [`StepBench::sample`].
    pub fn memory(&mut self) -> Result<MemoryReport> {
        let state_bytes = self.state_bytes();
        // Of the stage `encode`, not of a step: a learner has its own.
        self.gram = None;
        let reset = Memory::reset_peak();
        self.sample(Stage::Step)?;
        let peak = Memory::now().filter(|_| reset).zip(self.base);
        let peak_above_state_bytes = peak.map(|(now, base)| now.peak as i64 - base as i64 - state_bytes as i64);
        Ok(MemoryReport { state_bytes, peak_above_state_bytes })
    }

    /// Trains on `tokens` rows (to whole batches) at the constant rate, and scores the held-out rows in f64.
    ///
    /// # Errors
    /// No held-out rows; as [`StepBench::sample`].
    pub fn quality(&mut self, tokens: u64) -> Result<QualityReport> {
        if self.rows.held_out.is_empty() {
            return Err(Error::request("no rows are held out to score", "give rows that are"));
        }
        let started = Instant::now();
        let steps = tokens / self.config.train.batch as u64;
        for _ in 0..steps {
            self.sample(Stage::Step)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let (d, dictionary) = (self.rows.width, self.dictionary()?);
        let held_out = self.rows.held_out.len() / d;
        let (fvu, l0) = fvu(&dictionary, &self.rows.held_out, d)?;
        let silence = self.learner.silence();
        Ok(QualityReport {
            tokens: steps * self.config.train.batch as u64,
            lr: self.config.train.lr,
            held_out_rows: held_out as u64,
            fvu,
            l0,
            dead: silence.n_dead() as u64,
            dead_after_tokens: silence.dead_after_tokens,
            seconds,
        })
    }

    /// The dictionary as it stands, in the rows' own units.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn dictionary(&self) -> Result<Dictionary> {
        let n = self.rows.n_train().min(self.config.train.init_rows);
        self.learner.finish(self.scale, &tensor(&self.rows, 0, n, self.scale)?)
    }

    /// A report of what was measured so far.
    pub fn report(&self, stages: Vec<StageReport>, memory: Option<MemoryReport>, quality: Option<QualityReport>) -> StepReport {
        let k = match &self.config.sae {
            SaeConfig::TopK(c) => Some(c.k),
            SaeConfig::BatchTopK(c) => Some(c.k),
            SaeConfig::Matryoshka(c) => Some(c.k),
            SaeConfig::Msae(c) => Some(c.k),
            SaeConfig::Mp(c) => Some(c.k),
            SaeConfig::JumpRelu(_) | SaeConfig::Gated(_) | SaeConfig::Relu(_) => None,
        };
        StepReport {
            lapidary: env!("CARGO_PKG_VERSION"),
            cpu: super::cpu_model(),
            features: super::cpu_features(),
            screen: crate::kernels::screen(),
            threads: rayon::current_num_threads(),
            arch: self.config.sae.arch(),
            n: self.config.train.batch,
            d: self.rows.width,
            d_sae: self.config.sae.d_sae(),
            k,
            lr: self.config.train.lr,
            clip_norm: self.config.train.clip_norm,
            rows: self.rows.source.clone(),
            stages,
            memory,
            quality,
        }
    }
}

/// Rows `at..at + n`, times `scale`, `[n, width]`, f32.
fn tensor(rows: &BenchRows, at: usize, n: usize, scale: f64) -> Result<Tensor> {
    let d = rows.width;
    let x: Vec<f32> = rows.train[at * d..(at + n) * d].iter().map(|v| v * scale as f32).collect();
    Ok(Tensor::from_vec(x, (n, d), &Device::Cpu)?)
}

/// `sum |x - xhat|^2 / sum |x - mean x|^2` over rows `x`, and the mean number of codes; f64.
fn fvu(dictionary: &Dictionary, x: &[f32], d: usize) -> Result<(f64, f64)> {
    let n = x.len() / d;
    let mut mean = vec![0f64; d];
    for row in x.chunks_exact(d) {
        row.iter().zip(&mut mean).for_each(|(v, m)| *m += f64::from(*v) / n as f64);
    }
    let (mut error, mut spread, mut active) = (0f64, 0f64, 0usize);
    for block in x.chunks(SCORE_ROWS * d) {
        let rows = Tensor::from_slice(block, (block.len() / d, d), &Device::Cpu)?;
        let (codes, xhat) = dictionary.reconstruct(&rows)?;
        active += codes.values.len();
        let xhat: Vec<f32> = xhat.flatten_all()?.to_vec1()?;
        for (row, xhat) in block.chunks_exact(d).zip(xhat.chunks_exact(d)) {
            for ((v, h), m) in row.iter().zip(xhat).zip(&mean) {
                error += (f64::from(*v) - f64::from(*h)).powi(2);
                spread += (f64::from(*v) - m).powi(2);
            }
        }
    }
    Ok((error / spread, active as f64 / n as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(arch: &str, k: usize) -> StepBench {
        let mut sae = SaeConfig::of_arch(arch).unwrap();
        match &mut sae {
            SaeConfig::TopK(c) => (c.d_sae, c.k) = (64, k),
            SaeConfig::BatchTopK(c) => (c.d_sae, c.k) = (64, k),
            SaeConfig::Matryoshka(c) => (c.d_sae, c.k) = (64, k),
            SaeConfig::Msae(c) => (c.d_sae, c.k) = (64, k),
            SaeConfig::Mp(c) => (c.d_sae, c.k) = (64, k),
            SaeConfig::JumpRelu(c) => c.d_sae = 64,
            SaeConfig::Gated(c) | SaeConfig::Relu(c) => c.d_sae = 64,
        }
        let train = TrainConfig { batch: 32, lr: 1e-3, ..Default::default() };
        let config = StepConfig { sae, train, steps: 2, warmup: 1, aux_dead: 0.25, latents_die: false };
        StepBench::new(config, BenchRows::seeded(16, 1600, 50, 0).unwrap()).unwrap()
    }

    #[test]
    fn every_learner_is_timed() {
        for arch in sae::ARCHS {
            let mut bench = bench(arch, 4);
            let reports = bench.stages(&[Stage::Encode, Stage::Step, Stage::AuxK]).unwrap();
            assert!(reports.iter().all(|r| r.samples == 2 && r.median_wall_ms > 0.0), "{arch}: {reports:?}");
            assert_eq!(bench.optimizer.step, 6, "{arch}: steps are real steps");
            assert!(bench.memory().unwrap().state_bytes > 0);
        }
    }

    #[test]
    fn a_quarter_of_the_latents_is_dead_when_asked_and_none_otherwise() {
        let mut bench = bench("topk", 4);
        bench.sample(Stage::AuxK).unwrap();
        assert_eq!(bench.learner.silence().n_dead(), 0, "the next step is an ordinary one");
        let before: Vec<f32> = bench.learner.coder().b_enc.to_vec1().unwrap();
        bench.config.aux_dead = 0.0;
        bench.sample(Stage::AuxK).unwrap();
        assert_ne!(before, bench.learner.coder().b_enc.to_vec1::<f32>().unwrap());
        assert!(self::bench("mp", 4).sample(Stage::Dense).unwrap_err().to_string().contains("--arch topk"));
    }

    #[test]
    fn training_lowers_the_held_out_fvu() {
        let mut bench = bench("topk", 4);
        bench.config.train.lr = 5e-3;
        let before = bench.quality(0).unwrap();
        let after = bench.quality(32 * 200).unwrap();
        assert!(after.fvu < 0.95 * before.fvu, "{before:?} {after:?}");
        assert!(after.l0 <= 4.0 && after.tokens == 6400 && after.held_out_rows == 50);
    }
}
