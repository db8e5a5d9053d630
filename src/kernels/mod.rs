//! The compute seam: functions on candle tensors; where the tensor lives decides which code runs.
//!
//! Semantics that every path shares:
//!
//! * Pre-activation of row x: `a = x W_enc^T + b_enc`, with `W_enc` `[d_sae, d_in]` (atoms are rows), summed in float64 and rounded once to
//!   f32: the same bits on every machine. A `b_dec` that the encoder subtracts is subtracted from x before.
//! * Selection keys are unique: larger value first, then **lowest index**. `-0.0` counts as `+0.0`.
//! * Only strictly positive values are selected (pursuits may be told otherwise). Fewer than k positives: the row is padded with index [`PAD`](crate::codes::PAD), value 0.
//! * NaN is never selected (no comparison with it holds). `+inf` ranks first.
//! * Within a row, entries go by value descending, then index ascending.
//! * AuxK's selection among dead latents ([`dead_topk`]) is the same set, with values as f32 products round them: training alone sees them.
//! * Outputs are the same bytes run to run, whatever the number of threads.
//!
//! Not for: learning rules (`sae`), or anything that knows a file.

mod config;
mod cpu;
mod cuda;

use candle_core::{Device, Tensor};

use crate::codes::Codes;
use crate::error::{Error, Result};

pub use config::KernelsConfig;
pub use cpu::adam::{vector_update, Adam, Moments};
pub use cpu::batch_topk::nth_largest;
pub use cpu::columns::Columns;
#[cfg(test)]
pub(crate) use cpu::latent_update::dense_gradient;
pub use cpu::vector::{dot, sq_norm};
pub use cpu::{encode_counts, screen, set_screen, EncodeCounts, Screen};

/// Which latents each row selected: padded rows of width k.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Latents, `[n, k]`, u32, padded with [`PAD`](crate::codes::PAD).
    pub indices: Tensor,
    /// Their values, `[n, k]`, f32, positive, padded with 0.
    pub values: Tensor,
}

impl Selection {
    /// As codes over `d_sae` latents; pads are dropped.
    ///
    /// # Errors
    /// When the tensors cannot be read back to the host.
    pub fn to_codes(&self, d_sae: usize) -> Result<Codes> {
        let (_, k) = self.indices.dims2()?;
        let indices = self.indices.flatten_all()?.to_vec1::<u32>()?;
        let values = self.values.flatten_all()?.to_vec1::<f32>()?;
        Ok(Codes::from_padded(d_sae, k, &indices, &values))
    }
}

/// The four tensors of a sparse coder. Atoms are rows.
#[derive(Debug, Clone)]
pub struct Coder {
    /// Encoder, `[d_sae, d_in]`, f32.
    pub w_enc: Tensor,
    /// Encoder bias, `[d_sae]`, f32.
    pub b_enc: Tensor,
    /// Decoder, `[d_sae, d_out]`, f32.
    pub w_dec: Tensor,
    /// Decoder bias, `[d_out]`, f32.
    pub b_dec: Tensor,
}

/// One way in which selected latents reach the loss: entries by latent, and the gradient at the reconstruction they fed.
///
/// For an entry of latent j on row r with value z: `dz = <grad_r, D_j> + offset + norm_penalty |D_j|`.
#[derive(Debug, Clone)]
pub struct Term {
    /// The entries, by latent.
    pub columns: Columns,
    /// Gradient of the loss with respect to the reconstruction that these entries fed, before `scale`, `[n, d_out]`, f32.
    pub grad: Tensor,
    /// Multiplies `grad`: an error is a gradient but for a factor, and needs no copy for it.
    pub scale: f32,
    /// What the entries teach.
    pub role: Role,
    /// The sums that the entries lead to, where they were made already: then the entries are not looked at.
    pub summed: Option<Summed>,
}

/// A term's gradient by latent, before the decoder rows' parallel components are removed: for few latents with many entries each.
#[derive(Debug, Clone)]
pub struct Summed {
    /// The latents, ascending.
    pub latents: Vec<u32>,
    /// Of `W_enc`, `[latents, d_in]`.
    pub w_enc: Vec<f32>,
    /// Of `W_dec`, `[latents, d_out]`.
    pub w_dec: Vec<f32>,
    /// Of `b_enc`, `[latents]`.
    pub bias: Vec<f32>,
}

