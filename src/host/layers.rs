//! The parameters of a block and the operations on them. On the CPU they go to `cpu.rs`; elsewhere, and in tests, they are plain
//! candle operations, which are the definition.
//!
//! Activations are `[b * t, width]`. On the CPU they are f32 whatever the dtype of the run; in a bf16 run each operation's result is
//! rounded to bf16 (candle has no bf16 product there), so only the weights take half the memory.

use candle_core::{DType, Device, Tensor, D};

use super::cpu::{self, view, Finish};
use super::spec::{Activation, AttentionSpec, MlpSpec, NormKind, NormSpec, RopeScaling, RopeSpec};
use crate::error::Result;

/// `x w + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// `[in, out]`, possibly a transposed view.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// From a weight `[in, out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// From weights `[out, in]` of layers that read the same input: one product computes all of them, side by side.
    pub fn from_rows(weights: &[Tensor], biases: Option<&[Tensor]>) -> Result<Self> {
        let weight = if weights.len() == 1 { weights[0].clone() } else { Tensor::cat(weights, 0)? };
        let bias = biases.map(|b| Tensor::cat(b, 0)).transpose()?;
        Ok(Self { weight: weight.t()?, bias })
    }

    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        self.weight.elem_count() + self.bias.as_ref().map_or(0, Tensor::elem_count)
    }

    /// Weight and bias in f32, the weight's strides kept.
    fn in_f32(&self) -> Result<(Tensor, Option<Tensor>)> {
        let w = &self.weight;
        let w = if w.is_contiguous() { w.to_dtype(DType::F32)? } else { w.t()?.to_dtype(DType::F32)?.t()? };
        Ok((w, self.bias.as_ref().map(|b| b.to_dtype(DType::F32)).transpose()?))
    }
}

/// A norm's parameters.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    /// `[d]`.
    pub weight: Tensor,
    /// `[d]`.
    pub bias: Option<Tensor>,
}

impl Norm {
    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        self.weight.elem_count() + self.bias.as_ref().map_or(0, Tensor::elem_count)
    }
}

/// The parameters of one block.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub attention_norm: Norm,
    /// Columns q | k | v, heads one after the other.
    pub qkv: Linear,
    pub attention_out: Linear,
    pub mlp_norm: Norm,
    /// Gated: columns gate | up.
    pub mlp_in: Linear,
    pub mlp_out: Linear,
}

impl Block {
    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        let linears = [&self.qkv, &self.attention_out, &self.mlp_in, &self.mlp_out];
        linears.iter().map(|l| l.n_params()).sum::<usize>() + self.attention_norm.n_params() + self.mlp_norm.n_params()
    }
}

/// Cosines and sines of positions 0..t, `[t, n_dims / 2]`, f32.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The table for `t` positions. Angles are rounded to f32 where Hugging Face rounds them, so that long contexts agree.
    pub fn new(spec: &RopeSpec, t: usize, device: &Device) -> Result<Self> {
        let half = spec.n_dims / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| frequency(spec, i)).collect();
        let angles = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..t).flat_map(|p| frequencies.iter().map(move |w| f(f64::from(p as f32 * w)) as f32)).collect()
        };
        let shape = (t, half);
        Ok(Self { cos: Tensor::from_vec(angles(f64::cos), shape, device)?, sin: Tensor::from_vec(angles(f64::sin), shape, device)? })
    }
}

/// Radians per position of the `i`-th pair.
fn frequency(spec: &RopeSpec, i: usize) -> f32 {
    let plain = 1.0 / spec.theta.powf(2.0 * i as f64 / spec.n_dims as f64);
    let scaled = match spec.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Turns over the original context: below `low` the frequency is divided, above `high` it is kept.
            let turns = original_context * plain / std::f64::consts::TAU;
            let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            (1.0 - keep) * plain / factor + keep * plain
        }
    };
    scaled as f32
}

/// How operations are carried out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ops {
    /// Through `cpu.rs`.
    pub fused: bool,
    /// Results are rounded to bf16 (fused only; elsewhere the tensors are bf16).
    pub rounds: bool,
}

