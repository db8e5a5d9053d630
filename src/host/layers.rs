//! The parameters of a block and the operations on them. On the CPU they go to `cpu.rs`; elsewhere, and in tests, they are plain
//! candle operations, which are the definition.
//!
//! Activations are `[b * t, width]`. On the CPU they are f32 whatever the dtype of the run; in a bf16 run each operation's result is
//! rounded to bf16 (candle has no bf16 product there), so only the weights take half the memory. Weights in half precision are widened
//! tile by tile as they are used.

use candle_core::{DType, Device, Tensor, D};

use super::cpu::{self, view, Finish};
use super::rope::RopeSpec;
use super::spec::{Activation, AttentionSpec, MlpSpec, NormKind, NormSpec, QkNorm};
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
    /// From a weight `[in, out]` (of any strides) and a bias `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        self.weight.elem_count() + self.bias.as_ref().map_or(0, Tensor::elem_count)
    }
}

/// A norm's parameters.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    /// `[d]`, f32.
    pub weight: Tensor,
    /// `[d]`, f32.
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
    pub attention_norm: Option<Norm>,
    /// Columns q | k | v, heads one after the other.
    pub qkv: Linear,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub attention_out: Linear,
    /// Of what attention adds to the stream.
    pub attention_after: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    /// Gated: columns gate | up.
    pub mlp_in: Linear,
    pub mlp_out: Linear,
    /// Of what the MLP adds to the stream.
    pub mlp_after: Option<Norm>,
}

impl Block {
    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        let linears = [&self.qkv, &self.attention_out, &self.mlp_in, &self.mlp_out];
        let norms = [&self.attention_norm, &self.q_norm, &self.k_norm, &self.attention_after, &self.mlp_norm, &self.mlp_after];
        linears.iter().map(|l| l.n_params()).sum::<usize>() + norms.into_iter().flatten().map(Norm::n_params).sum::<usize>()
    }
}

