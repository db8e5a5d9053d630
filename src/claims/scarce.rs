//! 1c, 1c': PAM-SGD on few rows (Budd et al., arXiv 2505.11836), MNIST. Beside it untied SGD for as many epochs and for as much wall-clock
//! time, and SGD with a tied decoder, which is what the paper compares with.

use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

use super::images::{shrunk, standardised, Mnist};
use super::lab::{Lab, Toy};
use super::picture::{self, Axes, Curve};
use super::report::{Row, Table};
use super::rows::{Set, Shuffled};
use super::Outcome;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{encode_topk, Coder};
use crate::rng::Rng;
use crate::sae::{self, SaeConfig, TopKConfig};
use crate::train::{scale_for, PamConfig, RowSource, Schedule, TrainConfig};

/// Weights of a seed in the progress.
pub const WEIGHT_FEW: u64 = 60;
pub const WEIGHT_FEWER: u64 = 10;

/// In one line.
pub const FEW: &str = "test MSE: PAM-SGD below untied SGD at 600 to 6,000 rows and 10 epochs";
pub const FEWER: &str = "with 130 rows and 128 latents PAM-SGD hinges on the ridge";

const TEST_ROWS: usize = 2000;
const TIED: &str = "SGD tied (reference trainer)";
const AUTHORS: &str = "SGD untied, released start";
const UNTIED: &str = "SGD untied";
const EQUAL_TIME: &str = "SGD untied, equal time";
const CHOSEN: &str = "PAM, ridge chosen";
const CHOSEN_ONCE: &str = "PAM, ridge chosen, 1 epoch";
const UNTIED_ONCE: &str = "SGD untied, 1 epoch";

fn pam(ridge: f64) -> String {
    format!("PAM, ridge {ridge}")
}

/// How a reference trainer starts, and what of it is tied.
#[derive(Clone, Copy)]
enum Start {
    /// `W_dec = W_enc^T` throughout, from the learners' own start.
    Tied,
    /// Two matrices, from the released code's start: encoder 0.1 N(0, 1), decoder 0.01 N(0, 1), biases 0.
    Authors,
}

/// One small data set with what is trained on it.
struct Bench<'a> {
    lab: &'a Lab<'a>,
    train: &'a Set,
    test: &'a Set,
    seed: u64,
    learner: SaeConfig,
    batch: usize,
    metric: &'static str,
}