impl Ops {
    /// The fast way on a device, for a dtype.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { fused: device.is_cpu(), rounds: dtype == DType::BF16 }
    }

    /// The dtype of activations.
    pub fn activations(&self) -> DType {
        if self.rounds && !self.fused {
            DType::BF16
        } else {
            DType::F32
        }
    }

    /// A norm of each row.
    pub fn norm(&self, x: &Tensor, norm: &Norm, spec: NormSpec) -> Result<Tensor> {
        if self.fused {
            let (weight, bias) = (norm.weight.to_dtype(DType::F32)?, norm.bias.as_ref().map(|b| b.to_dtype(DType::F32)).transpose()?);
            let (x, weight, bias) = (view(x), view(&weight), bias.as_ref().map(view));
            let weight = weight.slice()?;
            let rows = cpu::norm(x.slice()?, spec, weight, bias.as_ref().map(|b| b.slice()).transpose()?, self.rounds);
            return cpu::tensor(rows, weight.len());
        }
        let wide = x.to_dtype(DType::F32)?;
        let centred = match spec.kind {
            NormKind::Layer => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => wide,
        };
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(variance + spec.eps)?.sqrt()?)?.to_dtype(x.dtype())?.broadcast_mul(&norm.weight)?;
        Ok(match &norm.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// `x w + b`, then an activation.
    fn linear_rows(&self, x: &Tensor, linear: &Linear, activation: Option<Activation>) -> Result<Vec<f32>> {
        let (weight, bias) = linear.in_f32()?;
        let (x, weight, bias) = (view(x), view(&weight), bias.as_ref().map(view));
        let finish = Finish { activation, round: self.rounds };
        Ok(cpu::linear(x.slice()?, weight.matrix()?, bias.as_ref().map(|b| b.slice()).transpose()?, finish))
    }

    /// `x w + b`.
    pub fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        if self.fused {
            return cpu::tensor(self.linear_rows(x, linear, None)?, linear.weight.dim(1)?);
        }
        let y = x.matmul(&linear.weight)?;
        Ok(match &linear.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// `a + b`, same shapes.
    pub fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if self.fused {
            let (left, right) = (view(a), view(b));
            return cpu::tensor(cpu::add(left.slice()?, right.slice()?, self.rounds), a.dim(1)?);
        }
        Ok((a + b)?)
    }

    /// Attention of a normed input up to z, `[b * t, n_heads * d_head]`. `mask`: `[b, t]` as bytes, 0 = hidden key.
    pub fn attention(
        &self,
        x: &Tensor,
        t: usize,
        block: &Block,
        spec: &AttentionSpec,
        rope: Option<&Rope>,
        mask: Option<&[u8]>,
    ) -> Result<Tensor> {
        let (h, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
        if self.fused {
            let mut qkv = self.linear_rows(x, &block.qkv, None)?;
            if let Some(rope) = rope {
                let (cos, sin) = (view(&rope.cos), view(&rope.sin));
                cpu::rope(&mut qkv, (h + 2 * kv) * d, h + kv, d, cos.slice()?, sin.slice()?, rope.cos.dim(1)?, self.rounds);
            }
            let mut z = cpu::attention(&qkv, t, spec, mask);
            if self.rounds {
                z = cpu::rounded(z);
            }
            return cpu::tensor(z, h * d);
        }
        let n = x.dim(0)?;
        let b = n / t;
        let qkv = self.linear(x, &block.qkv)?.reshape((b, t, h + 2 * kv, d))?.transpose(1, 2)?;
        let (q, k, v) = (qkv.narrow(1, 0, h)?, qkv.narrow(1, h, kv)?, qkv.narrow(1, h + kv, kv)?);
        let (q, k) = match rope {
            Some(rope) => (rotate(&q, rope)?, rotate(&k, rope)?),
            None => (q.contiguous()?, k.contiguous()?),
        };
        let repeat = |x: &Tensor| -> Result<Tensor> {
            let x = x.contiguous()?.unsqueeze(2)?.broadcast_as((b, kv, h / kv, t, d))?;
            Ok(x.contiguous()?.reshape((b, h, t, d))?)
        };
        let (k, v) = (repeat(&k)?, repeat(&v)?);
        let mut scores = (q.matmul(&k.t()?)? * spec.scale)?;
        if let Some(cap) = spec.softcap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let seen: Vec<u8> = (0..b * t * t)
            .map(|i| {
                let (row, query, key) = (i / (t * t), i / t % t, i % t);
                let near = key <= query && spec.window.is_none_or(|w| key + w > query);
                u8::from(near && mask.is_none_or(|m| m[row * t + key] != 0))
            })
            .collect();
        let seen = Tensor::from_vec(seen, (b, 1, t, t), x.device())?.broadcast_as((b, h, t, t))?.contiguous()?;
        let scores = scores.to_dtype(DType::F32)?;
        let lowest = Tensor::full(f32::MIN, (b, h, t, t), x.device())?;
        let p = candle_nn::ops::softmax_last_dim(&seen.where_cond(&scores, &lowest)?)?.to_dtype(v.dtype())?;
        Ok(p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((n, h * d))?)
    }

    /// The MLP of a normed input up to its neurons, `[b * t, d_mlp]`.
    pub fn neurons(&self, x: &Tensor, block: &Block, spec: &MlpSpec) -> Result<Tensor> {
        if self.fused {
            let rows = if spec.gated {
                cpu::gate(&self.linear_rows(x, &block.mlp_in, None)?, spec.d_mlp, spec.activation, self.rounds)
            } else {
                self.linear_rows(x, &block.mlp_in, Some(spec.activation))?
            };
            return cpu::tensor(rows, spec.d_mlp);
        }
        let h = self.linear(x, &block.mlp_in)?;
        let act = |x: &Tensor| match spec.activation {
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluNew => x.gelu(),
            Activation::Silu => x.silu(),
            Activation::Relu => x.relu(),
        };
        Ok(if spec.gated {
            let (gate, up) = (h.narrow(1, 0, spec.d_mlp)?, h.narrow(1, spec.d_mlp, spec.d_mlp)?);
            (act(&gate.contiguous()?)? * up)?
        } else {
            act(&h)?
        })
    }
}

/// Rotary positions on `[b, heads, t, d]`.
fn rotate(x: &Tensor, rope: &Rope) -> Result<Tensor> {
    let (d, half) = (x.dim(D::Minus1)?, rope.cos.dim(1)?);
    let (cos, sin) = (rope.cos.to_dtype(x.dtype())?, rope.sin.to_dtype(x.dtype())?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let rest = x.narrow(D::Minus1, 2 * half, d - 2 * half)?;
    Ok(if d == 2 * half { Tensor::cat(&[first, second], D::Minus1)? } else { Tensor::cat(&[first, second, rest], D::Minus1)? })
}
