//! The one decoder: a specification and parameters become a [`HostModel`].
//!
//! Not for: how a family spells things (`family`) or how an operation is computed (`layers`, `cpu`).

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::family::Family;
use super::layers::{Block, Linear, Norm, Ops, Rope};
use super::rope::RopeSpec;
use super::spec::{NormKind, Spec};
use super::weights::{Part, Weights};
use super::{HostInfo, HostModel, Tap, Tokens};
use crate::error::{Error, Result};
use crate::hook::{HookPoint, Site};

/// A decoder of any supported family.
pub(super) struct Decoder {
    pub(super) info: HostInfo,
    family: &'static Family,
    spec: Spec,
    ops: Ops,
    device: Device,
    /// `[vocab, d_model]`.
    embed: Tensor,
    /// `[n_context, d_model]`, f32.
    positions: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: Norm,
    head: Linear,
}

impl Decoder {
    /// Reads the parameters; blocks are converted in parallel while the files are hashed.
    pub fn load(name: String, family: &'static Family, spec: Spec, unread_config: Vec<String>, weights: &Weights) -> Result<Self> {
        // A block has several tensors: far more blocks than tensors is a damaged config, and not worth a thousand errors.
        if spec.blocks.len() > weights.len() {
            return Err(Error::Format {
                format: "safetensors file",
                path: weights.label().into(),
                problem: format!("config.json asks for {} blocks, the file holds {} tensors", spec.blocks.len(), weights.len()),
                help: "take the config.json and the weights from the same model".into(),
            });
        }
        let names = &family.names;
        let (vocab, d) = (spec.vocab_size, spec.d_model);
        let (sha256, parts) = rayon::join(
            || weights.sha256(),
            || -> Result<_> {
                let table = |name: &str, rows: usize| weights.stacked(&[Part::new(format!("{name}.weight"), rows)], Some(d));
                let embed = table(names.embed, vocab)?;
                let positions = if spec.learned_positions { Some(table(names.positions, spec.n_context)?) } else { None };
                let blocks: Vec<Result<Block>> =
                    (0..spec.blocks.len()).into_par_iter().map(|layer| (family.block)(weights, &spec, layer)).collect();
                let blocks = blocks.into_iter().collect::<Result<Vec<_>>>()?; // the first layer's error, always
                let final_norm = weights.norm(names.final_norm, d, names.final_norm_bias)?;
                let head = head(&spec, weights, &embed)?;
                Ok((embed, positions, blocks, final_norm, head))
            },
        );
        let (embed, positions, blocks, final_norm, head) = parts?;
        weights.refuse_unread()?;
        let n_params = embed.elem_count()
            + positions.as_ref().map_or(0, Tensor::elem_count)
            + blocks.iter().map(Block::n_params).sum::<usize>()
            + final_norm.n_params()
            + if spec.tied { 0 } else { head.n_params() };
        let first = &spec.blocks[0]; // a size in a config is at least 1
        let info = HostInfo {
            name,
            family: family.name,
            n_layers: spec.blocks.len(),
            d_model: d,
            n_heads: first.attention.n_heads,
            d_head: first.attention.d_head,
            d_mlp: first.mlp.d_mlp,
            vocab_size: vocab,
            n_context: spec.n_context,
            dtype: weights.dtype.as_str().to_string(),
            n_params: n_params as u64,
            weights_sha256: sha256?,
            bos_token_id: spec.bos_token_id,
            eos_token_ids: spec.eos_token_ids.clone(),
            unread_config,
            origin: None,
        };
        let ops = Ops::new(&weights.device, weights.dtype);
        let positions = positions.map(|p| p.to_dtype(ops.activations())).transpose()?;
        Ok(Self { info, family, spec, ops, device: weights.device.clone(), embed, positions, blocks, final_norm, head })
    }

