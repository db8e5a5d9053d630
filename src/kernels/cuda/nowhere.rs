//! A coder that learns on a GPU, in a build that has none: there is no such thing, and asking for one says what to do.

use candle_core::{Device, Tensor};

use super::super::{Adam, Coder, Moments, ResidentConfig, StepPlan, Told};
use super::absent;
use crate::error::Result;

/// A coder that learns on a GPU: this build has none.
pub enum OnGpu {}

impl OnGpu {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: &Device, _: &Coder, _: &Moments, _: &[u64], _: ResidentConfig) -> Result<Self> {
        absent()
    }

    /// A build without the simulator has nothing to simulate with.
    #[cfg(test)]
    pub(crate) fn simulated(_: u32, _: &Coder, _: &Moments, _: &[u64], _: ResidentConfig) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Must the figures be read before another step?
    pub fn is_full(&self) -> bool {
        match *self {}
    }

    /// One step.
    ///
    /// # Errors
    /// None here.
    pub fn step(&mut self, _: &Tensor, _: &StepPlan, _: &Adam) -> Result<()> {
        match *self {}
    }

    /// Figures of the steps since the last reading.
    ///
    /// # Errors
    /// None here.
    pub fn read(&mut self) -> Result<Vec<Told>> {
        match *self {}
    }

    /// Tokens since each latent last fired.
    ///
    /// # Errors
    /// None here.
    pub fn read_silence(&self, _: &mut [u64]) -> Result<()> {
        match *self {}
    }

    /// Copies parameters and moments back to the host's.
    ///
    /// # Errors
    /// None here.
    pub fn write_back(&self, _: &Coder, _: &Moments) -> Result<()> {
        match *self {}
    }
}
