//! Host models: golden activations of the real transformers library, and what taps, masks and damaged files must do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lapidary::host::{self, Ablate, Capture, HostModel, LoadOptions, NoTap, Pair, Splice, Steer, Tokens};
use lapidary::rng::Rng;
use lapidary::{Error, HookPoint, Site};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::support::{shared_data, skip};

// ---------------------------------------------------------------------------------------------- golden values

/// Largest difference relative to its allowance (1e-4, or 5e-4 where magnitudes exceed 10), at most 1 when all is well.
fn worst(got: &Tensor, want: &Tensor, keep: Option<&[u8]>) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let width = want.dims().last().copied().unwrap();
    let flat = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (flat(got), flat(want));
    let allowed = if want.iter().any(|x| x.abs() > 10.0) { 5e-4 } else { 1e-4 };
    assert!(got.iter().all(|x| x.is_finite()));
    got.iter()
        .zip(&want)
        .enumerate()
        .filter(|(i, _)| keep.is_none_or(|k| k[i / width] == 1))
        .map(|(_, (a, b))| (a - b).abs() / allowed)
        .fold(0.0, f32::max)
}

/// The hook point a golden tensor belongs to; none for those that are no hook point (attention probabilities).
fn golden_point(name: &str, n_layers: usize, norms_after: bool) -> Option<HookPoint> {
    let (kind, rest) = name.split_once('.')?;
    if kind == "hidden_states" {
        let i: usize = rest.parse().ok()?;
        // The last hidden state is final-normed.
        return Some(if i == n_layers { HookPoint::block(0, Site::LnFinal) } else { HookPoint::block(i, Site::ResidPre) });
    }
    let (layer, part) = rest.split_once('.')?;
    let site = match part {
        // Golden files name the modules' outputs; TransformerLens' names are for what is added to the stream.
        "attn_out" if norms_after => Site::AttnRaw,
        "mlp_out" if norms_after => Site::MlpRaw,
        "attn_out" | "attn_out_postnorm" => Site::AttnOut,
        "attn_z" => Site::AttnZ,
        "resid_mid" => Site::ResidMid,
        "mlp_out" | "mlp_out_postnorm" => Site::MlpOut,
        "mlp_act" => Site::MlpPost,
        "output" => Site::ResidPost,
        _ => return None,
    };
    Some(HookPoint::block(layer.parse().ok()?, site))
}

/// Runs the model on a golden file's inputs and compares everything in it. Returns (tensors compared, worst error / allowance).
fn compare_with_golden(model: &dyn HostModel, golden: &HashMap<String, Tensor>) -> (usize, f32) {
    let ids = |name: &str| golden[name].to_dtype(DType::U32).unwrap();
    let mut runs = vec![("", Tokens { ids: ids("input_ids"), mask: None })];
    if golden.contains_key("padded.input_ids") {
        let mask = golden["padded.attention_mask"].to_dtype(DType::U8).unwrap();
        runs.push(("padded.", Tokens { ids: ids("padded.input_ids"), mask: Some(mask) }));
    }
    let (mut n, mut largest) = (0, 0f32);
    let norms_after = golden.contains_key("layer.0.attn_out_postnorm");
    for (prefix, input) in runs {
        let mut capture = Capture::with_logits(&model.hook_points());
        let logits = model.forward(&input, &mut capture).unwrap().unwrap();
        for (name, want) in golden {
            let Some(rest) = name.strip_prefix(prefix).filter(|r| prefix == "padded." || !r.starts_with("padded.")) else { continue };
            let got = match golden_point(rest, model.info().n_layers, norms_after) {
                Some(at) => capture.get(&at).unwrap(),
                None if rest == "logits" => &logits,
                None => continue,
            };
            // Right padding: even pad positions see real keys only, so eager attention's values there are comparable too.
            let error = worst(got, want, None);
            assert!(error <= 1.0, "{}: {name} is off by {error} x the allowance", model.info().name);
            (n, largest) = (n + 1, largest.max(error));
        }
    }
    (n, largest)
}