    /// Checks a batch against the model. Returns its shape and the mask, if it hides anything.
    fn check(&self, input: &Tokens) -> Result<(usize, usize, Option<Vec<u8>>)> {
        let (b, t) = input
            .ids
            .dims2()
            .map_err(|_| Error::request(format!("token ids of shape {:?}", input.ids.dims()), "pass ids as [batch, tokens], u32"))?;
        if b == 0 || t == 0 || input.ids.dtype() != DType::U32 {
            let problem = format!("token ids of shape [{b}, {t}], {:?}", input.ids.dtype());
            return Err(Error::request(problem, "pass at least one token, as u32"));
        }
        if t > self.spec.n_context {
            return Err(Error::request(
                format!("a context of {t} tokens; {} was made for {}", self.info.name, self.spec.n_context),
                format!("set the context to {} or less", self.spec.n_context),
            ));
        }
        let largest = input.ids.flatten_all()?.max(0)?.to_scalar::<u32>()?;
        if largest as usize >= self.spec.vocab_size {
            return Err(Error::request(
                format!("token id {largest}; {} has a vocabulary of {}", self.info.name, self.spec.vocab_size),
                "use the tokenizer that belongs to the model",
            ));
        }
        let Some(mask) = &input.mask else { return Ok((b, t, None)) };
        if mask.dims() != [b, t] || mask.dtype() != DType::U8 {
            let problem = format!("a mask of shape {:?}, {:?}, for token ids [{b}, {t}]", mask.dims(), mask.dtype());
            return Err(Error::request(problem, "pass a mask of the same shape, u8, 1 = a real token"));
        }
        let mask = mask.flatten_all()?.to_vec1::<u8>()?;
        Ok((b, t, mask.contains(&0).then_some(mask)))
    }
}

/// The output head: its own weight, or the embedding's.
fn head(spec: &Spec, weights: &Weights, embed: &Tensor) -> Result<Linear> {
    let own = weights.head();
    if !spec.tied {
        let name = own.unwrap_or_else(|| weights.names.head.to_string());
        return Ok(Linear::new(weights.by_full_name(&name, spec.vocab_size, spec.d_model)?.t()?, None));
    }
    // Versions of transformers disagree on which one such a model means, so we do not guess.
    if let Some(own) = own.filter(|own| !weights.same(own, &weights.full(&format!("{}.weight", weights.names.embed)))) {
        return Err(Error::Format {
            format: "safetensors file",
            path: weights.label().into(),
            problem: format!("`{own}` differs from the token embedding, though config.json says the two are tied"),
            help: "set tie_word_embeddings to false to use the head of the file, or remove it from the file".into(),
        });
    }
    Ok(Linear::new(embed.t()?, None))
}

/// A pass under way: offers activations to the tap and knows when to stop.
struct Pass<'a> {
    tap: &'a mut dyn Tap,
    last: Option<HookPoint>,
    shape: (usize, usize),
    dtype: DType,
}

impl Pass<'_> {
    /// Offers `x`, `[b * t, width]`. `None` = this was the last point wanted.
    fn at(&mut self, layer: usize, site: Site, x: Tensor) -> Result<Option<Tensor>> {
        let at = HookPoint::block(layer, site);
        let x = if self.tap.wants(&at) {
            let (b, t) = self.shape;
            let width = x.dim(1)?;
            let offered = x.reshape((b, t, width))?.to_dtype(DType::F32)?;
            match self.tap.visit(&at, &offered)? {
                None => x,
                Some(y) if y.dims() == [b, t, width] => {
                    y.to_device(x.device())?.to_dtype(self.dtype)?.contiguous()?.reshape((b * t, width))?
                }
                Some(y) => {
                    return Err(Error::request(
                        format!("the replacement at {at} has shape {:?}, the activation [{b}, {t}, {width}]", y.dims()),
                        "return a tensor of the activation's shape",
                    ))
                }
            }
        } else {
            x
        };
        Ok((self.last != Some(at)).then_some(x))
    }
}

/// Goes on with the activation after a hook point, or ends the pass there.
macro_rules! tapped {
    ($pass:ident, $layer:expr, $site:expr, $x:expr) => {
        match $pass.at($layer, $site, $x)? {
            Some(x) => x,
            None => return Ok(None),
        }
    };
}

impl HostModel for Decoder {
    fn info(&self) -> &HostInfo {
        &self.info
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        self.spec.hook_points()
    }

    fn width(&self, at: &HookPoint) -> Result<usize> {
        self.spec.width(at).ok_or_else(|| Error::UnknownHookPoint {
            given: at.to_string(),
            host: self.info.name.clone(),
            available: summary(&self.spec),
        })
    }

    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        let (b, t, mask) = self.check(input)?;
        let mask = mask.as_deref();
        let last = tap.last();
        if let Some(at) = &last {
            self.width(at)?;
        }
        let ops = self.ops;
        let dtype = ops.activations();
        let mut pass = Pass { tap, last, shape: (b, t), dtype };