impl Bench<'_> {
    fn toy(&self, epochs: f64) -> Toy {
        let steps = ((epochs * self.train.len() as f64) / self.batch as f64).ceil().max(1.0) as u64;
        Toy { steps, batch: self.batch, warmup: steps / 20, init_rows: self.train.len(), ..Toy::default() }
    }

    fn measure(&self, dictionary: Dictionary) -> Result<f64> {
        Ok(self.lab.metric(self.metric, &[dictionary], &self.test.batch())?[0])
    }

    /// Test figure and seconds of `train`, with PAM or without.
    fn run(&self, epochs: f64, pam: Option<PamConfig>) -> Result<(f64, f64)> {
        let mut source = Shuffled::new(self.train, self.seed)?;
        let set = |config: &mut TrainConfig| config.pam = pam.clone();
        let (mut trained, seconds) =
            self.lab.train_with(&mut source, self.seed, &self.toy(epochs), std::slice::from_ref(&self.learner), &set)?;
        Ok((self.measure(trained.remove(0))?, seconds))
    }

    /// TopK by dense autograd, decoder rows free: same rows, schedule, rate and clipping. Not a learner of the toolkit.
    fn reference(&self, epochs: f64, start: Start) -> Result<f64> {
        let toy = self.toy(epochs);
        let d = self.train.d;
        let mut source = Shuffled::new(self.train, self.seed)?;
        let scale = scale_for(source.mean_sq_norm()?, d)?;
        let steps = self.lab.steps(toy.steps);
        let n_tokens = steps * toy.batch as u64;
        let SaeConfig::TopK(config) = self.learner.resolve(d, n_tokens)? else { unreachable!("the bench trains TopK") };
        let next = |source: &mut Shuffled<'_>, n: usize| -> Result<Tensor> {
            let x: Vec<f32> = source.next_rows(n)?.x.iter().map(|v| v * scale as f32).collect();
            Ok(Tensor::from_vec(x, (n, d), &candle_core::Device::Cpu)?)
        };
        let rows = next(&mut source, self.train.len())?;
        source.seek(&Default::default())?;
        let (w_enc, w_dec, b_dec) = match start {
            Start::Tied => {
                // The learners' own start; the gain goes half to each side.
                let learner = sae::build(&SaeConfig::TopK(config.clone()), &rows, self.seed)?;
                let coder = learner.coder();
                let gain = coder.w_enc.sqr()?.sum_all()?.to_scalar::<f32>()? / coder.w_dec.sqr()?.sum_all()?.to_scalar::<f32>()?;
                (Var::from_tensor(&(&coder.w_dec * f64::from(gain).sqrt().sqrt())?)?, None, Var::from_tensor(&coder.b_dec)?)
            }
            Start::Authors => {
                let mut rng = Rng::stream(self.seed, "claims.start", 0);
                let mut normal = |std: f64| -> Result<Var> {
                    let values: Vec<f32> = (0..config.d_sae * d).map(|_| (std * rng.normal()) as f32).collect();
                    Ok(Var::from_vec(values, (config.d_sae, d), &candle_core::Device::Cpu)?)
                };
                let (w_enc, w_dec) = (normal(0.1)?, normal(0.01)?);
                (w_enc, Some(w_dec), Var::zeros(d, candle_core::DType::F32, &candle_core::Device::Cpu)?)
            }
        };
        let b_enc = Var::zeros(config.d_sae, candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let decoder = w_dec.as_ref().unwrap_or(&w_enc);
        let train = TrainConfig {
            n_tokens,
            batch: toy.batch,
            lr: toy.lr,
            warmup_fraction: toy.warmup as f64 / toy.steps as f64,
            ..TrainConfig::default()
        }
        .resolve(config.d_sae, n_tokens)?;
        let schedule = Schedule::new(&train);
        let mut vars = vec![w_enc.clone(), b_enc.clone(), b_dec.clone()];
        vars.extend(w_dec.clone());
        let mut adam = AdamW::new(vars.clone(), ParamsAdamW { lr: 0.0, weight_decay: 0.0, ..Default::default() })?;
        for step in 1..=steps {
            let x = next(&mut source, toy.batch)?;
            let xc = x.broadcast_sub(&b_dec)?;
            // Which latents fire carries no gradient; what they are worth does.
            let chosen = encode_topk(&xc.detach(), &w_enc.as_detached_tensor(), &b_enc.as_detached_tensor(), config.k, None)?;
            let mask = chosen.to_codes(config.d_sae)?.to_dense()?.gt(0f64)?.to_dtype(x.dtype())?;
            let z = (xc.matmul(&w_enc.t()?)?.broadcast_add(&b_enc)? * mask)?;
            let loss = (z.matmul(decoder)?.broadcast_add(&b_dec)? - &x)?.sqr()?.mean_all()?;
            let mut grads = loss.backward()?;
            let mut norm = 0f64;
            for var in &vars {
                if let Some(g) = grads.get(var) {
                    norm += f64::from(g.sqr()?.sum_all()?.to_scalar::<f32>()?);
                }
            }
            let norm = norm.sqrt();
            if train.clip_norm > 0.0 && norm > train.clip_norm {
                for var in &vars {
                    if let Some(g) = grads.remove(var) {
                        grads.insert(var, (g * (train.clip_norm / norm))?);
                    }
                }
            }
            adam.set_learning_rate(schedule.lr(step));
            adam.step(&grads)?;
        }
        let coder = Coder {
            w_enc: w_enc.as_detached_tensor(),
            b_enc: (b_enc.as_detached_tensor() / scale)?,
            w_dec: decoder.as_detached_tensor(),
            b_dec: (b_dec.as_detached_tensor() / scale)?,
        };
        self.measure(Dictionary::new(coder, Activation::TopK { k: config.k }, true, Provenance::default())?)
    }
}

/// A ridge, or 0 for one chosen on validation rows.
fn ridge(ridge: f64) -> Option<PamConfig> {
    Some(PamConfig { ridge, ..PamConfig::default() })
}

const SIZES: [usize; 3] = [600, 3000, 6000];
const EPOCHS: f64 = 10.0;
/// The ridge of the source's table.
const RIDGE: f64 = 10.0;