impl Term {
    /// Codes of the ordinary kind.
    pub fn codes(columns: Columns, grad: Tensor) -> Self {
        Self::new(columns, grad, Role::default())
    }

    /// Entries with a role.
    pub fn new(columns: Columns, grad: Tensor, role: Role) -> Self {
        Self { columns, grad, scale: 1.0, role, summed: None }
    }
}

/// What a term's entries teach, and how `dz` becomes the gradient of a pre-activation.
#[derive(Debug, Clone)]
pub struct Role {
    /// `D_j` gets `z grad_r` (and `norm_penalty z D_j / |D_j|`).
    pub decoder: bool,
    /// `W_enc,j` gets `da x_r`, where `da = dz` times the factors below.
    pub encoder: bool,
    /// `b_enc,j` gets `da`.
    pub bias: bool,
    /// A factor of `da` per latent, `[d_sae]`.
    pub gain: Option<std::sync::Arc<Vec<f32>>>,
    /// Codes are `c tanh(a / c)`: a factor `1 - (z / c)^2` of `da`.
    pub softcap: Option<f32>,
    /// Added to `dz`.
    pub offset: f32,
    /// Weight of a penalty on `z |D_j|`.
    pub norm_penalty: f32,
    /// Are the sums over `dz` wanted ([`Measured::sums`])?
    pub sums: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self { decoder: true, encoder: true, bias: true, gain: None, softcap: None, offset: 0.0, norm_penalty: 0.0, sums: false }
    }
}

/// The gradient of a loss with respect to a [`Coder`], in sparse form: nothing of size `[d_sae, d_in]` is stored.
#[derive(Debug, Clone)]
pub struct SparseGrad {
    /// What the encoder multiplied, `[n, d_in]`, f32 (centred when the encoder subtracts `b_dec`).
    pub x: Tensor,
    /// The terms of the loss.
    pub terms: Vec<Term>,
    /// Gradient that reaches `b_dec` through the reconstruction, `[d_out]`, f32.
    pub b_dec: Tensor,
    /// Does `x` hold `input - b_dec`? Then `b_dec` gets the encoder's gradient too, negated.
    pub centred: bool,
    /// A pull of the encoder towards a point, if there is one.
    pub pull: Option<Pull>,
}

/// The gradient of `weight |W_enc - w_enc|^2 + bias_weight |b_enc - at|^2`: dense, and computed where it is used.
#[derive(Debug, Clone)]
pub struct Pull {
    /// Where `W_enc` is pulled to, `[d_sae, d_in]`, f32.
    pub w_enc: Tensor,
    /// Where `b_enc` is pulled to, `[d_sae]`, f32.
    pub b_enc: Tensor,
    /// How strongly `W_enc` is.
    pub weight: f32,
    /// How strongly `b_enc` is.
    pub bias_weight: f32,
}

/// What [`measure`] finds out about a gradient.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Squared Euclidean norm over all parameters, after the decoder rows' parallel components are removed.
    pub sq_norm: f64,
    /// The whole gradient of `b_dec`, `[d_out]`, f32.
    pub b_dec: Tensor,
    /// For each term whose role asks for them, in order: per latent, the sums of `dz` and of `dz z` over its entries, `[d_sae]`.
    pub sums: Vec<Vec<[f32; 2]>>,
    /// Gradients of the values of each term's entries, for the update.
    pub(crate) dz: Vec<Vec<f32>>,
}

macro_rules! dispatch {
    ($device:expr, $name:ident ( $($arg:expr),* )) => {
        match $device {
            Device::Cpu => cpu::$name($($arg),*),
            Device::Cuda(_) => cuda::$name($($arg),*),
            other => Err(unsupported(other)),
        }
    };
}

mod pursuit;
mod resident;

pub use cuda::OnGpu;
pub use resident::{Choice, DeviceEncode, Precision, ResidentConfig, StepPlan, Told};

pub use pursuit::{fill_gram, new_gram, orthogonal_pursuit, pursuit, Gradient, Pick, PursuitGrad, PursuitPath, PursuitRule, Tape};

fn unsupported(device: &Device) -> Error {
    Error::Unsupported {
        by: format!("{:?}", device.location()),
        what: "Lapidary's kernels".into(),
        instead: "use the CPU or a CUDA device".into(),
    }
}