#[test]
fn golden_activations_of_tiny_models() {
    let Some(data) = shared_data() else { return skip("no shared data: golden activations") };
    for (name, expected) in [("gpt2", 28), ("gpt_neox", 18), ("llama", 28), ("qwen2", 20), ("gemma2", 44)] {
        let dir = data.join("golden").join(name);
        let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        let weights = std::fs::read(dir.join("model.safetensors")).unwrap();
        let mut configs = vec!["config.json"];
        configs.extend(dir.join("config.v5.json").is_file().then_some("config.v5.json"));
        for file in configs {
            let config = std::fs::read(dir.join(file)).unwrap();
            let model = host::load_bytes(name, &config, &weights, &LoadOptions::default()).unwrap();
            assert!(model.info().unread_config.is_empty(), "{:?}", model.info().unread_config);
            let (n, error) = compare_with_golden(&*model, &golden);
            println!("{name} {file}: {n} tensors, worst error {error:.3} x the allowance");
            assert_eq!(n, expected);
        }
        let model = host::load(dir.to_str().unwrap(), &LoadOptions::default()).unwrap();
        compare_with_golden(&*model, &golden);
    }
}

/// Tiny random models of every family with the options that change numbers, in both styles of config.json, against transformers.
/// `tests/golden/hosts.py` wrote them; LAPIDARY_GOLDEN_HOSTS names a folder of more.
#[test]
fn golden_activations_of_every_family() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hosts");
    let more = std::env::var_os("LAPIDARY_GOLDEN_HOSTS").map(PathBuf::from);
    let mut folders: Vec<PathBuf> = [Some(own), more]
        .into_iter()
        .flatten()
        .flat_map(|dir| std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    folders.sort();
    let mut families = std::collections::BTreeSet::new();
    let mut failures = Vec::new();
    for dir in folders {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        match golden_folder(&dir) {
            Ok((family, n, error)) => {
                println!("{name}: {n} tensors, worst error {error:.3} x the allowance");
                families.insert(family);
                if error > 1.0 || n < 11 {
                    failures.push(format!("{name}: {n} tensors, {error} x the allowance"));
                }
            }
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let all: std::collections::BTreeSet<String> = host::supported_families().split(", ").map(str::to_string).collect();
    assert_eq!(families, all, "a family without a golden model");
}

/// Family, tensors compared, worst error over the allowance.
fn golden_folder(dir: &Path) -> Result<(String, usize, f32), Error> {
    let model = host::load(dir.to_str().unwrap(), &LoadOptions::default())?;
    assert!(model.info().unread_config.is_empty(), "{}: {:?}", dir.display(), model.info().unread_config);
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
    let mask = golden["mask"].to_dtype(DType::U8).unwrap();
    let keep = mask.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let input = Tokens { ids: golden["ids"].to_dtype(DType::U32).unwrap(), mask: Some(mask) };
    let mut capture = Capture::with_logits(&model.hook_points());
    let logits = model.forward(&input, &mut capture)?.unwrap();
    let (mut n, mut largest) = (0, worst(&logits, &golden["logits"], Some(&keep)));
    for (name, want) in &golden {
        let Some(path) = name.strip_prefix("out.") else { continue };
        let at = model.hook_point(path)?;
        assert_eq!(model.hf_path(&at).as_deref(), Some(path));
        let error = worst(capture.get(&at)?, want, Some(&keep));
        if error > 1.0 {
            println!("  {path} ({at}): {error:.1} x the allowance");
        }
        (n, largest) = (n + 1, largest.max(error));
    }
    Ok((model.info().family.to_string(), n, largest))
}

#[test]
fn golden_activations_of_a_trained_llama() {
    let Some(data) = shared_data() else { return skip("no shared data: stories260K") };
    let dir = data.join("stories260K");
    let model = host::load(dir.join("hf").to_str().unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!((model.info().n_params, model.info().bos_token_id), (260_032, Some(1)));
    let golden = candle_core::safetensors::load(dir.join("hf_golden.safetensors"), &Device::Cpu).unwrap();
    let (n, error) = compare_with_golden(&*model, &golden);
    println!("stories260K: {n} tensors, worst error {error:.3} x the allowance");
    assert_eq!(n, 27);
}

// ---------------------------------------------------------------------------------------------- a tiny model made here

/// A config and its tensors, to be changed by a test and then serialised.
struct Tiny {
    config: serde_json::Value,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

const LAYERS: usize = 2;

impl Tiny {
    fn new(family: &str) -> Self {
        let (config, shapes) = if family == "gpt2" { tiny_gpt2() } else { tiny_llama(2) };
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let mut rng = Rng::stream(5, &name, 0);
            let n: usize = shape.iter().product();
            // Large enough for every part to matter.
            let values = (0..n).map(|_| 0.2 * rng.normal() as f32 + if name.contains("ln_") || name.contains("norm") { 1.0 } else { 0.0 });
            let values = values.collect();
            (name, shape, values)
        });
        Self { config, tensors: tensors.collect() }
    }

    fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    fn file(&self) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = self.tensors.iter().map(|(_, _, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = self.tensors.iter().zip(&bytes).map(|((n, s, _), b)| (n.as_str(), TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn load_as(&self, options: &LoadOptions) -> lapidary::Result<Box<dyn HostModel>> {
        host::load_bytes("tiny", &self.config_bytes(), &self.file(), options)
    }

    fn load(&self) -> Box<dyn HostModel> {
        self.load_as(&LoadOptions::default()).unwrap()
    }

    /// The message of the error that loading must give.
    fn refusal(&self) -> String {
        match self.load_as(&LoadOptions::default()) {
            Ok(_) => panic!("loaded, though it should be refused"),
            Err(error) => error.to_string(),
        }
    }

    fn set(mut self, key: &str, value: serde_json::Value) -> Self {
        self.config[key] = value;
        self
    }
}

type Shapes = Vec<(String, Vec<usize>)>;

fn tiny_gpt2() -> (serde_json::Value, Shapes) {
    let config = json!({"model_type": "gpt2", "n_layer": LAYERS, "n_embd": 24, "n_head": 3, "n_positions": 96, "vocab_size": 40});
    let mut shapes: Shapes = vec![("wte.weight".into(), vec![40, 24]), ("wpe.weight".into(), vec![96, 24])];
    for l in 0..LAYERS {
        for (name, from, to) in [("attn.c_attn", 24, 72), ("attn.c_proj", 24, 24), ("mlp.c_fc", 24, 96), ("mlp.c_proj", 96, 24)] {
            shapes.push((format!("h.{l}.{name}.weight"), vec![from, to]));
            shapes.push((format!("h.{l}.{name}.bias"), vec![to]));
        }
        shapes.extend(["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"].map(|n| (format!("h.{l}.{n}"), vec![24])));
    }
    shapes.extend(["ln_f.weight", "ln_f.bias"].map(|n| (n.to_string(), vec![24])));
    (config, shapes)
}

fn tiny_llama(kv_heads: usize) -> (serde_json::Value, Shapes) {
    let config = json!({"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "intermediate_size": 40, "max_position_embeddings": 96, "vocab_size": 40,
        "tie_word_embeddings": false});
    let mut shapes: Shapes = vec![("model.embed_tokens.weight".into(), vec![40, 24]), ("lm_head.weight".into(), vec![40, 24])];
    for l in 0..LAYERS {
        let kv = 6 * kv_heads;
        for (name, to, from) in [
            ("self_attn.q_proj", 24, 24),
            ("self_attn.k_proj", kv, 24),
            ("self_attn.v_proj", kv, 24),
            ("self_attn.o_proj", 24, 24),
            ("mlp.gate_proj", 40, 24),
            ("mlp.up_proj", 40, 24),
            ("mlp.down_proj", 24, 40),
        ] {
            shapes.push((format!("model.layers.{l}.{name}.weight"), vec![to, from]));
        }
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|n| (format!("model.layers.{l}.{n}.weight"), vec![24])));
    }
    shapes.push(("model.norm.weight".into(), vec![24]));
    (config, shapes)
}

/// `b` rows of `t` token ids, from a stream of their own.
fn ids(b: usize, t: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::stream(9, "ids", 0);
    (0..b).map(|_| (0..t).map(|_| rng.below(40) as u32).collect()).collect()
}

fn batch(b: usize, t: usize) -> Tokens {
    Tokens::new(&ids(b, t), &Device::Cpu).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn all(model: &dyn HostModel, input: &Tokens) -> (Tensor, Capture) {
    let mut capture = Capture::with_logits(&model.hook_points());
    let logits = model.forward(input, &mut capture).unwrap().unwrap();
    (logits, capture)
}

const FAMILIES: [&str; 2] = ["gpt2", "llama"];

// ---------------------------------------------------------------------------------------------- taps

#[test]
fn every_hook_point_has_its_width_and_stops_the_pass_with_the_same_bits() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let (input, points) = (batch(2, 70), model.hook_points());
        assert_eq!(points.len(), 2 + 7 * LAYERS);
        assert!(points.windows(2).all(|p| p[0] < p[1]));
        let (logits, full) = all(&*model, &input);
        assert_eq!(logits.dims(), [2, 70, 40]);
        for at in points {
            assert_eq!(full.get(&at).unwrap().dims(), [2, 70, model.width(&at).unwrap()], "{at}");
            let mut alone = Capture::new(&[at]);
            assert!(model.forward(&input, &mut alone).unwrap().is_none());
            assert_eq!(bits(alone.get(&at).unwrap()), bits(full.get(&at).unwrap()), "{family} {at}");
        }
        assert!(full.get(&HookPoint::block(7, Site::ResidPost)).is_err());
    }
}

#[test]
fn splicing_the_identity_changes_no_bit_anywhere() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let input = batch(2, 20);
        let plain = model.forward(&input, &mut NoTap).unwrap().unwrap();
        for at in model.hook_points() {
            let spliced = model.forward(&input, &mut Splice::new(at, |x| Ok(x.clone()))).unwrap().unwrap();
            assert_eq!(bits(&spliced), bits(&plain), "{family} {at}");
            let changed = model.forward(&input, &mut Splice::new(at, |x| Ok(x.sqr()?))).unwrap().unwrap();
            assert!(max_diff(&changed, &plain) > 1e-4, "{family}: the replacement at {at} went unheard");
        }
        let narrow = model.forward(&input, &mut Splice::new(HookPoint::block(0, Site::ResidMid), |x| Ok(x.narrow(2, 0, 8)?)));
        assert!(narrow.unwrap_err().to_string().contains("blocks.0.hook_resid_mid has shape [2, 20, 8]"));
    }
}

#[test]
fn ablating_and_steering_do_what_their_arithmetic_says() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let input = batch(2, 12);
        let (_, plain) = all(&*model, &input);
        let at = |site| HookPoint::block(1, site);
        // Without its MLP the block hands on resid_mid.
        let (mut ablate, mut capture) = (Ablate::zero(at(Site::MlpOut)), Capture::with_logits(&model.hook_points()));
        model.forward(&input, &mut Pair(&mut ablate, &mut capture)).unwrap();
        assert_eq!(max_diff(capture.get(&at(Site::MlpOut)).unwrap(), &plain.get(&at(Site::MlpOut)).unwrap().zeros_like().unwrap()), 0.0);
        assert_eq!(max_diff(capture.get(&at(Site::ResidPost)).unwrap(), plain.get(&at(Site::ResidMid)).unwrap()), 0.0);
        // A vector added to the stream arrives at its end.
        let vector = Tensor::arange(0f32, 24f32, &Device::Cpu).unwrap();
        let mut steer = Steer { at: at(Site::ResidPost), vector: vector.clone(), scale: -0.5 };
        let mut capture = Capture::new(&[at(Site::ResidPost)]);
        model.forward(&input, &mut Pair(&mut steer, &mut capture)).unwrap();
        let want = plain.get(&at(Site::ResidPost)).unwrap().broadcast_add(&(&vector * -0.5).unwrap()).unwrap();
        assert!(max_diff(capture.get(&at(Site::ResidPost)).unwrap(), &want) < 1e-5);
        // A fixed vector as wide as the neurons; a wrong width is refused.
        let mean = plain.get(&at(Site::MlpPost)).unwrap().mean((0, 1)).unwrap();
        assert!(model.forward(&input, &mut Ablate::to(at(Site::MlpPost), mean.clone())).unwrap().is_some());
        assert!(matches!(model.forward(&input, &mut Ablate::to(at(Site::AttnZ), mean)), Err(Error::Width { .. })));
    }
}

