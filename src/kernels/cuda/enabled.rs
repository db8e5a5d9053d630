//! The seam's functions on CUDA tensors. What a GPU does not do is refused by name, never done elsewhere silently.

use candle_core::{Device, Tensor};

use super::super::{Adam, Coder, Columns, Measured, Moments, PursuitGrad, PursuitPath, PursuitRule, Selection, SparseGrad, Summed, Term};
use super::device::engine;
use super::engine::Shared;
use super::seam;
use crate::codes::Codes;
use crate::error::{Error, Result};

pub use super::device::device;

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported { by: "the CUDA kernels".into(), what: what.into(), instead: "use --device cpu".into() })
}

/// What runs kernels on a device.
pub fn opened(device: &Device) -> Result<Shared> {
    Ok(engine(device)?)
}

pub fn encode_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize, rank: Option<&Tensor>) -> Result<Selection> {
    seam::encode_topk(&*engine(x.device())?, x, w_enc, b_enc, k, rank)
}

pub fn encode_threshold(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    seam::encode_threshold(&*engine(x.device())?, x, w_enc, b_enc, threshold)
}

pub fn sparse_decode(selection: &Selection, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    decode_codes(&selection.to_codes(w_dec.dim(0)?)?, w_dec, b_dec)
}

pub fn decode_codes(codes: &Codes, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    seam::decode_codes(&*engine(w_dec.device())?, codes, w_dec, b_dec)
}

// Steps on a GPU keep all they need there (`resident`); these are the host's way to make one.

pub fn sparse_decode_onto(_: &Selection, _: &Tensor, _: &Tensor, _: f32) -> Result<(Tensor, f64)> {
    refused("a training step of this learner")
}

pub fn decode_codes_onto(_: &Codes, _: &Tensor, _: &Tensor, _: f32) -> Result<(Tensor, f64)> {
    refused("a training step of this learner")
}

pub fn column_sums(_: &Tensor, _: f64) -> Result<Tensor> {
    refused("a training step of this learner")
}

pub fn spread(_: &Tensor) -> Result<f64> {
    refused("a training step of this learner")
}

pub fn dead_topk(_: &Tensor, _: &Tensor, _: &Coder, _: &[u32], _: usize) -> Result<(Columns, Tensor, f64)> {
    refused("a training step of this learner")
}

pub fn summed(_: &Term, _: &Tensor, _: &Tensor, _: &[u32]) -> Result<Summed> {
    refused("a training step of this learner")
}

pub fn measure(_: &Coder, _: &SparseGrad, _: bool) -> Result<Measured> {
    refused("a training step of this learner")
}

pub fn latent_update(_: &Coder, _: &Moments, _: &SparseGrad, _: &Measured, _: &Adam, _: bool) -> Result<()> {
    refused("a training step of this learner")
}

pub fn overwrite(_: &Tensor, _: &[f32]) -> Result<()> {
    refused("replacing a tensor's elements")
}

pub fn fill_gram(atoms: &Tensor, gram: &Tensor) -> Result<()> {
    seam::fill_gram(&*engine(atoms.device())?, atoms, gram)
}

pub fn pursuit(x: &Tensor, atoms: &Tensor, gram: Option<&Tensor>, rule: &PursuitRule) -> Result<PursuitPath> {
    seam::pursuit(&*engine(x.device())?, x, atoms, gram, rule)
}

pub fn orthogonal_pursuit(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> Result<PursuitPath> {
    seam::orthogonal_pursuit(&*engine(x.device())?, x, atoms, rule)
}

pub fn pursuit_backward(_: &Tensor, _: &PursuitPath, _: &Tensor) -> Result<(Tensor, Tensor)> {
    refused("a training step of matching pursuit")
}

pub fn pursuit_measure(_: &Coder, _: &PursuitGrad, _: bool) -> Result<Measured> {
    refused("a training step of matching pursuit")
}

pub fn pursuit_update(_: &Coder, _: &Moments, _: &PursuitGrad, _: &Measured, _: &Adam, _: bool) -> Result<()> {
    refused("a training step of matching pursuit")
}
