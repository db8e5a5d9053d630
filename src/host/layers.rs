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
    // `cat` along the last dimension leaves a transposed layout behind.
    Ok(if d == 2 * half { Tensor::cat(&[first, second], D::Minus1)? } else { Tensor::cat(&[first, second, rest], D::Minus1)? }
        .contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const FUSED: Ops = Ops { fused: true, rounds: false };
    const PLAIN: Ops = Ops { fused: false, rounds: false };

    fn normal(name: &str, shape: &[usize]) -> Tensor {
        let mut rng = Rng::stream(11, name, 0);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn linear(name: &str, from: usize, to: usize) -> Linear {
        let weight = (normal(name, &[from, to]) * 0.2).unwrap();
        Linear::new(weight, Some(normal(&format!("{name} bias"), &[to])))
    }

    fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let scale = b.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 2e-6 * (1.0 + scale) * 4.0, "{what}: {worst} at a scale of {scale}");
    }

    fn block(d: usize, spec: &AttentionSpec, mlp: &MlpSpec) -> Block {
        let norm = || Norm { weight: normal("norm", &[d]), bias: Some(normal("norm bias", &[d])) };
        Block {
            attention_norm: norm(),
            qkv: linear("qkv", d, (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head),
            attention_out: linear("o", spec.n_heads * spec.d_head, d),
            mlp_norm: norm(),
            mlp_in: linear("in", d, mlp.d_mlp * if mlp.gated { 2 } else { 1 }),
            mlp_out: linear("out", mlp.d_mlp, d),
        }
    }

    const ATTENTION: AttentionSpec = AttentionSpec {
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        scale: 0.35,
        softcap: None,
        window: None,
        rope: None,
        qkv_bias: true,
        out_bias: true,
    };
    const MLP: MlpSpec = MlpSpec { d_mlp: 50, activation: Activation::Gelu, gated: false, bias: true };

    /// Every option of attention, alone and together, at lengths around the tile's.
    #[test]
    fn fused_attention_is_the_plain_one() {
        let (b, d) = (3, 24);
        let specs = [
            ("plain", ATTENTION),
            ("full heads", AttentionSpec { n_kv_heads: 4, ..ATTENTION }),
            ("softcap", AttentionSpec { softcap: Some(1.5), ..ATTENTION }),
            ("window", AttentionSpec { window: Some(5), ..ATTENTION }),
            ("long window", AttentionSpec { window: Some(70), ..ATTENTION }),
            ("both", AttentionSpec { softcap: Some(2.0), window: Some(1), ..ATTENTION }),
        ];
        for t in [1, 7, 64, 65, 140] {
            let x = normal("x", &[b * t, d]);
            // Row 0 all real, row 1 padded on the right, row 2 on the left (its first queries see nothing).
            let mask: Vec<u8> =
                (0..b * t).map(|i| u8::from(i / t == 0 || (i / t == 1 && i % t < t - t / 3) || (i / t == 2 && i % t >= t / 4))).collect();
            for (name, spec) in &specs {
                let block = block(d, spec, &MLP);
                for rotated in [None, Some(8), Some(4)] {
                    let rope = rotated.map(|n_dims| RopeSpec { n_dims, theta: 100.0, scaling: RopeScaling::None });
                    let rope = rope.map(|spec| Rope::new(&spec, t, &Device::Cpu).unwrap());
                    for mask in [None, Some(mask.as_slice())] {
                        let run = |ops: Ops| ops.attention(&x, t, &block, spec, rope.as_ref(), mask).unwrap();
                        assert_close(&run(FUSED), &run(PLAIN), &format!("{name}, t {t}, rope {rotated:?}, mask {}", mask.is_some()));
                    }
                }
            }
        }
    }

    #[test]
    fn fused_rows_are_the_plain_ones() {
        // Widths and counts on both sides of the tiles.
        for (n, d) in [(1, 24), (17, 24), (600, 40), (33, 800)] {
            let x = normal("x", &[n, d]);
            for activation in [Activation::Gelu, Activation::GeluNew, Activation::Silu, Activation::Relu] {
                for gated in [false, true] {
                    let mlp = MlpSpec { activation, gated, ..MLP };
                    let block = block(d, &ATTENTION, &mlp);
                    let (a, b) = (FUSED.neurons(&x, &block, &mlp).unwrap(), PLAIN.neurons(&x, &block, &mlp).unwrap());
                    assert_close(&a, &b, &format!("{activation:?}, gated {gated}"));
                    assert_close(&FUSED.linear(&a, &block.mlp_out).unwrap(), &PLAIN.linear(&a, &block.mlp_out).unwrap(), "linear");
                }
            }
            for kind in [NormKind::Layer, NormKind::Rms] {
                let norm = Norm { weight: normal("w", &[d]), bias: (kind == NormKind::Layer).then(|| normal("b", &[d])) };
                let spec = NormSpec { kind, eps: 1e-5 };
                assert_close(&FUSED.norm(&x, &norm, spec).unwrap(), &PLAIN.norm(&x, &norm, spec).unwrap(), "norm");
            }
            assert_close(&FUSED.add(&x, &x).unwrap(), &PLAIN.add(&x, &x).unwrap(), "add");
        }
        // A transposed weight, as a tied head is.
        let rows = normal("head", &[70, 24]);
        let (head, x) = (Linear::from_rows(&[rows.clone()], None).unwrap(), normal("x", &[9, 24]));
        assert_close(&FUSED.linear(&x, &head).unwrap(), &x.matmul(&rows.t().unwrap()).unwrap(), "head");
    }

    #[test]
    fn a_large_common_offset_does_not_spoil_a_layer_norm() {
        let (n, d) = (4, 64);
        let x = normal("x", &[n, d]);
        let norm = Norm { weight: Tensor::ones(d, DType::F32, &Device::Cpu).unwrap(), bias: None };
        let spec = NormSpec { kind: NormKind::Layer, eps: 1e-5 };
        let shifted = (&x + 1024.0).unwrap();
        let a = FUSED.norm(&shifted, &norm, spec).unwrap();
        // The shift itself rounds x to 2^-14; a variance as E x^2 - (E x)^2 would be off by percents.
        let worst = (a - FUSED.norm(&x, &norm, spec).unwrap()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 5e-4, "{worst}");
    }

    #[test]
    fn llama3_frequencies_keep_the_fast_and_divide_the_slow() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let spec = RopeSpec { n_dims: 128, theta: 500_000.0, scaling };
        let plain = RopeSpec { scaling: RopeScaling::None, ..spec.clone() };
        assert_eq!(frequency(&spec, 0), frequency(&plain, 0));
        assert!((frequency(&spec, 63) * 8.0 / frequency(&plain, 63) - 1.0).abs() < 1e-6);
        let ratio = |i| frequency(&plain, i) / frequency(&spec, i);
        assert!((0..63).all(|i| ratio(i) <= ratio(i + 1) + 1e-6) && (25..40).any(|i| ratio(i) > 1.5 && ratio(i) < 7.5));
    }
}
