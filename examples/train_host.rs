//! Trains the built-in host: a small Llama on stories of `corpus::fable`, written as a normal Hugging Face folder.
//!
//! ```text
//! cargo run --release --example train_host -- --out datasets/fable [--steps 4000] [--seed 0]
//! cargo run --release --example train_host -- --evaluate datasets/fable
//! ```
//!
//! The model here is differentiable and slow, and only for training; `host` loads the result. The same command gives the same bytes on
//! the same kind of CPU. Training reads stories of seed 1, the evaluation stories of seed 2.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var, D};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use lapidary::corpus::fable;
use lapidary::rng::Rng;
use safetensors::tensor::TensorView;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const TRAIN_SEED: u64 = 1;
const HELD_OUT_SEED: u64 = 2;
const HELD_OUT_STORIES: u64 = 2000;

// The shape of the host.
const LAYERS: usize = 4;
const D_MODEL: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D_HEAD: usize = D_MODEL / HEADS;
const D_MLP: usize = 256;
const CONTEXT: usize = 128;
const ROPE_THETA: f64 = 10_000.0;
const RMS_EPS: f64 = 1e-5;

// The recipe.
const BATCH_STORIES: usize = 16;
const PEAK_LR: f64 = 3e-3;
const WARM_UP: usize = 150;
const WEIGHT_DECAY: f64 = 0.02;
const CLIP: f64 = 1.0;

struct Model {
    /// By Hugging Face name, in the order of the forward pass.
    vars: Vec<(String, Var)>,
    by_name: HashMap<String, usize>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![fable::vocabulary().len(), D_MODEL])];
    for layer in 0..LAYERS {
        let parts: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![D_MODEL]),
            ("self_attn.q_proj", vec![HEADS * D_HEAD, D_MODEL]),
            ("self_attn.k_proj", vec![KV_HEADS * D_HEAD, D_MODEL]),
            ("self_attn.v_proj", vec![KV_HEADS * D_HEAD, D_MODEL]),
            ("self_attn.o_proj", vec![D_MODEL, HEADS * D_HEAD]),
            ("post_attention_layernorm", vec![D_MODEL]),
            ("mlp.gate_proj", vec![D_MLP, D_MODEL]),
            ("mlp.up_proj", vec![D_MLP, D_MODEL]),
            ("mlp.down_proj", vec![D_MODEL, D_MLP]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    shapes.push(("model.norm.weight".to_owned(), vec![D_MODEL]));
    shapes
}

