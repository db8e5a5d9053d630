//! The built-in host: a small trained model carried in the binary, so that everything can be tried without a download. Beside it the
//! same shape with random weights: what is found there was found in the words, not in anything learned.
//!
//! Not for: how it is trained (its recipe is an example) or the language it speaks (`corpus::fable`).

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{HostModel, LoadOptions};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// The name under which it is loaded.
pub(super) const FABLE: &str = "fable";
/// Its shape with random weights.
pub(super) const FABLE_RANDOM: &str = "fable-random";

const CONFIG: &[u8] = include_bytes!("../../datasets/fable/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../datasets/fable/model.safetensors");

/// The built-in host from its embedded bytes.
pub(super) fn fable(options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    super::load_bytes(FABLE, CONFIG, WEIGHTS, options)
}

/// The built-in host's shape, matrices drawn from normal(0, 0.02) as untrained models are, norm weights 1. Always the same draw.
pub(super) fn fable_random(options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    let bad = |e: safetensors::SafeTensorError| Error::format("built-in host", FABLE_RANDOM, e.to_string(), "report this: the embedded weights are damaged");
    let trained = SafeTensors::deserialize(WEIGHTS).map_err(bad)?;
    let mut named = trained.tensors();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let mut drawn: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::with_capacity(named.len());
    for (i, (name, view)) in named.iter().enumerate() {
        let mut rng = Rng::stream(0, "random-host", i as u64);
        let n: usize = view.shape().iter().product();
        let is_matrix = view.shape().len() > 1;
        let value = |rng: &mut Rng| if is_matrix { (rng.normal() * 0.02) as f32 } else { 1.0 };
        drawn.push((name.clone(), view.shape().to_vec(), (0..n).flat_map(|_| value(&mut rng).to_le_bytes()).collect()));
    }
    let views: Vec<(&str, TensorView<'_>)> = drawn
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(bad)?)))
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(views, None).map_err(bad)?;
    super::load_bytes(FABLE_RANDOM, CONFIG, &bytes, options)
}
