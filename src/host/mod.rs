//! Placeholder.
#![allow(missing_docs)]
use candle_core::Tensor;
use crate::error::Result;
use crate::hook::HookPoint;
mod tap;
pub use tap::{NoTap, Splice, Tap};
#[derive(Debug, Clone)]
pub struct Tokens { pub ids: Tensor, pub mask: Option<Tensor> }
#[derive(Debug, Clone, PartialEq)]
pub struct HostInfo { pub name: String, pub d_model: usize }
pub trait HostModel: Send + Sync {
    fn info(&self) -> &HostInfo;
    fn hook_points(&self) -> Vec<HookPoint>;
    fn width(&self, at: &HookPoint) -> Result<usize>;
    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>>;
    fn hf_path(&self, at: &HookPoint) -> Option<String>;
}