impl Model {
    fn new(tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let half = D_HEAD / 2;
        let angle = |t: usize, i: usize| t as f64 / ROPE_THETA.powf(2.0 * i as f64 / D_HEAD as f64);
        let angles: Vec<f32> = (0..CONTEXT).flat_map(|t| (0..half).map(move |i| angle(t, i) as f32)).collect();
        let angles = Tensor::from_vec(angles, (CONTEXT, half), &Device::Cpu)?;
        let mask: Vec<f32> = (0..CONTEXT).flat_map(|q| (0..CONTEXT).map(move |k| if k > q { f32::NEG_INFINITY } else { 0.0 })).collect();
        let vars = tensors.into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t)?))).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            by_name: vars.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect(),
            vars,
            cos: angles.cos()?,
            sin: angles.sin()?,
            mask: Tensor::from_vec(mask, (CONTEXT, CONTEXT), &Device::Cpu)?,
        })
    }

    /// Norms start at 1, matrices at N(0, 1 / fan-in), those that write to the residual stream smaller by sqrt(2 layers). With the usual
    /// 0.02, far too small at this width, looking up who wished for what had not begun after 6.3 M tokens.
    fn init(seed: u64) -> Result<Self> {
        let tensors = shapes().into_iter().enumerate().map(|(i, (name, shape))| {
            let n: usize = shape.iter().product();
            let mut rng = Rng::stream(seed, "init", i as u64);
            let writes = name.contains("o_proj") || name.contains("down_proj");
            let fan_in = shape[shape.len() - 1] as f64;
            let std = (if writes { 1.0 / (2.0 * LAYERS as f64) } else { 1.0 } / fan_in).sqrt();
            let values: Vec<f32> = if shape.len() == 1 { vec![1.0; n] } else { (0..n).map(|_| (std * rng.normal()) as f32).collect() };
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        });
        Self::new(tensors.collect::<Result<_>>()?)
    }

    fn load(dir: &Path) -> Result<Self> {
        let mut tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let take = |(name, _): (String, _)| {
            let tensor = tensors.remove(&name).ok_or_else(|| format!("{name} is missing"))?.to_dtype(DType::F32)?;
            Ok((name, tensor))
        };
        Self::new(shapes().into_iter().map(take).collect::<Result<_>>()?)
    }

    fn weight(&self, name: &str) -> &Tensor {
        &self.vars[self.by_name[name]].1
    }

    fn linear(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let w = self.weight(name);
        x.reshape((b * t, d))?.matmul(&w.t()?)?.reshape((b, t, w.dim(0)?))
    }

    fn norm(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + RMS_EPS)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(self.weight(name))
    }

    fn rope(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let t = x.dim(2)?;
        let (cos, sin) = (self.cos.narrow(0, 0, t)?, self.sin.narrow(0, 0, t)?);
        let (a, b) = (x.narrow(3, 0, D_HEAD / 2)?, x.narrow(3, D_HEAD / 2, D_HEAD / 2)?);
        let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[&left, &right], 3)
    }

    fn attention(&self, x: &Tensor, at: &str) -> candle_core::Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |name: &str, n: usize| -> candle_core::Result<Tensor> {
            self.linear(x, &format!("{at}.self_attn.{name}.weight"))?.reshape((b, t, n, D_HEAD))?.transpose(1, 2)?.contiguous()
        };
        let q = (self.rope(&heads("q_proj", HEADS)?)? * (D_HEAD as f64).powf(-0.5))?;
        let k = self.rope(&heads("k_proj", KV_HEADS)?)?;
        let v = heads("v_proj", KV_HEADS)?;
        // The query heads of one key-value head become more query rows: nothing is repeated.
        let rows = HEADS / KV_HEADS * t;
        let scores = q.reshape((b, KV_HEADS, rows, D_HEAD))?.matmul(&k.transpose(2, 3)?.contiguous()?)?.reshape((b, HEADS, t, t))?;
        let scores = scores.broadcast_add(&self.mask.narrow(0, 0, t)?.narrow(1, 0, t)?.contiguous()?)?;
        let pattern = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let z = pattern.reshape((b, KV_HEADS, rows, t))?.matmul(&v)?.reshape((b, HEADS, t, D_HEAD))?;
        let z = z.transpose(1, 2)?.contiguous()?.reshape((b, t, HEADS * D_HEAD))?;
        self.linear(&z, &format!("{at}.self_attn.o_proj.weight"))
    }

    /// Log-probabilities of the rows named by `keep` (indices into [b * t]), `[rows, vocabulary]`.
    fn log_probs(&self, ids: &Tensor, keep: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let mut x = self.weight("model.embed_tokens.weight").index_select(&ids.flatten_all()?, 0)?.reshape((b, t, D_MODEL))?;
        for layer in 0..LAYERS {
            let at = format!("model.layers.{layer}");
            x = (&x + self.attention(&self.norm(&x, &format!("{at}.input_layernorm.weight"))?, &at)?)?;
            let h = self.norm(&x, &format!("{at}.post_attention_layernorm.weight"))?;
            let gate = self.linear(&h, &format!("{at}.mlp.gate_proj.weight"))?.silu()?;
            let up = self.linear(&h, &format!("{at}.mlp.up_proj.weight"))?;
            x = (&x + self.linear(&(gate * up)?, &format!("{at}.mlp.down_proj.weight"))?)?;
        }
        let x = x.reshape((b * t, D_MODEL))?.index_select(keep, 0)?;
        let x = self.norm(&x, "model.norm.weight")?;
        candle_nn::ops::log_softmax(&x.matmul(&self.weight("model.embed_tokens.weight").t()?)?, D::Minus1)
    }
}

/// Stories of about one length, as tensors: inputs `[b, t]`, the real rows of [b * t], the token that follows each.
struct Batch {
    ids: Tensor,
    keep: Tensor,
    next: Tensor,
}