/// The device that `name` (`cpu`, `cuda`, `cuda:1`) means.
///
/// # Errors
/// An unknown name, or CUDA where this build or machine has none.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        _ if name == "cuda" || name.starts_with("cuda:") => cuda::device(name),
        _ => Err(Error::config("device", format!("`{name}` is no device"), "write cpu, cuda or cuda:N")),
    }
}

fn check_encoder(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor) -> Result<()> {
    let (_, d) = x.dims2()?;
    let (d_sae, d_in) = w_enc.dims2()?;
    if d != d_in {
        return Err(Error::Width {
            what: "the input".into(),
            expected: d_in,
            got: d,
            help: "encode activations of the hook point that the dictionary was trained on".into(),
        });
    }
    if b_enc.dims1()? != d_sae {
        return Err(Error::Width { what: "b_enc".into(), expected: d_sae, got: b_enc.dims1()?, help: "the dictionary is damaged".into() });
    }
    Ok(())
}

/// Dense pre-activations `x W_enc^T + b_enc`, `[n, d_sae]`, f32: the slow, obvious form and the oracle of the fused ones.
///
/// # Errors
/// Mismatched widths.
pub fn pre_activations(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor) -> Result<Tensor> {
    check_encoder(x, w_enc, b_enc)?;
    Ok(x.matmul(&w_enc.t()?)?.broadcast_add(b_enc)?)
}

/// The k largest positive pre-activations of each row. The `[n, d_sae]` pre-activations are never stored.
///
/// `x` `[n, d_in]`, `w_enc` `[d_sae, d_in]`, `b_enc` `[d_sae]`, all f32 and contiguous; `1 <= k <= d_sae`.
/// With `rank`, `[d_sae]` positive, rows rank latents by `value * rank` and still return the values (decoder norms of imported dictionaries).
///
/// # Errors
/// Mismatched widths, k out of range, another dtype.
pub fn encode_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize, rank: Option<&Tensor>) -> Result<Selection> {
    check_encoder(x, w_enc, b_enc)?;
    let d_sae = w_enc.dim(0)?;
    if k == 0 || k > d_sae {
        return Err(Error::config(
            "sae.k",
            format!("{k} of {d_sae} latents cannot be selected"),
            format!("choose k between 1 and {d_sae}"),
        ));
    }
    dispatch!(x.device(), encode_topk(x, w_enc, b_enc, k, rank))
}

/// All pre-activations strictly above their latent's threshold (`[d_sae]`, f32; 0 gives ReLU).
///
/// # Errors
/// Mismatched widths, another dtype.
pub fn encode_threshold(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    check_encoder(x, w_enc, b_enc)?;
    dispatch!(x.device(), encode_threshold(x, w_enc, b_enc, threshold))
}

/// The `total` largest positive pre-activations of the whole batch (fewer when there are fewer), and the smallest of them. Equal values:
/// the earlier row first, then the lower latent. `guess` is a value believed to lie a little below the smallest; it changes the time taken
/// and nothing else.
///
/// # Errors
/// Mismatched widths, another dtype.
pub fn encode_batch_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, total: usize, guess: Option<f32>) -> Result<(Codes, f32)> {
    check_encoder(x, w_enc, b_enc)?;
    cpu::batch_topk::encode_batch_topk(x, w_enc, b_enc, total, guess)
}

/// Reconstruction `b + sum_j v_j W_dec[j]`, `[n, d_out]`, f32; `b_dec` may be absent. Sums go in the row's entry order.
///
/// # Errors
/// An index beyond the dictionary.
pub fn sparse_decode(selection: &Selection, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    dispatch!(w_dec.device(), sparse_decode(selection, w_dec, b_dec))
}

/// [`sparse_decode`] for rows of any length.
///
/// # Errors
/// An index beyond the dictionary.
pub fn decode_codes(codes: &Codes, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    dispatch!(w_dec.device(), decode_codes(codes, w_dec, b_dec))
}

/// `factor base + sum_j v_j W_dec[j]`, `[n, d_out]`, f32, and the sum of its squares: with `x - b_dec` and -1 the error `xhat - x` of a
/// reconstruction and its loss, in one pass.
///
/// # Errors
/// An index beyond the dictionary, a base of another shape.
pub fn sparse_decode_onto(selection: &Selection, w_dec: &Tensor, base: &Tensor, factor: f32) -> Result<(Tensor, f64)> {
    check_base(base, selection.indices.dim(0)?, w_dec)?;
    dispatch!(w_dec.device(), sparse_decode_onto(selection, w_dec, base, factor))
}

