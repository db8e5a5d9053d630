//! A member that learns on a GPU: what it is told to do, and its figures when they have come. Not for how a step is done (`kernels`).

use candle_core::{Device, Tensor};

use super::log::Window;
use super::{Member, Optimizer};
use crate::error::{Error, Result};
use crate::kernels::{OnGpu, ResidentConfig};
use crate::sae::Learner;

/// A step whose figures have not come yet.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    step: u64,
    lr: f64,
    rows: usize,
    spread: f64,
}

/// The GPU's side of a member.
pub struct Remote {
    state: OnGpu,
    waiting: Vec<Waiting>,
}

impl Remote {
    /// Takes the learner's parameters to the member's device; `None` where that is the CPU.
    ///
    /// # Errors
    /// What a GPU cannot train, no memory there.
    pub fn new(member: &Member, learner: &dyn Learner, optimizer: &Optimizer) -> Result<Option<Self>> {
        if matches!(member.device, Device::Cpu) {
            return Ok(None);
        }
        let refuse = |what: String| Err(Error::Unsupported { by: "training on a GPU".into(), what, instead: "use --device cpu".into() });
        if member.train.pam.is_some() || member.train.freeze_decoder {
            return refuse("a decoder that is solved for, or kept".into());
        }
        let Some(needs) = learner.on_device().filter(|_| learner.extras().is_empty() && learner.anchors().is_empty()) else {
            return refuse(format!("{} (with these settings)", member.sae.arch()));
        };
        let config = ResidentConfig {
            batch: member.train.batch,
            most_prefixes: needs.prefixes,
            k: needs.k,
            aux_k: needs.aux_k,
            dead_after_tokens: learner.silence().dead_after_tokens,
            unit_norm: learner.unit_norm(),
            clip_norm: member.train.clip_norm,
            precision: member.train.gpu_precision,
            encode: member.train.gpu_encode,
        };
        let state = OnGpu::new(&member.device, learner.coder(), &optimizer.moments, &learner.silence().tokens, config)?;
        Ok(Some(Self { state, waiting: Vec::new() }))
    }

    /// Starts a step; reads the figures of those before when there is no room for more.
    ///
    /// # Errors
    /// As [`Remote::catch_up`]; a launch that fails.
    pub fn learn(
        &mut self,
        learner: &mut dyn Learner,
        optimizer: &mut Optimizer,
        window: &mut Window,
        x: &Tensor,
        (step, lr, spread): (u64, f64, f64),
    ) -> Result<()> {
        if self.state.is_full() {
            self.catch_up(learner, window)?;
        }
        let Some(plan) = learner.plan() else {
            let what = "a step of this learner".into();
            return Err(Error::Unsupported { by: "training on a GPU".into(), what, instead: "use --device cpu".into() });
        };
        self.state.step(x, &plan, &optimizer.next(lr))?;
        self.waiting.push(Waiting { step, lr, rows: x.dim(0)?, spread });
        Ok(())
    }

    /// Reads the figures of all steps so far into the log's window.
    ///
    /// # Errors
    /// Divergence, named by step, which was not applied.
    pub fn catch_up(&mut self, learner: &mut dyn Learner, window: &mut Window) -> Result<()> {
        self.state.read_silence(&mut learner.body_mut().silence.tokens)?;
        for (told, waiting) in self.state.read()?.iter().zip(self.waiting.drain(..)) {
            let figures = learner.told(told, waiting.rows);
            for number in [figures.loss, told.grad_norm] {
                if !number.is_finite() {
                    return Err(Error::Diverged { step: waiting.step, loss: number, lr: waiting.lr });
                }
            }
            window.add(waiting.rows as u64, &figures, waiting.spread, told.grad_norm);
        }
        Ok(())
    }

    /// Copies parameters and moments back to the host's.
    ///
    /// # Errors
    /// As [`Remote::catch_up`].
    pub fn bring_home(&mut self, learner: &mut dyn Learner, window: &mut Window, optimizer: &Optimizer) -> Result<()> {
        self.catch_up(learner, window)?;
        self.state.write_back(learner.coder(), &optimizer.moments)
    }
}
