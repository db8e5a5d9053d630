//! A coder that learns on a GPU, as the training loop sees it. Not for what a step does there (`resident`).

use candle_core::{Device, Tensor};

use super::super::cpu::storage::with_slice;
use super::super::{Adam, Coder, Moments, ResidentConfig, StepPlan, Told};
use super::engine::Shared;
use super::opened;
use super::resident::Resident;
use crate::error::Result;

/// A coder that learns on a GPU: parameters and moments live there.
pub struct OnGpu {
    engine: Shared,
    state: Resident,
}

impl OnGpu {
    /// Takes parameters, moments and silence (tokens since each latent last fired) to `device`.
    ///
    /// # Errors
    /// No memory there.
    pub fn new(device: &Device, coder: &Coder, moments: &Moments, silence: &[u64], config: ResidentConfig) -> Result<Self> {
        Self::with(opened(device)?, coder, moments, silence, config)
    }

    fn with(engine: Shared, coder: &Coder, moments: &Moments, silence: &[u64], config: ResidentConfig) -> Result<Self> {
        let state = Resident::new(&*engine, coder, moments, silence, config)?;
        Ok(Self { engine, state })
    }

    /// In the simulator, its threads in this order; `None` in a build without.
    #[cfg(test)]
    pub(crate) fn simulated(
        schedule: u32,
        coder: &Coder,
        moments: &Moments,
        silence: &[u64],
        config: ResidentConfig,
    ) -> Result<Option<Self>> {
        super::simulated(schedule).map(|engine| Self::with(engine, coder, moments, silence, config)).transpose()
    }

    /// Must the figures be read before another step?
    pub fn is_full(&self) -> bool {
        self.state.is_full()
    }

    /// One step on rows `[n, d]`, f32, on the host or the device.
    ///
    /// # Errors
    /// Another size than the batch's, figures of too many steps unread, a launch that fails.
    pub fn step(&mut self, x: &Tensor, plan: &StepPlan, adam: &Adam) -> Result<()> {
        let x = x.contiguous()?;
        match x.device() {
            Device::Cpu => with_slice(&x, |rows: &[f32]| self.state.step_rows(&*self.engine, rows, plan, adam))?,
            _ => self.state.step_at(&*self.engine, self.engine.address(&x)?, x.elem_count(), plan, adam),
        }
    }

    /// Figures of the steps since the last reading, in order; waits for them.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read(&mut self) -> Result<Vec<Told>> {
        self.state.read(&*self.engine)
    }

    /// Tokens since each latent last fired, after the steps so far; waits for them.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read_silence(&self, silence: &mut [u64]) -> Result<()> {
        self.state.read_silence(&*self.engine, silence)
    }

    /// Copies parameters and moments back to the host's; waits for the steps so far.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn write_back(&self, coder: &Coder, moments: &Moments) -> Result<()> {
        self.state.write_back(&*self.engine, coder, moments)
    }
}