/// [`sparse_decode_onto`] for rows of any length.
///
/// # Errors
/// As there.
pub fn decode_codes_onto(codes: &Codes, w_dec: &Tensor, base: &Tensor, factor: f32) -> Result<(Tensor, f64)> {
    check_base(base, codes.n_rows(), w_dec)?;
    dispatch!(w_dec.device(), decode_codes_onto(codes, w_dec, base, factor))
}

fn check_base(base: &Tensor, n: usize, w_dec: &Tensor) -> Result<()> {
    let ((rows, got), (_, expected)) = (base.dims2()?, w_dec.dims2()?);
    if (rows, got) != (n, expected) {
        let (what, help) = ("what the decoded rows are added to".into(), "give it one row per row of codes, as wide as the atoms".into());
        return Err(if got == expected {
            Error::Width { what, expected: n, got: rows, help }
        } else {
            Error::Width { what, expected, got, help }
        });
    }
    Ok(())
}

/// Sums of the columns of `x` `[n, d]`, times `factor`: `[d]`, f32, summed in f64 in a fixed order.
///
/// # Errors
/// Another dtype.
pub fn column_sums(x: &Tensor, factor: f64) -> Result<Tensor> {
    dispatch!(x.device(), column_sums(x, factor))
}

/// Summed squared distance of the rows of `x` `[n, d]` from their mean, in f64, in a fixed order.
///
/// # Errors
/// Another dtype.
pub fn spread(x: &Tensor) -> Result<f64> {
    dispatch!(x.device(), spread(x))
}

/// The k largest positive pre-activations of each row among `latents` (ascending), by latent over the whole dictionary; `error`
/// `[n, d_out]` plus what they decode to; and the sum of that one's squares. The set is exact; values are f32 products.
///
/// # Errors
/// Mismatched widths, no latents, k of 0.
pub fn dead_topk(x: &Tensor, error: &Tensor, coder: &Coder, latents: &[u32], k: usize) -> Result<(Columns, Tensor, f64)> {
    check_encoder(x, &coder.w_enc, &coder.b_enc)?;
    check_base(error, x.dim(0)?, &coder.w_dec)?;
    if latents.is_empty() || k == 0 {
        return Err(Error::config("sae.aux_k.k", format!("{k} of {} latents cannot be selected", latents.len()), "choose 1 or more"));
    }
    dispatch!(x.device(), dead_topk(x, error, coder, latents, k))
}

/// The sums that `term` leads to, for `latents` (ascending), which must hold all of its entries; its role must be the ordinary one. Pays
/// where these latents have many entries each.
///
/// # Errors
/// Tensors of another device or dtype.
pub fn summed(term: &Term, x: &Tensor, w_dec: &Tensor, latents: &[u32]) -> Result<Summed> {
    dispatch!(x.device(), summed(term, x, w_dec, latents))
}

/// First pass over a sparse gradient: its norm (for clipping), and the whole gradient of `b_dec`.
/// With `unit_norm`, the part of each decoder row's gradient that is parallel to the (unit) row is not counted.
///
/// # Errors
/// Tensors of another device or dtype.
pub fn measure(coder: &Coder, grad: &SparseGrad, unit_norm: bool) -> Result<Measured> {
    dispatch!(coder.w_enc.device(), measure(coder, grad, unit_norm))
}

/// Second pass: gradient, projection, Adam and renormalisation in one visit of each latent, in place.
/// With `unit_norm`, decoder rows lose their gradient's parallel component and are renormalised.
///
/// # Errors
/// Tensors of another device or dtype.
pub fn latent_update(coder: &Coder, moments: &Moments, grad: &SparseGrad, measured: &Measured, adam: &Adam, unit_norm: bool) -> Result<()> {
    dispatch!(coder.w_enc.device(), latent_update(coder, moments, grad, measured, adam, unit_norm))
}

/// Replaces a tensor's elements in place (row-major, f32): a checkpoint coming back.
///
/// # Errors
/// Another number of elements.
pub fn overwrite(tensor: &Tensor, data: &[f32]) -> Result<()> {
    if tensor.elem_count() != data.len() {
        return Err(Error::Width {
            what: "the data".into(),
            expected: tensor.elem_count(),
            got: data.len(),
            help: "it belongs to another tensor".into(),
        });
    }
    dispatch!(tensor.device(), overwrite(tensor, data))
}

#[cfg(test)]
mod tests;
