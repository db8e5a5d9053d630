//! Writes a random-weight Hugging Face folder (config.json and model.safetensors, no tokenizer), for measurements and tests at real
//! shapes: weights are normal(0, 0.02), norms one, biases zero, seeded.
//!
//! ```sh
//! cargo run --release --example random_host -- --family gpt2 --layers 12 --d 768 --heads 12 --vocab 50257 --context 1024 --out DIR
//! ```
//!
//! Families: gpt2, gpt_neox (Pythia's options), llama. Also: `--kv-heads N` (llama), `--mlp N` (4 x d unless given), `--seed N`,
//! `--dtype f32|bf16` of the file, and
//!
//! - `--bench B T LAYER`: time forwards of B rows of T tokens stopped at that block's resid_post, and say what loading took at its peak;
//! - `--written`: the folder is there already. For `--bench`, whose peak would else be that of writing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use lapidary::host::{self, Capture, LoadOptions, Tokens};
use lapidary::rng::Rng;
use lapidary::{Error, HookPoint, Result, Site};
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

struct Options {
    family: String,
    layers: usize,
    d: usize,
    heads: usize,
    kv_heads: usize,
    mlp: usize,
    vocab: usize,
    context: usize,
    seed: u64,
    out: PathBuf,
    half: bool,
    written: bool,
    bench: Option<(usize, usize, usize)>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let bad = |what: String| Error::request(what, "see the head of examples/random_host.rs");
    let mut given: HashMap<String, Vec<String>> = HashMap::new();
    while let Some(flag) = args.next() {
        let n = match flag.as_str() {
            "--bench" => 3,
            "--written" => 0,
            _ => 1,
        };
        let name = flag.strip_prefix("--").ok_or_else(|| bad(format!("`{flag}` is not a flag")))?;
        given.insert(name.to_string(), args.by_ref().take(n).collect());
    }
    let mut number = |name: &str, default: Option<usize>| -> Result<usize> {
        match given.remove(name).and_then(|v| v.into_iter().next()) {
            Some(text) => text.parse().map_err(|_| bad(format!("--{name} {text} is not a number"))),
            None => default.ok_or_else(|| bad(format!("--{name} is missing"))),
        }
    };
    let (layers, d, heads) = (number("layers", None)?, number("d", None)?, number("heads", None)?);
    let (kv_heads, mlp) = (number("kv-heads", Some(heads))?, number("mlp", Some(4 * d))?);
    let (vocab, context, seed) = (number("vocab", None)?, number("context", None)?, number("seed", Some(0))? as u64);
    let bench = match given.remove("bench") {
        None => None,
        Some(v) => {
            let v: Vec<usize> = v.iter().filter_map(|x| x.parse().ok()).collect();
            let [b, t, layer] = v[..] else { return Err(bad("--bench needs B T LAYER".into())) };
            Some((b, t, layer))
        }
    };
    let mut text = |name: &str| -> Result<String> {
        given.remove(name).and_then(|v| v.into_iter().next()).ok_or_else(|| bad(format!("--{name} is missing")))
    };
    let (family, out) = (text("family")?, PathBuf::from(text("out")?));
    let half = match text("dtype").as_deref() {
        Err(_) | Ok("f32") => false,
        Ok("bf16") => true,
        Ok(other) => return Err(bad(format!("--dtype {other}: f32 or bf16"))),
    };
    let written = given.remove("written").is_some();
    if let Some(left) = given.keys().next() {
        return Err(bad(format!("unknown flag --{left}")));
    }
    if heads == 0 || kv_heads == 0 || d % heads != 0 || heads % kv_heads != 0 {
        return Err(bad(format!("{heads} heads ({kv_heads} of keys) do not divide d = {d}")));
    }
    Ok(Options { family, layers, d, heads, kv_heads, mlp, vocab, context, seed, out, half, written, bench })
}

