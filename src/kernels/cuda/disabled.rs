//! The CUDA backend of a build without one: every operation answers with the remedy, none panics, none falls back silently.

use candle_core::{Device, Tensor};

use super::super::{Adam, Coder, Columns, Measured, Moments, PursuitGrad, PursuitPath, PursuitRule, Selection, SparseGrad, Summed, Term};
use crate::codes::Codes;
use crate::error::{Error, Result};

pub fn absent<T>() -> Result<T> {
    let help = "use --device cpu, or build with `--features cuda` (docs/gpu.md says what that needs)";
    Err(Error::Cuda { reason: "this build has no CUDA kernels".into(), help: help.into() })
}

pub fn device(_name: &str) -> Result<Device> {
    absent()
}

pub fn encode_topk(_: &Tensor, _: &Tensor, _: &Tensor, _: usize, _: Option<&Tensor>) -> Result<Selection> {
    absent()
}

pub fn encode_threshold(_: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Codes> {
    absent()
}

pub fn sparse_decode(_: &Selection, _: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
    absent()
}

pub fn decode_codes(_: &Codes, _: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
    absent()
}

pub fn sparse_decode_onto(_: &Selection, _: &Tensor, _: &Tensor, _: f32) -> Result<(Tensor, f64)> {
    absent()
}

pub fn decode_codes_onto(_: &Codes, _: &Tensor, _: &Tensor, _: f32) -> Result<(Tensor, f64)> {
    absent()
}

pub fn column_sums(_: &Tensor, _: f64) -> Result<Tensor> {
    absent()
}

pub fn spread(_: &Tensor) -> Result<f64> {
    absent()
}

pub fn dead_topk(_: &Tensor, _: &Tensor, _: &Coder, _: &[u32], _: usize) -> Result<(Columns, Tensor, f64)> {
    absent()
}

pub fn summed(_: &Term, _: &Tensor, _: &Tensor, _: &[u32]) -> Result<Summed> {
    absent()
}

pub fn measure(_: &Coder, _: &SparseGrad, _: bool) -> Result<Measured> {
    absent()
}

pub fn latent_update(_: &Coder, _: &Moments, _: &SparseGrad, _: &Measured, _: &Adam, _: bool) -> Result<()> {
    absent()
}

pub fn overwrite(_: &Tensor, _: &[f32]) -> Result<()> {
    absent()
}

pub fn fill_gram(_: &Tensor, _: &Tensor) -> Result<()> {
    absent()
}

pub fn pursuit(_: &Tensor, _: &Tensor, _: Option<&Tensor>, _: &PursuitRule) -> Result<PursuitPath> {
    absent()
}

pub fn orthogonal_pursuit(_: &Tensor, _: &Tensor, _: &PursuitRule) -> Result<PursuitPath> {
    absent()
}

pub fn pursuit_backward(_: &Tensor, _: &PursuitPath, _: &Tensor) -> Result<(Tensor, Tensor)> {
    absent()
}

pub fn pursuit_measure(_: &Coder, _: &PursuitGrad, _: bool) -> Result<Measured> {
    absent()
}

pub fn pursuit_update(_: &Coder, _: &Moments, _: &PursuitGrad, _: &Measured, _: &Adam, _: bool) -> Result<()> {
    absent()
}