/// 1c: few rows, fewer latents than dimensions.
pub fn few(lab: &Lab<'_>, mnist: &Mnist) -> Result<Outcome> {
    let title = format!(
        "MNIST, 784 wide, (x - 0.1307) / 0.3081; 256 latents, k 15, {EPOCHS} epochs of batches of 128 at lr 3e-3: MSE per pixel of {TEST_ROWS} \
         test rows, by training rows"
    );
    let mut table = Table::new(&["1c"], title);
    let (train, test) = (standardised(&mnist.train), standardised(&mnist.test));
    for &seed in lab.seeds {
        let test = test.split(TEST_ROWS, seed).0;
        for n in SIZES {
            lab.status(&format!("1c: seed {seed}, {n} rows"));
            let train = train.split(n, seed).0;
            let learner = SaeConfig::TopK(TopKConfig { d_sae: 256, k: 15, ..Default::default() });
            let bench = Bench { lab, train: &train, test: &test, seed, learner, batch: 128, metric: "mse" };
            let column = n.to_string();
            let (untied, sgd_seconds) = bench.run(EPOCHS, None)?;
            let (fixed, _) = bench.run(EPOCHS, ridge(RIDGE))?;
            let (chosen, pam_seconds) = bench.run(EPOCHS, ridge(0.0))?;
            let more = (EPOCHS * pam_seconds / sgd_seconds.max(1e-9)).max(EPOCHS);
            let (equal, _) = bench.run(more, None)?;
            table.add(&pam(RIDGE), &column, fixed);
            table.add(CHOSEN, &column, chosen);
            table.add(UNTIED, &column, untied);
            table.add(EQUAL_TIME, &column, equal);
            table.add(CHOSEN_ONCE, &column, bench.run(1.0, ridge(0.0))?.0);
            table.add(UNTIED_ONCE, &column, bench.run(1.0, None)?.0);
            table.add(TIED, &column, bench.reference(EPOCHS, Start::Tied)?);
            table.add(AUTHORS, &column, bench.reference(EPOCHS, Start::Authors)?);
            table.add("epochs of SGD in the time of PAM, ridge chosen", &column, more);
        }
        lab.finished(&format!("1c: seed {seed}"), WEIGHT_FEW);
    }
    let cell = |name: &str, n: usize, s: usize| table.get(name, &n.to_string()).values.get(s).copied().unwrap_or(f64::NAN);
    let each = |f: &dyn Fn(usize) -> bool| (0..lab.seeds.len()).map(f).collect::<Vec<bool>>();
    let against =
        |a: &str, b: &str| SIZES.map(|n| format!("{} / {} @{n}", table.get(a, &n.to_string()), table.get(b, &n.to_string()))).join(", ");
    let mut rows = Vec::new();
    let fixed = pam(RIDGE);
    for (a, b, condition) in [
        (fixed.as_str(), UNTIED, "equal epochs, which favour PAM"),
        (CHOSEN, UNTIED, "equal epochs, which favour PAM"),
        (CHOSEN, EQUAL_TIME, "equal wall-clock time on this machine: varies from run to run"),
        (fixed.as_str(), AUTHORS, "SGD from the released code's start (encoder .1 N, decoder .01 N) instead of our tied start"),
        (CHOSEN, AUTHORS, "SGD from the released code's start (encoder .1 N, decoder .01 N) instead of our tied start"),
        (CHOSEN_ONCE, UNTIED_ONCE, "a single epoch, our tied start"),
        (CHOSEN, TIED, "equal epochs"),
        (UNTIED, TIED, "equal epochs"),
    ] {
        let held = each(&|s| SIZES.iter().all(|&n| cell(a, n, s) < cell(b, n, s)));
        let assertion = format!("test MSE: {a} below {b} at each size");
        rows.push(Row::judged("1c", &assertion, "smaller at 600, 3,000 and 6,000 rows", against(a, b), &held, condition));
    }
    for (other, condition) in [(UNTIED, "our tied start"), (AUTHORS, "SGD from the released code's start")] {
        let gap = |n: usize, s: usize| cell(other, n, s) - cell(&fixed, n, s);
        let held = each(&|s| gap(SIZES[2], s) > 0.0 && SIZES.windows(2).all(|w| gap(w[1], s) < gap(w[0], s)));
        let expected = "MSE of SGD less that of PAM above 0, and falling";
        rows.push(Row::judged("1c", "the gap to untied SGD shrinks with N", expected, against(&fixed, other), &held, condition));
    }
    let curves: Vec<Curve<'_>> =
        [fixed.as_str(), CHOSEN, UNTIED, EQUAL_TIME, TIED, AUTHORS].map(|name| Curve::of(&table, name, &SIZES)).into();
    let axes = Axes { x: "training rows", y: "test MSE per pixel (standardised)", log_above: 4.0 };
    let subtitle = "MNIST, 256 latents, k 15, 10 epochs; a point per seed, lines through the means";
    let picture = picture::figure("1c: PAM-SGD on few rows", subtitle, &axes, &curves, true);
    Ok(Outcome { rows, tables: vec![table], figures: vec![("1c-few-rows".into(), picture)] })
}