#[test]
fn an_unknown_hook_point_lists_what_there_is() {
    let model = Tiny::new("llama").load();
    let at = HookPoint::block(2, Site::ResidPost);
    let message = model.width(&at).unwrap_err().to_string();
    assert!(
        message.contains("blocks.2.hook_resid_post") && message.contains("for L in 0..=1") && message.contains("hook_resid_mid"),
        "{message}"
    );
    assert!(matches!(model.forward(&batch(1, 3), &mut Capture::new(&[at])), Err(Error::UnknownHookPoint { .. })));
    for at in model.hook_points() {
        if let Some(path) = model.hf_path(&at) {
            assert_eq!(path.parse::<HookPoint>().unwrap(), at);
        }
    }
    assert_eq!(model.hf_path(&HookPoint::block(1, Site::AttnOut)).as_deref(), Some("model.layers.1.self_attn"));
}

// ---------------------------------------------------------------------------------------------- attention

#[test]
fn the_future_does_not_reach_the_past() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let mut rows = ids(2, 70);
        let (before, _) = all(&*model, &Tokens::new(&rows, &Device::Cpu).unwrap());
        rows[1][66] = (rows[1][66] + 1) % 40;
        let (after, _) = all(&*model, &Tokens::new(&rows, &Device::Cpu).unwrap());
        let part = |x: &Tensor, row: usize, from: usize, n: usize| bits(&x.narrow(0, row, 1).unwrap().narrow(1, from, n).unwrap());
        assert_eq!(part(&before, 0, 0, 70), part(&after, 0, 0, 70));
        assert_eq!(part(&before, 1, 0, 66), part(&after, 1, 0, 66));
        for at in 66..70 {
            assert_ne!(part(&before, 1, at, 1), part(&after, 1, at, 1), "position {at} should notice");
        }
    }
}