impl Batch {
    fn new(stories: &[Vec<u32>]) -> candle_core::Result<Self> {
        let t = stories.iter().map(Vec::len).max().unwrap_or(0) - 1;
        let (mut ids, mut keep, mut next) = (Vec::new(), Vec::new(), Vec::new());
        for (row, story) in stories.iter().enumerate() {
            for i in 0..t {
                ids.push(story.get(i).copied().filter(|_| i + 1 < story.len()).unwrap_or(fable::PAD));
                if let Some(&token) = story.get(i + 1) {
                    keep.push((row * t + i) as u32);
                    next.push(token);
                }
            }
        }
        let rows = keep.len();
        Ok(Self {
            ids: Tensor::from_vec(ids, (stories.len(), t), &Device::Cpu)?,
            keep: Tensor::from_vec(keep, rows, &Device::Cpu)?,
            next: Tensor::from_vec(next, (rows, 1), &Device::Cpu)?,
        })
    }

    /// -ln p of each real token, `[rows]`.
    fn losses(&self, model: &Model) -> candle_core::Result<Tensor> {
        model.log_probs(&self.ids, &self.keep)?.gather(&self.next, 1)?.squeeze(1)?.neg()
    }
}

/// Batches of stories `first..`, in groups of 16 sorted by length so that little is padding; the batches of a group are shuffled.
fn batches(group: u64, seed: u64) -> Result<Vec<Batch>> {
    const GROUP: usize = 16;
    let n = (BATCH_STORIES * GROUP) as u64;
    let mut stories: Vec<_> = (group * n..(group + 1) * n)
        .map(|i| {
            let mut tokens = fable::story(TRAIN_SEED, i).tokens;
            tokens.push(fable::EOS);
            tokens
        })
        .collect();
    stories.sort_by_key(Vec::len);
    let mut batches = stories.chunks(BATCH_STORIES).map(Batch::new).collect::<candle_core::Result<Vec<_>>>()?;
    Rng::stream(seed, "data", group).shuffle(&mut batches);
    Ok(batches)
}