const FEWER_ROWS: usize = 130;
const FEWER_EPOCHS: [usize; 2] = [10, 50];
const RIDGES: [f64; 3] = [0.01, 1.0, 30.0];

/// 1c': as many rows as latents, more latents than dimensions.
pub fn fewer(lab: &Lab<'_>, mnist: &Mnist) -> Result<Outcome> {
    let title = format!(
        "MNIST averaged to 8 x 8, centred, of unit global standard deviation; {FEWER_ROWS} rows, 128 latents, k 8, batches of 64 at lr 3e-3: FVU \
         of {TEST_ROWS} test rows, by epochs"
    );
    let mut table = Table::new(&["1c'"], title);
    let (train, test) = (shrunk(&mnist.train), shrunk(&mnist.test));
    for &seed in lab.seeds {
        lab.status(&format!("1c': seed {seed}"));
        let (train, test) = unit(&train.split(FEWER_ROWS, seed).0, &test.split(TEST_ROWS, seed).0);
        let learner = SaeConfig::TopK(TopKConfig { d_sae: 128, k: 8, ..Default::default() });
        let bench = Bench { lab, train: &train, test: &test, seed, learner, batch: 64, metric: "fvu" };
        for epochs in FEWER_EPOCHS {
            let column = epochs.to_string();
            let epochs = epochs as f64;
            for r in RIDGES {
                table.add(&pam(r), &column, bench.run(epochs, ridge(r))?.0);
            }
            table.add(CHOSEN, &column, bench.run(epochs, ridge(0.0))?.0);
            table.add(UNTIED, &column, bench.run(epochs, None)?.0);
            table.add(TIED, &column, bench.reference(epochs, Start::Tied)?);
        }
        lab.finished(&format!("1c': seed {seed}"), WEIGHT_FEWER);
    }
    let cell = |name: &str, epochs: &str, s: usize| table.get(name, epochs).values.get(s).copied().unwrap_or(f64::NAN);
    let mut rows = Vec::new();
    let mut push = |a: &str, b: &str, epochs: &str, assertion: String, expected: &str, holds: &dyn Fn(f64, f64) -> bool| {
        let held: Vec<bool> = (0..lab.seeds.len()).map(|s| holds(cell(a, epochs, s), cell(b, epochs, s))).collect();
        let measured = format!("{} and {}", table.get(a, epochs), table.get(b, epochs));
        rows.push(Row::judged("1c'", &assertion, expected, measured, &held, &format!("{FEWER_ROWS} rows, {epochs} epochs")));
    };
    let least = pam(RIDGES[0]);
    let most = pam(RIDGES[2]);
    push(&least, UNTIED, "10", format!("test FVU: {least} loses to untied SGD"), "above", &|a, b| a > b);
    push(&most, UNTIED, "10", format!("test FVU: {most} beats untied SGD"), "below", &|a, b| a < b);
    push(CHOSEN, UNTIED, "10", format!("test FVU: {CHOSEN}, beats untied SGD"), "below", &|a, b| a < b);
    push(&most, UNTIED, "50", format!("test FVU: {most} ties untied SGD"), "within 10 %", &|a, b| (a / b - 1.0).abs() <= 0.1);
    push(&most, TIED, "50", format!("test FVU: {most} loses to tied SGD"), "above", &|a, b| a > b);
    Ok(Outcome { rows, tables: vec![table], figures: Vec::new() })
}

/// Both minus the mean of the training rows, over the standard deviation of all its values.
fn unit(train: &Set, test: &Set) -> (Set, Set) {
    let d = train.d;
    let mut mean = vec![0f64; d];
    for row in train.x.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / train.len() as f64);
    }
    let gap = |i: usize, v: f32| f64::from(v) - mean[i % d];
    let variance = train.x.iter().enumerate().map(|(i, v)| gap(i, *v).powi(2)).sum::<f64>() / train.x.len() as f64;
    let std = variance.sqrt().max(f64::MIN_POSITIVE);
    let of = |set: &Set| Set { x: set.x.iter().enumerate().map(|(i, v)| (gap(i, *v) / std) as f32).collect(), d };
    (of(train), of(test))
}