#[test]
fn padding_is_not_seen() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let row = ids(1, 30).remove(0);
        let (alone, _) = all(&*model, &Tokens::new(std::slice::from_ref(&row), &Device::Cpu).unwrap());
        // On the right: real positions keep their values, whatever the pads are.
        for pad in [0, 17] {
            let padded = Tokens::padded(&[row.clone(), ids(2, 66).remove(1)], pad, &Device::Cpu).unwrap();
            let (logits, _) = all(&*model, &padded);
            let same = logits.narrow(0, 0, 1).unwrap().narrow(1, 0, 30).unwrap();
            assert!(max_diff(&same, &alone) < 1e-4, "{family}: {}", max_diff(&same, &alone));
        }
        // On the left: the tokens that pads are do not matter, and all stays finite.
        let mask = Tensor::from_vec([vec![0u8; 8], vec![1; 30]].concat(), (1, 38), &Device::Cpu).unwrap();
        let left = |pad: u32| {
            let ids = Tensor::from_vec([vec![pad; 8], row.clone()].concat(), (1, 38), &Device::Cpu).unwrap();
            all(&*model, &Tokens { ids, mask: Some(mask.clone()) }).0
        };
        let (a, b) = (left(3), left(21));
        assert_eq!(bits(&a.narrow(1, 8, 30).unwrap()), bits(&b.narrow(1, 8, 30).unwrap()));
        assert!(bits(&a).into_iter().all(|b| f32::from_bits(b).is_finite()));
    }
}