fn run(o: &Options) -> Result<()> {
    let (config, tensors) = match o.family.as_str() {
        "gpt2" => gpt2(o),
        "gpt_neox" => gpt_neox(o),
        "llama" => llama(o),
        other => return Err(Error::request(format!("no recipe for family `{other}`"), "use gpt2, gpt_neox or llama")),
    };
    if o.written {
        return o.bench.map_or(Ok(()), |shape| bench(o, shape));
    }
    std::fs::create_dir_all(&o.out).map_err(|e| Error::io("create", &o.out, e))?;
    let config = serde_json::to_vec_pretty(&config).map_err(|e| Error::request(e.to_string(), "report this"))?;
    write(&o.out.join("config.json"), &config)?;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values = values(o.seed, &name, n);
            let bytes = if o.half {
                values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
            } else {
                values.iter().flat_map(|x| x.to_le_bytes()).collect()
            };
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(if o.half { Dtype::BF16 } else { Dtype::F32 }, shape.clone(), bytes).expect("bytes made for this shape");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, None).map_err(|e| Error::request(e.to_string(), "report this"))?;
    write(&o.out.join("model.safetensors"), &file)?;
    println!("{}: {} tensors, {} bytes", o.out.display(), data.len(), file.len());
    match o.bench {
        Some(shape) => bench(o, shape),
        None => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, e))
}

/// Norm weights are one, biases zero, the rest normal(0, 0.02), a stream per tensor.
fn values(seed: u64, name: &str, n: usize) -> Vec<f32> {
    let is_norm = ["ln_1.", "ln_2.", "ln_f.", "norm.", "layernorm."].iter().any(|part| name.contains(part));
    if name.ends_with(".bias") {
        return vec![0.0; n];
    }
    if is_norm {
        return vec![1.0; n];
    }
    let mut rng = Rng::stream(seed, name, 0);
    (0..n).map(|_| (rng.normal() * 0.02) as f32).collect()
}

type Shapes = Vec<(String, Vec<usize>)>;

fn gpt2(o: &Options) -> (serde_json::Value, Shapes) {
    let d = o.d;
    let config = serde_json::json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_layer": o.layers, "n_embd": d,
        "n_head": o.heads, "n_inner": o.mlp, "n_positions": o.context, "vocab_size": o.vocab, "layer_norm_epsilon": 1e-5,
        "bos_token_id": o.vocab - 1, "eos_token_id": o.vocab - 1, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    let mut shapes: Shapes =
        vec![("transformer.wte.weight".into(), vec![o.vocab, d]), ("transformer.wpe.weight".into(), vec![o.context, d])];
    for layer in 0..o.layers {
        for (name, from, to) in [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, o.mlp), ("mlp.c_proj", o.mlp, d)] {
            shapes.push((format!("transformer.h.{layer}.{name}.weight"), vec![from, to]));
            shapes.push((format!("transformer.h.{layer}.{name}.bias"), vec![to]));
        }
        for name in ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"] {
            shapes.push((format!("transformer.h.{layer}.{name}"), vec![d]));
        }
    }
    shapes.extend(["weight", "bias"].map(|part| (format!("transformer.ln_f.{part}"), vec![d])));
    (config, shapes)
}