        let ids = input.ids.to_device(&self.device)?.flatten_all()?;
        let mut x = self.embed.index_select(&ids, 0)?.to_dtype(dtype)?;
        if self.spec.embed_scale != 1.0 {
            x = ops.scale(&x, self.spec.embed_scale)?;
        }
        let mut x = tapped!(pass, 0, Site::Embed, x);
        if let Some(positions) = &self.positions {
            let rows = positions.narrow(0, 0, t)?.broadcast_left(b)?.contiguous()?.reshape((b * t, self.spec.d_model))?;
            x = ops.add(&x, &rows)?;
        }
        let mut ropes: Option<(&RopeSpec, Rope)> = None;
        for (layer, (spec, block)) in self.spec.blocks.iter().zip(&self.blocks).enumerate() {
            x = tapped!(pass, layer, Site::ResidPre, x);
            let rope = match &spec.attention.rope {
                None => None,
                Some(wanted) => {
                    if ropes.as_ref().is_none_or(|(have, _)| *have != wanted) {
                        ropes = Some((wanted, Rope::new(wanted, t, &self.device)?));
                    }
                    ropes.as_ref().map(|(_, rope)| rope)
                }
            };
            let norm = |x: &Tensor, norm: &Option<Norm>| match norm {
                Some(norm) => ops.norm(x, norm, spec.norm),
                None => Ok(x.clone()),
            };
            let z = ops.attention(&norm(&x, &block.attention_norm)?, t, block, &spec.attention, rope, mask)?;
            let z = tapped!(pass, layer, Site::AttnZ, z);
            let mut attn_out = ops.linear(&z, &block.attention_out)?;
            if spec.norms.after() {
                attn_out = norm(&tapped!(pass, layer, Site::AttnRaw, attn_out), &block.attention_after)?;
            }
            let attn_out = tapped!(pass, layer, Site::AttnOut, attn_out);
            // Parallel: the MLP reads the block's input, and the stream gets both outputs at the end.
            let mut mid = ops.add(&x, &attn_out)?;
            if !spec.parallel {
                mid = tapped!(pass, layer, Site::ResidMid, mid);
            }
            let mlp_in = norm(if spec.parallel { &x } else { &mid }, &block.mlp_norm)?;
            let neurons = tapped!(pass, layer, Site::MlpPost, ops.neurons(&mlp_in, block, &spec.mlp)?);
            let mut mlp_out = ops.linear(&neurons, &block.mlp_out)?;
            if spec.norms.after() {
                mlp_out = norm(&tapped!(pass, layer, Site::MlpRaw, mlp_out), &block.mlp_after)?;
            }
            let mlp_out = tapped!(pass, layer, Site::MlpOut, mlp_out);
            x = tapped!(pass, layer, Site::ResidPost, ops.add(&mid, &mlp_out)?);
        }
        let x = tapped!(pass, 0, Site::LnFinal, ops.norm(&x, &self.final_norm, self.spec.final_norm)?);
        let mut logits = ops.linear(&x, &self.head)?.to_dtype(DType::F32)?;
        if let Some(cap) = self.spec.final_softcap {
            logits = ops.softcap(&logits, cap)?;
        }
        Ok(Some(logits.reshape((b, t, self.spec.vocab_size))?))
    }

    fn logit_weights(&self, at: &HookPoint, directions: &Tensor) -> Result<Option<Tensor>> {
        let expected = self.width(at)?;
        let (_, got) = directions.dims2()?;
        if got != expected {
            let help = format!("{at} of this host is {expected} wide");
            return Err(Error::Width { what: "the directions".into(), expected, got, help });
        }
        let x = directions.to_device(&self.device)?.to_dtype(DType::F32)?;
        let weight = self.final_norm.weight.to_dtype(DType::F32)?;
        let x = match at.site {
            Site::AttnZ | Site::AttnRaw | Site::MlpPost | Site::MlpRaw => return Ok(None),
            Site::LnFinal => x,
            _ if self.spec.final_norm.kind == NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(1)?)?.broadcast_mul(&weight)?,
            _ => x.broadcast_mul(&weight)?,
        };
        Ok(Some(self.ops.linear(&x.to_dtype(self.ops.activations())?.contiguous()?, &self.head)?.to_dtype(DType::F32)?))
    }

    fn hf_path(&self, at: &HookPoint) -> Option<String> {
        self.spec.width(at).and_then(|_| self.family.names.hf_path(at))
    }
}