/// Cosines and sines of positions 0..t, `[t, n_dims / 2]`, f32.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The table for `t` positions.
    pub fn new(spec: &RopeSpec, t: usize, device: &Device) -> Result<Self> {
        let (cos, sin) = spec.table(t);
        let shape = (t, spec.n_dims() / 2);
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }
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
            let (x, weight, bias) = (view(x), view(&norm.weight), norm.bias.as_ref().map(view));
            let weight = weight.slice()?;
            let rows = cpu::norm(x.slice()?, spec, weight, bias.as_ref().map(|b| b.slice()).transpose()?, self.rounds);
            return cpu::tensor(rows, weight.len());
        }
        let wide = x.to_dtype(DType::F32)?;
        let centred = match spec.kind {
            NormKind::Layer => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms | NormKind::RmsLate => wide,
        };
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(variance + spec.eps)?.sqrt()?)?;
        // Where the result goes back to the run's dtype before the weight, and where after it.
        let y = if spec.kind == NormKind::Rms { y.to_dtype(x.dtype())?.to_dtype(DType::F32)? } else { y };
        let y = y.broadcast_mul(&norm.weight)?;
        Ok(match &norm.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        }
        .to_dtype(x.dtype())?)
    }

    /// `x w + b`, then an activation.
    fn linear_rows(&self, x: &Tensor, linear: &Linear, activation: Option<Activation>) -> Result<Vec<f32>> {
        let bias = linear.bias.as_ref().map(|b| b.to_dtype(DType::F32)).transpose()?;
        let (x, weight, bias) = (view(x), view(&linear.weight), bias.as_ref().map(view));
        let finish = Finish { activation, round: self.rounds };
        cpu::linear(x.slice()?, &weight, bias.as_ref().map(|b| b.slice()).transpose()?, finish)
    }

    /// `x w + b`.
    pub fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        if self.fused {
            return cpu::tensor(self.linear_rows(x, linear, None)?, linear.weight.dim(1)?);
        }
        let y = x.matmul(&linear.weight.to_dtype(x.dtype())?)?;
        Ok(match &linear.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?)?,
            None => y,
        })
    }

    /// `x * factor`. In bf16 the factor is rounded too, as in Hugging Face's embeddings.
    pub fn scale(&self, x: &Tensor, factor: f64) -> Result<Tensor> {
        let factor = if self.rounds { half::bf16::from_f64(factor).to_f64() } else { factor };
        let y = (x * factor)?;
        Ok(if self.rounds { y.to_dtype(DType::BF16)?.to_dtype(x.dtype())? } else { y })
    }

    /// `cap * tanh(x / cap)`.
    pub fn softcap(&self, x: &Tensor, cap: f64) -> Result<Tensor> {
        if self.fused {
            let width = x.dim(D::Minus1)?;
            let x = view(x);
            return cpu::tensor(cpu::softcap(x.slice()?, cap as f32), width);
        }
        Ok(((x / cap)?.tanh()? * cap)?)
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
            if let (Some(q), Some(k)) = (&block.q_norm, &block.k_norm) {
                let (q, k) = (view(&q.weight), view(&k.weight));
                cpu::qk_norm(&mut qkv, spec, q.slice()?, k.slice()?, self.rounds);
            }
            if let Some(rope) = rope {
                let (cos, sin) = (view(&rope.cos), view(&rope.sin));
                cpu::rope(&mut qkv, spec, cos.slice()?, sin.slice()?, rope.cos.dim(1)?, self.rounds);
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
        let (mut q, mut k, v) = (qkv.narrow(1, 0, h)?, qkv.narrow(1, h, kv)?, qkv.narrow(1, h + kv, kv)?);
        if let (Some(q_norm), Some(k_norm)) = (&block.q_norm, &block.k_norm) {
            let normed = |x: &Tensor, weight: &Norm| -> Result<Tensor> {
                let heads = x.dim(1)?;
                let rows = x.transpose(1, 2)?.contiguous()?;
                let rows = if spec.qk_norm == QkNorm::Whole { rows.reshape((n, heads * d))? } else { rows.reshape((n * heads, d))? };
                Ok(self.norm(&rows, weight, spec.norm)?.reshape((b, t, heads, d))?.transpose(1, 2)?)
            };
            (q, k) = (normed(&q, q_norm)?, normed(&k, k_norm)?);
        }
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
            Activation::Relu2 => x.relu()?.sqr(),
            Activation::QuickGelu => candle_nn::ops::sigmoid(&(x * 1.702)?)? * x,
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
    use crate::host::rope::RopeScaling;
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
        let norm = |name: &str, width: usize| Some(Norm { weight: normal(name, &[width]), bias: None });
        let (q_norm, k_norm) = match spec.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Head => (norm("q norm", spec.d_head), norm("k norm", spec.d_head)),
            QkNorm::Whole => (norm("q norm", spec.n_heads * spec.d_head), norm("k norm", spec.n_kv_heads * spec.d_head)),
        };
        Block {
            attention_norm: norm("norm", d),
            qkv: linear("qkv", d, (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head),
            q_norm,
            k_norm,
            attention_out: linear("o", spec.n_heads * spec.d_head, d),
            attention_after: None,
            mlp_norm: norm("norm", d),
            mlp_in: linear("in", d, mlp.d_mlp * if mlp.gated { 2 } else { 1 }),
            mlp_out: linear("out", mlp.d_mlp, d),
            mlp_after: None,
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
        qk_norm: QkNorm::None,
        norm: EPS,
        qkv_bias: true,
        out_bias: true,
    };
    const EPS: NormSpec = NormSpec { kind: NormKind::Rms, eps: 1e-5 };
    const ACTIVATIONS: [Activation; 6] =
        [Activation::Gelu, Activation::GeluNew, Activation::Silu, Activation::Relu, Activation::Relu2, Activation::QuickGelu];
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
            ("normed heads", AttentionSpec { qk_norm: QkNorm::Head, ..ATTENTION }),
            ("normed together", AttentionSpec { qk_norm: QkNorm::Whole, ..ATTENTION }),
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
                    let rope = rotated.map(|dims| RopeSpec { dims, theta: 100.0, scaling: RopeScaling::None });
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
            for activation in ACTIVATIONS {
                for gated in [false, true] {
                    let mlp = MlpSpec { activation, gated, ..MLP };
                    let block = block(d, &ATTENTION, &mlp);
                    let (a, b) = (FUSED.neurons(&x, &block, &mlp).unwrap(), PLAIN.neurons(&x, &block, &mlp).unwrap());
                    assert_close(&a, &b, &format!("{activation:?}, gated {gated}"));
                    assert_close(&FUSED.linear(&a, &block.mlp_out).unwrap(), &PLAIN.linear(&a, &block.mlp_out).unwrap(), "linear");
                }
            }
            for kind in [NormKind::Layer, NormKind::Rms, NormKind::RmsLate] {
                let norm = Norm { weight: normal("w", &[d]), bias: (kind == NormKind::Layer).then(|| normal("b", &[d])) };
                let spec = NormSpec { kind, eps: 1e-5 };
                assert_close(&FUSED.norm(&x, &norm, spec).unwrap(), &PLAIN.norm(&x, &norm, spec).unwrap(), "norm");
            }
            assert_close(&FUSED.add(&x, &x).unwrap(), &PLAIN.add(&x, &x).unwrap(), "add");
        }
        // A transposed weight, as a tied head is; and half precision, in both layouts, at widths that no tile divides.
        let rows = normal("head", &[70, 24]);
        let x = normal("x", &[9, 24]);
        let head = Linear::new(rows.t().unwrap(), None);
        assert_close(&FUSED.linear(&x, &head).unwrap(), &x.matmul(&rows.t().unwrap()).unwrap(), "head");
        for dtype in [DType::BF16, DType::F16] {
            for (n, from, to) in [(9, 24, 70), (600, 40, 300)] {
                let x = normal("x", &[n, from]);
                let bias = Some(normal("b", &[to]).to_dtype(dtype).unwrap());
                let rows = normal("w", &[to, from]).to_dtype(dtype).unwrap();
                let columns = normal("w", &[from, to]).to_dtype(dtype).unwrap();
                for weight in [rows.t().unwrap(), columns] {
                    let linear = Linear::new(weight, bias.clone());
                    assert_close(&FUSED.linear(&x, &linear).unwrap(), &PLAIN.linear(&x, &linear).unwrap(), "half precision");
                }
            }
        }
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
}