/// As Pythia: parallel residual, a quarter of each head rotates, exact gelu, untied head.
fn gpt_neox(o: &Options) -> (serde_json::Value, Shapes) {
    let d = o.d;
    let config = serde_json::json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu", "num_hidden_layers": o.layers,
        "hidden_size": d, "num_attention_heads": o.heads, "intermediate_size": o.mlp, "max_position_embeddings": o.context,
        "vocab_size": o.vocab, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": true,
        "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": false, "torch_dtype": "float32",
    });
    let mut shapes: Shapes = vec![("gpt_neox.embed_in.weight".into(), vec![o.vocab, d]), ("embed_out.weight".into(), vec![o.vocab, d])];
    for layer in 0..o.layers {
        for (name, to, from) in [
            ("attention.query_key_value", 3 * d, d),
            ("attention.dense", d, d),
            ("mlp.dense_h_to_4h", o.mlp, d),
            ("mlp.dense_4h_to_h", d, o.mlp),
        ] {
            shapes.push((format!("gpt_neox.layers.{layer}.{name}.weight"), vec![to, from]));
            shapes.push((format!("gpt_neox.layers.{layer}.{name}.bias"), vec![to]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            shapes.extend(["weight", "bias"].map(|part| (format!("gpt_neox.layers.{layer}.{name}.{part}"), vec![d])));
        }
    }
    shapes.extend(["weight", "bias"].map(|part| (format!("gpt_neox.final_layer_norm.{part}"), vec![d])));
    (config, shapes)
}

fn llama(o: &Options) -> (serde_json::Value, Shapes) {
    let (d, kv) = (o.d, o.d / o.heads * o.kv_heads);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": o.layers, "hidden_size": d,
        "num_attention_heads": o.heads, "num_key_value_heads": o.kv_heads, "head_dim": d / o.heads, "intermediate_size": o.mlp,
        "max_position_embeddings": o.context, "vocab_size": o.vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    let mut shapes: Shapes = vec![("model.embed_tokens.weight".into(), vec![o.vocab, d]), ("model.norm.weight".into(), vec![d])];
    for layer in 0..o.layers {
        for (name, to, from) in [
            ("self_attn.q_proj", d, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, d),
            ("mlp.gate_proj", o.mlp, d),
            ("mlp.up_proj", o.mlp, d),
            ("mlp.down_proj", d, o.mlp),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![to, from]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![d]));
        }
    }
    (config, shapes)
}

const RUNS: usize = 6;

/// Times forwards stopped at a block's resid_post, wall clock and processor time.
fn bench(o: &Options, (b, t, layer): (usize, usize, usize)) -> Result<()> {
    let start = Instant::now();
    let model = host::load(&o.out.to_string_lossy(), &LoadOptions::default())?;
    println!("load {:.2} s, {} parameters", start.elapsed().as_secs_f64(), model.info().n_params);
    let file = o.out.join("model.safetensors");
    let bytes = std::fs::metadata(&file).map_err(|e| Error::io("look at", &file, e))?.len();
    if let Some(peak) = peak_bytes() {
        println!("peak after loading {:.1} MB, {:.3} x the {:.1} MB of the file", peak / 1e6, peak / bytes as f64, bytes as f64 / 1e6);
    }
    let mut rng = Rng::stream(o.seed, "bench", 0);
    let rows: Vec<Vec<u32>> = (0..b).map(|_| (0..t).map(|_| rng.below(o.vocab as u64) as u32).collect()).collect();
    let input = Tokens::new(&rows, &candle_core::Device::Cpu)?;
    let (mut times, at, mut digest) = (Vec::new(), HookPoint::block(layer, Site::ResidPost), String::new());
    let cpu = cpu_seconds();
    for _ in 0..RUNS {
        let start = Instant::now();
        let mut capture = Capture::new(&[at]);
        model.forward(&input, &mut capture)?;
        times.push(start.elapsed().as_secs_f64());
        let values = capture.take(&at)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        digest = Sha256::digest(&bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let cpu = cpu.zip(cpu_seconds()).map(|(from, to)| (to - from) / (RUNS * b * t) as f64);
    times[1..].sort_by(f64::total_cmp); // the first one warms up
    let (best, median) = (times[1], times[3]);
    let tokens = (b * t) as f64;
    println!(
        "[{b}, {t}] to block {layer}: median {median:.3} s ({:.0} tokens/s), best {best:.3} s ({:.0} tokens/s)",
        tokens / median,
        tokens / best
    );
    println!("activations' sha256 begins {digest}");
    if let Some(seconds) = cpu {
        println!("processor time {:.0} us/token", seconds * 1e6);
    }
    Ok(())
}

/// The most memory this process has had so far, in bytes, where the system tells (Linux).
fn peak_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

/// Processor time of this process so far, all threads, where the system tells (Linux, in hundredths of a second).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
}