/// The hook points in a sentence: one block's sites stand for all.
fn summary(spec: &Spec) -> String {
    let sites = |layer: usize| spec.hook_points().into_iter().filter(move |p| p.site.is_in_block() && p.layer == layer);
    let names: Vec<String> = sites(0).filter_map(|p| p.to_string().strip_prefix("blocks.0.").map(str::to_string)).collect();
    format!("hook_embed, blocks.L.{{{}}} for L in 0..={}, ln_final.hook_normalized", names.join(", "), spec.blocks.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{config::Config, family, Capture, LoadOptions};
    use crate::rng::Rng;

    /// A GPT-2 of one block whose specification `change` has changed.
    fn tiny(change: impl Fn(&mut Spec)) -> Decoder {
        let (d, m) = (8, 32);
        let shapes: Vec<(&str, Vec<usize>)> = vec![
            ("wte.weight", vec![20, d]),
            ("wpe.weight", vec![16, d]),
            ("h.0.ln_1.weight", vec![d]),
            ("h.0.ln_1.bias", vec![d]),
            ("h.0.ln_2.weight", vec![d]),
            ("h.0.ln_2.bias", vec![d]),
            ("h.0.attn.c_attn.weight", vec![d, 3 * d]),
            ("h.0.attn.c_attn.bias", vec![3 * d]),
            ("h.0.attn.c_proj.weight", vec![d, d]),
            ("h.0.attn.c_proj.bias", vec![d]),
            ("h.0.mlp.c_fc.weight", vec![d, m]),
            ("h.0.mlp.c_fc.bias", vec![m]),
            ("h.0.mlp.c_proj.weight", vec![m, d]),
            ("h.0.mlp.c_proj.bias", vec![d]),
            ("ln_f.weight", vec![d]),
            ("ln_f.bias", vec![d]),
        ];
        let data: Vec<Vec<u8>> = shapes
            .iter()
            .map(|(name, shape)| {
                let mut rng = Rng::stream(3, name, 0);
                (0..shape.iter().product::<usize>()).flat_map(|_| (rng.normal() as f32).to_le_bytes()).collect()
            })
            .collect();
        let views = shapes.iter().zip(&data).map(|((name, shape), bytes)| {
            (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        let json = br#"{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 20}"#;
        let config = Config::parse("tiny".as_ref(), json).unwrap();
        let family = family::of(&config).unwrap();
        let mut spec = (family.spec)(&config).unwrap();
        change(&mut spec);
        let weights = Weights::from_bytes("tiny", &file, family, &LoadOptions::default()).unwrap();
        Decoder::load("tiny".into(), family, spec, Vec::new(), &weights).unwrap()
    }

    #[test]
    fn the_plain_operations_give_the_fused_activations() {
        let mut model = tiny(|_| ());
        let input = Tokens::new(&[vec![1, 2, 3, 4, 5], vec![9, 8, 7, 6, 5]], &Device::Cpu).unwrap();
        let run = |model: &Decoder| {
            let mut capture = Capture::with_logits(&model.hook_points());
            let logits = model.forward(&input, &mut capture).unwrap().unwrap();
            model.hook_points().iter().map(|at| capture.take(at).unwrap()).chain([logits]).collect::<Vec<_>>()
        };
        let fused = run(&model);
        model.ops.fused = false;
        for (a, b) in fused.iter().zip(run(&model)) {
            let worst = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-4, "{worst}");
        }
    }

    #[test]
    fn parallel_blocks_add_both_parts_to_their_input() {
        let model = tiny(|spec| spec.blocks[0].parallel = true);
        assert!(model.width(&HookPoint::block(0, Site::ResidMid)).is_err());
        assert!(!model.hook_points().contains(&HookPoint::block(0, Site::ResidMid)));
        let mut capture = Capture::new(&model.hook_points());
        let input = Tokens::new(&[vec![1, 2, 3]], &Device::Cpu).unwrap();
        assert!(model.forward(&input, &mut capture).unwrap().is_none());
        let at = |site| capture.get(&HookPoint::block(0, site)).unwrap().clone();
        let sum = ((at(Site::ResidPre) + at(Site::AttnOut)).unwrap() + at(Site::MlpOut)).unwrap();
        let worst = (sum - at(Site::ResidPost)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(worst, 0.0);
        // The MLP reads the block's input, not what attention made of it.
        let block = &model.blocks[0];
        let x = at(Site::ResidPre).flatten(0, 1).unwrap();
        let normed = model.ops.norm(&x, block.mlp_norm.as_ref().unwrap(), model.spec.blocks[0].norm).unwrap();
        let neurons = model.ops.neurons(&normed, block, &model.spec.blocks[0].mlp).unwrap();
        let worst = (neurons - at(Site::MlpPost).flatten(0, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(worst.to_scalar::<f32>().unwrap(), 0.0);
    }
}