fn learning_rate(step: usize, steps: usize) -> f64 {
    let warm = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
    let done = step as f64 / steps as f64;
    PEAK_LR * warm * (0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

fn train(steps: usize, seed: u64) -> Result<(Model, u64)> {
    let model = Model::init(seed)?;
    // Norm scales do not decay; the two optimisers share nothing else.
    let (norms, matrices): (Vec<_>, Vec<_>) = model.vars.iter().map(|v| v.1.clone()).partition(|v| v.rank() == 1);
    let params = |weight_decay| ParamsAdamW { lr: PEAK_LR, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay };
    let mut optimisers = [AdamW::new(matrices, params(WEIGHT_DECAY))?, AdamW::new(norms, params(0.0))?];
    let (start, mut tokens, mut queue, mut group, mut recent) = (Instant::now(), 0u64, Vec::new(), 0, 0.0);
    for step in 0..steps {
        if queue.is_empty() {
            queue = batches(group, seed)?;
            group += 1;
        }
        let batch = queue.pop().ok_or("a group holds batches")?;
        tokens += batch.keep.dim(0)? as u64;
        let loss = batch.losses(&model)?.mean_all()?;
        let mut gradients = loss.backward()?;
        let mut norm = 0f64;
        for (_, var) in &model.vars {
            if let Some(g) = gradients.get(var) {
                norm += f64::from(g.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let scale = (CLIP / norm.sqrt()).min(1.0);
        for (_, var) in &model.vars {
            if let Some(g) = gradients.remove(var) {
                gradients.insert(var, (g * scale)?);
            }
        }
        for optimiser in &mut optimisers {
            optimiser.set_learning_rate(learning_rate(step, steps));
            optimiser.step(&gradients)?;
        }
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !loss.is_finite() {
            return Err(format!("the loss is {loss} at step {step}").into());
        }
        recent += loss;
        if (step + 1) % 100 == 0 {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "step {:5}  tokens {tokens:9}  loss {:.4}  lr {:.5}  {seconds:.0} s",
                step + 1,
                recent / 100.0,
                learning_rate(step, steps)
            );
            recent = 0.0;
        }
    }
    Ok((model, tokens))
}

/// What the held-out stories say of the host. All in nats per token; `<bos>` and `<eos>` are not counted.
#[derive(Debug, Default)]
struct Evaluation {
    tokens: u64,
    host: f64,
    entropy: f64,
    unigram: f64,
    bigram: f64,
    trigram: f64,
    /// -ln p of `<eos>` where the story ends.
    end: f64,
}

fn evaluate(model: &Model) -> Result<Evaluation> {
    let mut e = Evaluation::default();
    let grams: Vec<Grams> = (1..=3).map(Grams::fit).collect();
    let mut excess: HashMap<u32, (f64, u64)> = HashMap::new();
    for chunk in 0..HELD_OUT_STORIES / 20 {
        let stories: Vec<_> = (chunk * 20..(chunk + 1) * 20).map(|i| fable::story(HELD_OUT_SEED, i)).collect();
        let ended: Vec<Vec<u32>> = stories.iter().map(|s| s.tokens.iter().copied().chain([fable::EOS]).collect()).collect();
        let losses = Batch::new(&ended)?.losses(model)?.to_vec1::<f32>()?;
        let mut losses = losses.into_iter().map(f64::from);
        for story in &stories {
            for t in 1..story.tokens.len() {
                let (loss, best) = (losses.next().ok_or("one loss per token")?, f64::from(story.nats[t]));
                e.tokens += 1;
                e.host += loss;
                e.entropy += best;
                let by = excess.entry(story.tokens[t]).or_default();
                *by = (by.0 + loss - best, by.1 + 1);
                for (gram, sum) in grams.iter().zip([&mut e.unigram, &mut e.bigram, &mut e.trigram]) {
                    *sum += gram.nats(&story.tokens[..=t]);
                }
            }
            e.end += losses.next().ok_or("a loss for the end")?;
        }
    }
    let n = e.tokens as f64;
    for sum in [&mut e.host, &mut e.entropy, &mut e.unigram, &mut e.bigram, &mut e.trigram] {
        *sum /= n;
    }
    e.end /= HELD_OUT_STORIES as f64;
    let mut worst: Vec<_> = excess.into_iter().collect();
    worst.sort_by(|a, b| b.1 .0.total_cmp(&a.1 .0));
    println!("words with the largest excess over the grammar (share of all tokens' mean excess, mean where the word stands):");
    for (token, (sum, count)) in worst.into_iter().take(12) {
        println!("  {:10} {:.5}  {:.4}", fable::vocabulary()[token as usize], sum / n, sum / count as f64);
    }
    Ok(e)
}

/// Frequencies of n-grams in 20,000 training stories; each order falls back on the one below with weight 1.
struct Grams {
    order: usize,
    counts: HashMap<Vec<u32>, f64>,
    totals: HashMap<Vec<u32>, f64>,
}

impl Grams {
    fn fit(order: usize) -> Self {
        let (mut counts, mut totals) = (HashMap::new(), HashMap::new());
        for story in (0..20_000).map(|i| fable::story(TRAIN_SEED, i).tokens) {
            for t in 1..story.len() {
                for n in 1..=order.min(t + 1) {
                    *counts.entry(story[t + 1 - n..=t].to_vec()).or_insert(0.0) += 1.0;
                    *totals.entry(story[t + 1 - n..t].to_vec()).or_insert(0.0) += 1.0;
                }
            }
        }
        Self { order, counts, totals }
    }

    fn nats(&self, tokens: &[u32]) -> f64 {
        let mut p = 1.0 / fable::vocabulary().len() as f64;
        for n in 1..=self.order.min(tokens.len()) {
            let gram = &tokens[tokens.len() - n..];
            let count = self.counts.get(gram).copied().unwrap_or(0.0);
            let total = self.totals.get(&gram[..n - 1]).copied().unwrap_or(0.0);
            p = (count + p) / (total + 1.0);
        }
        -p.ln()
    }
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let partial = dir.join(format!("{name}.partial"));
    fs::write(&partial, bytes)?;
    Ok(fs::rename(partial, path)?)
}

fn write_json(dir: &Path, name: &str, value: &serde_json::Value) -> Result<()> {
    write(dir, name, format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// A normal Hugging Face folder.
fn save(model: &Model, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut bytes = Vec::new();
    for (name, var) in &model.vars {
        let values = var.flatten_all()?.to_vec1::<f32>()?;
        bytes.push((name, var.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
    }
    let view = |(name, shape, bytes)| Ok((name, TensorView::new(safetensors::Dtype::F32, shape, bytes)?));
    let tensors = bytes.iter().map(|(name, shape, bytes)| view((name, shape.clone(), bytes))).collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write(dir, "model.safetensors", &safetensors::serialize(tensors, Some(metadata))?)?;
    write_json(
        dir,
        "config.json",
        &serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
            "vocab_size": fable::vocabulary().len(), "hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": D_HEAD, "hidden_act": "silu",
            "max_position_embeddings": CONTEXT, "rope_theta": ROPE_THETA, "rope_scaling": null, "rms_norm_eps": RMS_EPS,
            "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": true, "initializer_range": 0.02,
            "bos_token_id": fable::BOS, "eos_token_id": fable::EOS, "pad_token_id": fable::PAD, "use_cache": true
        }),
    )?;
    write_json(
        dir,
        "generation_config.json",
        &serde_json::json!({"bos_token_id": fable::BOS, "eos_token_id": fable::EOS, "pad_token_id": fable::PAD, "max_length": CONTEXT}),
    )?;
    write_tokenizer(dir)
}

fn write_tokenizer(dir: &Path) -> Result<()> {
    let words = fable::vocabulary();
    let vocabulary: serde_json::Map<_, _> = words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let special = |id: u32| {
        serde_json::json!({"id": id, "content": words[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let specials = [fable::PAD, fable::BOS, fable::EOS, fable::UNK];
    let bos = serde_json::json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
    let sequence = |id: &str, type_id: u32| serde_json::json!({"Sequence": {"id": id, "type_id": type_id}});
    write_json(
        dir,
        "tokenizer.json",
        &serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": specials.map(special),
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}]},
            "post_processor": {"type": "TemplateProcessing",
                "single": [bos, sequence("A", 0)], "pair": [bos, sequence("A", 0), bos, sequence("B", 1)],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [fable::BOS], "tokens": ["<bos>"]}}},
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
        }),
    )?;
    let added: serde_json::Map<_, _> = specials
        .iter()
        .map(|&id| {
            let mut token = special(id);
            token.as_object_mut().map(|t| t.shift_remove("id"));
            (id.to_string(), token)
        })
        .collect();
    write_json(
        dir,
        "tokenizer_config.json",
        &serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
            "unk_token": "<unk>", "add_bos_token": true, "add_eos_token": false, "clean_up_tokenization_spaces": false,
            "model_max_length": CONTEXT, "added_tokens_decoder": added
        }),
    )
}

/// A story by the host itself, drawn at temperature 1.
fn sample(model: &Model, seed: u64) -> Result<String> {
    let mut rng = Rng::stream(seed, "sample", 0);
    let mut tokens = vec![fable::BOS];
    while tokens.len() < CONTEXT && tokens.last() != Some(&fable::EOS) {
        let ids = Tensor::new(&tokens[..], &Device::Cpu)?.unsqueeze(0)?;
        let last = Tensor::new(&[tokens.len() as u32 - 1], &Device::Cpu)?;
        let p = model.log_probs(&ids, &last)?.squeeze(0)?.exp()?.to_vec1::<f32>()?;
        tokens.push(rng.weighted(&p.into_iter().map(f64::from).collect::<Vec<_>>()) as u32);
    }
    let words = fable::vocabulary();
    Ok(tokens.iter().map(|&t| words[t as usize]).collect::<Vec<_>>().join(" "))
}

fn main() -> Result<()> {
    let (mut out, mut from, mut steps, mut seed) = (None, None, 4000usize, 0u64);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
        match flag.as_str() {
            "--out" => out = Some(PathBuf::from(value)),
            "--evaluate" => from = Some(PathBuf::from(value)),
            "--steps" => steps = value.parse()?,
            "--seed" => seed = value.parse()?,
            _ => return Err(format!("{flag} is not known; there are --out, --evaluate, --steps, --seed").into()),
        }
    }
    let model = match (&out, &from) {
        (Some(out), None) => {
            let (model, tokens) = train(steps, seed)?;
            save(&model, out)?;
            println!("{steps} steps, {tokens} tokens; written to {}", out.display());
            model
        }
        (None, Some(from)) => Model::load(from)?,
        _ => return Err("give either --out DIR (train) or --evaluate DIR".into()),
    };
    let e = evaluate(&model)?;
    println!("held-out: {} stories of seed {HELD_OUT_SEED}, {} tokens; nats per token:", HELD_OUT_STORIES, e.tokens);
    println!("  unigram {:.4}  bigram {:.4}  trigram {:.4}", e.unigram, e.bigram, e.trigram);
    println!("  host {:.4}  grammar {:.4}  excess {:.4}  <eos> after the last stop {:.4}", e.host, e.entropy, e.host - e.entropy, e.end);
    for seed in 0..3 {
        println!("sample {seed}: {}", sample(&model, seed)?);
    }
    Ok(())
}