#[test]
fn grouped_heads_are_full_heads_with_equal_keys_and_values() {
    let grouped = Tiny::new("llama");
    let mut full = Tiny::new("llama").set("num_key_value_heads", 4.into());
    for (name, shape, values) in &mut full.tensors {
        if name.contains("k_proj") || name.contains("v_proj") {
            // Two heads of 6 rows of 24: each twice.
            let head = |h: usize| values[h * 144..(h + 1) * 144].to_vec();
            *values = [head(0), head(0), head(1), head(1)].concat();
            shape[0] = 24;
        }
    }
    let input = batch(2, 40);
    let (a, b) = (all(&*grouped.load(), &input).0, all(&*full.load(), &input).0);
    assert!(max_diff(&a, &b) < 1e-5, "{}", max_diff(&a, &b));
}

#[test]
fn bf16_follows_f32_to_its_precision() {
    for family in FAMILIES {
        let tiny = Tiny::new(family);
        let options = LoadOptions { dtype: Some(DType::BF16), ..LoadOptions::default() };
        let model = tiny.load_as(&options).unwrap();
        assert_eq!(model.info().dtype, "bf16");
        let input = batch(2, 20);
        let ((a, _), (b, seen)) = (all(&*tiny.load(), &input), all(&*model, &input));
        let scale = bits(&a).into_iter().map(|b| f32::from_bits(b).abs()).fold(0.0, f32::max);
        let error = max_diff(&a, &b) / scale;
        assert!(error > 1e-4 && error < 0.05, "{family}: {error}");
        for at in model.hook_points() {
            let x = seen.get(&at).unwrap();
            assert_eq!(bits(x), bits(&x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()), "{family} {at} is not bf16");
        }
        let plain = model.forward(&input, &mut Splice::new(HookPoint::block(0, Site::ResidPost), |x| Ok(x.clone()))).unwrap().unwrap();
        assert_eq!(bits(&plain), bits(&b));
    }
    let options = LoadOptions { dtype: Some(DType::F16), ..LoadOptions::default() };
    assert!(Tiny::new("gpt2").load_as(&options).err().unwrap().to_string().contains("use f32 or bf16"));
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    for family in FAMILIES {
        let model = Tiny::new(family).load();
        let input = batch(5, 90);
        let with = |n: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| all(&*model, &input))
        };
        let ((a, seen_a), (b, seen_b)) = (with(1), with(3));
        assert_eq!(bits(&a), bits(&b));
        for at in model.hook_points() {
            assert_eq!(bits(seen_a.get(&at).unwrap()), bits(seen_b.get(&at).unwrap()), "{family} {at}");
        }
    }
}

// ---------------------------------------------------------------------------------------------- inputs that do not fit

#[test]
fn inputs_that_do_not_fit_are_refused_in_words() {
    let model = Tiny::new("gpt2").load();
    let run = |input: &Tokens| model.forward(input, &mut NoTap).unwrap_err().to_string();
    assert!(run(&batch(1, 97)).contains("a context of 97 tokens; tiny was made for 96"));
    assert!(run(&Tokens::new(&[vec![3, 40]], &Device::Cpu).unwrap()).contains("token id 40; tiny has a vocabulary of 40"));
    let mut wrong = batch(2, 3);
    wrong.mask = Some(Tensor::ones((2, 4), DType::U8, &Device::Cpu).unwrap());
    assert!(run(&wrong).contains("a mask of shape [2, 4]"));
    wrong.ids = wrong.ids.to_dtype(DType::I64).unwrap();
    assert!(run(&wrong).contains("as u32"));
    assert!(Tokens::new(&[vec![1, 2], vec![3]], &Device::Cpu).is_err());
    assert!(host::load("no/such/folder", &LoadOptions::default()).err().unwrap().to_string().contains("no model folder"));
}

#[test]
fn options_that_change_numbers_are_refused_and_named() {
    let scaling = json!({"rope_type": "proportional", "factor": 4.0});
    for (family, key, to, says) in [
        ("llama", "model_type", json!("mamba"), "gpt2, gpt_neox, llama"),
        ("llama", "rope_scaling", scaling, "default, linear, dynamic, llama3"),
        ("llama", "hidden_act", json!("xielu"), "silu"),
        ("llama", "sliding_window", json!(128), "sliding_window"),
        ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("llama", "final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("llama", "num_attention_heads", json!(5), "divide"),
        ("llama", "attention_bias", json!(true), "q_proj.bias"),
        ("llama", "tie_word_embeddings", json!(true), "differs from the token embedding"),
        ("llama", "num_hidden_layers", json!(1), "model.layers.1."),
        ("llama", "num_hidden_layers", json!(3), "model.layers.2."),
        ("llama", "num_hidden_layers", json!(4000), "4000 blocks"),
        ("llama", "hidden_size", json!(1u64 << 60), "hidden_size"),
        ("gpt2", "activation_function", json!("selu"), "gelu_new"),
        ("gpt2", "n_head", json!(7), "divide"),
        ("gpt2", "n_layer", json!(-2), "n_layer"),
        ("gpt2", "vocab_size", json!(41), "wte.weight` has shape [40, 24]"),
        ("gpt2", "quantization_config", json!({"bits": 4}), "quantization_config"),
    ] {
        let message = Tiny::new(family).set(key, to).refusal();
        assert!(message.contains(says), "{family} {key}: {message}");
    }
    // Neutral values, and options that are implemented.
    let same = |family: &str, key: &str, to: serde_json::Value| {
        let changed = all(&*Tiny::new(family).set(key, to).load(), &batch(1, 9)).0;
        bits(&changed) == bits(&all(&*Tiny::new(family).load(), &batch(1, 9)).0)
    };
    assert!(same("llama", "sliding_window", serde_json::Value::Null));
    assert!(same("llama", "rope_parameters", json!({"rope_type": "default", "rope_theta": 10000.0})));
    assert!(!same("llama", "rope_scaling", json!({"type": "linear", "factor": 2.0})));
    assert!(!same("llama", "rope_theta", json!(500.0)));
    assert!(!same("gpt2", "scale_attn_weights", json!(false)));
    assert!(!same("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)));
    assert!(!same("gpt2", "activation_function", json!("gelu")));
    let odd = Tiny::new("gpt2").set("my_own_note", json!(1)).load();
    assert_eq!(odd.info().unread_config, ["my_own_note"]);
}

#[test]
fn what_a_family_cannot_mean_is_refused_and_named() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hosts");
    for (folder, key, to, says) in [
        ("gemma2", "sliding_window", json!(null), "sliding attention"),
        ("gemma2-layers", "layer_types", json!(["full_attention"]), "1 layers of 3"),
        ("gemma3", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("gemma3", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("gemma3", "rope_parameters", json!({"rope_theta": 5.0}), "a table for full_attention"),
        ("gemma3-images", "text_config", json!(null), "describes the language model"),
        ("gemma", "hidden_activation", json!("silu_and_mul"), "silu"),
        ("qwen2-layers", "layer_types", json!(["chunked_attention", "full_attention", "full_attention"]), "chunked_attention"),
        ("qwen3", "sliding_window", json!("wide"), "not a positive whole number"),
        ("mistral-window", "layer_types", json!(["sliding_attention", "full_attention", "full_attention"]), "all layers"),
        ("phi3-long", "rope_parameters", json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "4 numbers"),
        ("phi3-window", "attention_bias", json!(true), "attention_bias"),
        ("olmo2", "clip_qkv", json!(8.0), "clip_qkv"),
        ("starcoder2", "norm_type", json!("rms_norm"), "norm_type"),
        ("gpt-neox-odd", "rope_theta", json!(77.0), "rope_theta"),
        ("gpt-neox-odd", "partial_rotary_factor", json!(0.3), "rotary_pct"),
        ("gpt-neox-odd", "use_parallel_residual", json!("yes"), "true or false"),
    ] {
        let dir = golden.join(folder);
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        config[key] = to;
        let weights = std::fs::read(dir.join("model.safetensors")).unwrap();
        let loaded = host::load_bytes(folder, &serde_json::to_vec(&config).unwrap(), &weights, &LoadOptions::default());
        let message = loaded.err().unwrap_or_else(|| panic!("{folder}: {key} was accepted")).to_string();
        assert!(message.contains(says), "{folder} {key}: {message}");
    }
}

#[test]
fn damaged_files_give_errors_that_name_them() {
    let tiny = Tiny::new("gpt2");
    let (config, file) = (tiny.config_bytes(), tiny.file());
    let load = |config: &[u8], bytes: &[u8]| match host::load_bytes("tiny", config, bytes, &LoadOptions::default()) {
        Ok(_) => panic!("loaded, though the file is damaged"),
        Err(error) => error.to_string(),
    };
    // Cut anywhere.
    for n in [0, 7, 8, 100, file.len() / 2, file.len() - 1] {
        assert!(load(&config, &file[..n]).contains("not a readable safetensors file"), "cut at {n}");
    }
    // A header that lies: about its length, a shape, an offset; not JSON; not UTF-8.
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(file[8..8 + header].to_vec()).unwrap();
    let with_header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &file[8 + header..]].concat();
    for length in [u64::MAX, u64::MAX - 8, 1 << 62, file.len() as u64, 1 << 26] {
        assert!(load(&config, &[&length.to_le_bytes(), &file[8..]].concat()).contains("not a readable safetensors file"), "{length}");
    }
    for (from, to) in [
        ("[40,24]", "[40,9223372036854775807]"),
        ("[40,24]", "[41,24]"),
        ("\"data_offsets\":[0,", "\"data_offsets\":[4,"),
        ("\"data_offsets\":[0,", "\"data_offsets\":[18446744073709551615,"),
        ("F32", "F99"),
        ("{", "["),
    ] {
        let lie = text.replacen(from, to, 1);
        assert_ne!(lie, text);
        assert!(load(&config, &with_header(&lie)).contains("not a readable safetensors file"), "{from} -> {to}");
    }
    let mut rng = Rng::stream(0, "damage", 0);
    for _ in 0..300 {
        let mut bytes = file[..2000.min(file.len())].to_vec();
        for _ in 0..3 {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        load(&config, &bytes); // any error, no panic
    }
    // Missing and misshapen tensors.
    let mut less = Tiny::new("gpt2");
    less.tensors.retain(|(name, ..)| name != "h.1.mlp.c_fc.bias");
    assert!(less.refusal().contains("`h.1.mlp.c_fc.bias` [96] is missing"));
    let mut wrong = Tiny::new("gpt2");
    wrong.tensors[2].1.reverse();
    assert!(wrong.refusal().contains("has shape"), "{}", wrong.refusal());
    // Configs that are none.
    for config in ["", "[]", "{\"model_type\": 3}", "{\"model_type\": \"gpt2\"}", "{}", "{\"model_type\": \"gpt2\", \"n_embd\": 0}"] {
        load(config.as_bytes(), &file);
    }
}

// ---------------------------------------------------------------------------------------------- folders

fn write(path: PathBuf, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// Writes the model in two shards with an index.
fn write_shards(tiny: Tiny, dir: &Path) {
    let mut map = serde_json::Map::new();
    let (config, mut tensors) = (tiny.config.clone(), tiny.tensors);
    let second = tensors.split_off(9);
    for (file, tensors) in [("model-00001-of-00002.safetensors", tensors), ("model-00002-of-00002.safetensors", second)] {
        map.extend(tensors.iter().map(|(name, ..)| (name.clone(), file.into())));
        write(dir.join(file), &Tiny { config: config.clone(), tensors }.file());
    }
    write(dir.join("config.json"), &serde_json::to_vec(&config).unwrap());
    write(dir.join("model.safetensors.index.json"), &serde_json::to_vec(&json!({ "weight_map": map })).unwrap());
}

#[test]
fn shards_and_prefixes_read_as_the_single_file_does() {
    for family in FAMILIES {
        let (input, tiny) = (batch(1, 9), Tiny::new(family));
        let plain = all(&*tiny.load(), &input).0;
        let dir = tempfile::tempdir().unwrap();
        write_shards(Tiny::new(family), dir.path());
        let sharded = host::load(dir.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
        assert_eq!(bits(&all(&*sharded, &input).0), bits(&plain));
        assert_eq!(sharded.info().weights_sha256.len(), 64);
        assert_eq!(sharded.info().name, dir.path().file_name().unwrap().to_str().unwrap());
        let text = serde_json::to_string(sharded.info()).unwrap();
        assert_eq!(&serde_json::from_str::<host::HostInfo>(&text).unwrap(), sharded.info());
        // With or without the base model's prefix.
        let mut other = Tiny::new(family);
        for (name, ..) in &mut other.tensors {
            *name = if family == "gpt2" { format!("transformer.{name}") } else { name.trim_start_matches("model.").to_string() };
        }
        assert_eq!(bits(&all(&*other.load(), &input).0), bits(&plain));
    }
}

#[test]
fn folders_with_something_missing_say_what() {
    let dir = tempfile::tempdir().unwrap();
    let load = || host::load(dir.path().to_str().unwrap(), &LoadOptions::default()).err().unwrap().to_string();
    assert!(load().contains("config.json"));
    write_shards(Tiny::new("gpt2"), dir.path());
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(load().contains("model-00002-of-00002.safetensors"));
    let index = dir.path().join("model.safetensors.index.json");
    write(index.clone(), br#"{"weight_map": {"wte.weight": "../model-00001-of-00002.safetensors"}}"#);
    assert!(load().contains("not a plain file name"));
    write(index.clone(), br#"{"weight_map": {"nowhere": "model-00001-of-00002.safetensors"}}"#);
    assert!(load().contains("which does not hold it"));
    std::fs::remove_file(index).unwrap();
    assert!(load().contains("no model.safetensors"));
}
