//! How much of the host's ability to predict survives when the reconstruction stands in for the activation.
//!
//! The activation at the hook point is replaced (by the reconstruction, by zero, by a mean) at *unmasked* positions only: those whose
//! rows a harvest writes. A masked position (special token, attention sink) keeps its activation, because the dictionary never saw
//! its like. Every figure comes twice: over the unmasked positions, and with the suffix `_all` over the masked ones too.
//!
//! A position counts when it and the next one are real tokens: its cross-entropy is that of the next token, and its KL divergence
//! is taken over the same positions. Batches are padded on the right. Not for: choosing documents (pass held-out ones).

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Definition, Metrics};
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::{HostModel, NoTap, Splice, Tokens};
use crate::progress::Progress;

macro_rules! twice {
    ($($id:literal, $unit:literal, $formula:literal, $whose:literal;)*) => {
        &[
            $(Definition { id: $id, unit: $unit, formula: $formula, whose: $whose },)*
            $(Definition {
                id: concat!($id, "_all"),
                unit: $unit,
                formula: concat!("`", $id, "` with the masked positions counted (they are never replaced)"),
                whose: $whose,
            },)*
        ]
    };
}

/// What is computed here. `ce_mean` and its score only when a mean is given.
pub const DEFINITIONS: &[Definition] = twice! {
    "ce_clean", "nats/token", "mean over positions of -log p(next token) of the untouched host", "common";
    "ce_spliced", "nats/token", "the same with xhat in place of x at unmasked positions", "common";
    "ce_zero", "nats/token", "the same with 0 in place of x at unmasked positions", "common";
    "ce_mean", "nats/token", "the same with the mean activation in place of x at unmasked positions", "Lapidary";
    "ce_loss_score", "ratio", "(ce_zero - ce_spliced) / (ce_zero - ce_clean)", "SAELens, SAEBench; dictionary_learning (`frac_recovered`)";
    "ce_loss_score_mean", "ratio", "(ce_mean - ce_spliced) / (ce_mean - ce_clean)", "Lapidary; not comparable with ce_loss_score";
    "kl_spliced", "nats/token", "mean over positions of KL(untouched || spliced) of the next-token distributions", "common";
    "kl_zero", "nats/token", "mean over positions of KL(untouched || zero-ablated)", "common";
    "kl_score", "ratio", "(kl_zero - kl_spliced) / kl_zero", "SAELens, SAEBench (`kl_div_score`)";
    "ce_positions", "tokens", "number of positions counted", "Lapidary";
};

/// A batch of contexts.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// Token ids `[b, t]` and which are real, padded on the right.
    pub tokens: Tokens,
    /// `[b, t]`, u8: 1 = the row at this position is one that a harvest writes, so it is replaced.
    pub unmasked: Tensor,
}

/// Sums over positions: unmasked ones, and all.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    unmasked: f64,
    all: f64,
}

impl Sums {
    fn add(&mut self, values: &[f64], positions: &[Position]) {
        for (v, p) in values.iter().zip(positions) {
            self.all += v;
            if p.unmasked {
                self.unmasked += v;
            }
        }
    }
}

/// A position that counts.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// Row of the flattened logits, `[b * t, vocab]`.
    row: usize,
    /// The next token.
    target: usize,
    unmasked: bool,
}

/// Cross-entropy and KL sums of one way to replace.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    ce: Sums,
    kl: Sums,
}

/// Cross-entropy and KL recovered by a dictionary at `at`. `mean`, `[d_in]`, adds the figures of mean ablation.
///
/// # Errors
/// A stream that fails or holds no position that counts, a dictionary of another width, logits that are NaN or infinite.
pub fn loss_recovered(
    host: &dyn HostModel,
    at: &HookPoint,
    dictionary: &Dictionary,
    batches: impl IntoIterator<Item = Result<TokenBatch>>,
    mean: Option<&[f32]>,
    progress: &dyn Progress,
) -> Result<Metrics> {
    let mut all = loss_recovered_all(host, at, &[dictionary], batches, mean, progress)?;
    Ok(all.pop().expect("one dictionary gives one result"))
}

/// The same for several dictionaries at one hook point: the untouched and the ablated passes are run once.
///
/// # Errors
/// As [`loss_recovered`].
pub fn loss_recovered_all(
    host: &dyn HostModel,
    at: &HookPoint,
    dictionaries: &[&Dictionary],
    batches: impl IntoIterator<Item = Result<TokenBatch>>,
    mean: Option<&[f32]>,
    progress: &dyn Progress,
) -> Result<Vec<Metrics>> {
    let width = host.width(at)?;
    let widths = dictionaries.iter().flat_map(|d| [("the dictionary's input", d.d_in()), ("the dictionary's output", d.d_out())]);
    for (what, got) in widths.chain(mean.map(|m| ("the mean", m.len()))) {
        if got != width {
            let help = format!("{at} of this host is {width} wide: use the host and hook point that the dictionary was trained on");
            return Err(Error::Width { what: what.into(), expected: width, got, help });
        }
    }
    let (mut clean, mut zero, mut mean_ablated) = (Losses::default(), Losses::default(), Losses::default());
    let mut spliced = vec![Losses::default(); dictionaries.len()];
    let mut counted = Sums::default();
    progress.begin("loss recovered", None, "tokens");
    for batch in batches {
        if progress.is_cancelled() {
            return Err(Error::Cancelled { doing: "scoring" });
        }
        let batch = batch?;
        let (positions, unmasked) = positions(&batch)?;
        if positions.is_empty() {
            continue;
        }
        counted.add(&vec![1.0; positions.len()], &positions);
        let before = Logits::of(host.forward(&batch.tokens, &mut NoTap)?, &positions)?;
        clean.ce.add(&before.cross_entropies(&positions)?, &positions);
        let run = |losses: &mut Losses, new_rows: &mut dyn FnMut(&Tensor) -> Result<Tensor>| -> Result<()> {
            let mut tap = Splice::new(*at, |x: &Tensor| replace(x, &unmasked, &mut *new_rows));
            let after = Logits::of(host.forward(&batch.tokens, &mut tap)?, &positions)?;
            losses.ce.add(&after.cross_entropies(&positions)?, &positions);
            losses.kl.add(&before.divergences(&after, &positions)?, &positions);
            Ok(())
        };
        run(&mut zero, &mut |rows| Ok(rows.zeros_like()?))?;
        if let Some(mean) = mean {
            run(&mut mean_ablated, &mut |rows| {
                Ok(Tensor::from_slice(mean, width, rows.device())?.broadcast_as(rows.shape())?.contiguous()?)
            })?;
        }
        for (dictionary, losses) in dictionaries.iter().zip(&mut spliced) {
            run(losses, &mut |rows| Ok(dictionary.reconstruct(&rows.to_device(dictionary.device())?)?.1.to_device(rows.device())?))?;
        }
        progress.advance(positions.len() as u64);
    }
    progress.end();
    if counted.unmasked == 0.0 {
        return Err(Error::request(
            "no position of these contexts counts: each is masked or has no next token",
            "pass contexts of at least two tokens, with unmasked ones among them",
        ));
    }
    Ok(spliced.iter().map(|s| figures(&counted, &clean, s, &zero, mean.map(|_| &mean_ablated))).collect())
}

/// The figures in the order of [`DEFINITIONS`].
fn figures(counted: &Sums, clean: &Losses, spliced: &Losses, zero: &Losses, mean: Option<&Losses>) -> Metrics {
    let mut metrics = Metrics::default();
    type View = (&'static str, fn(&Sums) -> f64);
    let views: [View; 2] = [("", |s| s.unmasked), ("_all", |s| s.all)];
    for (suffix, pick) in views {
        let n = pick(counted);
        let per_token = |s: &Sums| pick(s) / n;
        let mut put = |id: &str, value: f64| metrics.insert(format!("{id}{suffix}"), value);
        let (ce_clean, ce_spliced, ce_zero) = (per_token(&clean.ce), per_token(&spliced.ce), per_token(&zero.ce));
        let (kl_spliced, kl_zero) = (per_token(&spliced.kl), per_token(&zero.kl));
        put("ce_clean", ce_clean);
        put("ce_spliced", ce_spliced);
        put("ce_zero", ce_zero);
        if let Some(mean) = mean {
            put("ce_mean", per_token(&mean.ce));
        }
        put("ce_loss_score", (ce_zero - ce_spliced) / (ce_zero - ce_clean));
        if let Some(mean) = mean {
            put("ce_loss_score_mean", (per_token(&mean.ce) - ce_spliced) / (per_token(&mean.ce) - ce_clean));
        }
        put("kl_spliced", kl_spliced);
        put("kl_zero", kl_zero);
        put("kl_score", (kl_zero - kl_spliced) / kl_zero);
        put("ce_positions", n);
    }
    metrics
}

/// The positions that count, and all rows that are replaced (flattened `[b * t]`; the last position of a context is among these).
fn positions(batch: &TokenBatch) -> Result<(Vec<Position>, Vec<u32>)> {
    let (b, t) = batch.tokens.ids.dims2()?;
    if batch.unmasked.dims() != [b, t] || batch.tokens.mask.as_ref().is_some_and(|m| m.dims() != [b, t]) {
        return Err(Error::request(
            format!("masks of another shape than the token ids, [{b}, {t}]"),
            "pass one entry of `unmasked` and of `mask` for each token",
        ));
    }
    let cpu = |t: &Tensor, dtype| -> Result<Tensor> { Ok(t.to_device(&Device::Cpu)?.to_dtype(dtype)?.flatten_all()?) };
    let ids: Vec<u32> = cpu(&batch.tokens.ids, DType::U32)?.to_vec1()?;
    let unmasked: Vec<u8> = cpu(&batch.unmasked, DType::U8)?.to_vec1()?;
    let real: Vec<u8> = match &batch.tokens.mask {
        Some(mask) => cpu(mask, DType::U8)?.to_vec1()?,
        None => vec![1; b * t],
    };
    let counts = |&row: &usize| row % t + 1 < t && real[row] != 0 && real[row + 1] != 0;
    let positions =
        (0..b * t).filter(counts).map(|row| Position { row, target: ids[row + 1] as usize, unmasked: unmasked[row] != 0 }).collect();
    let replaced = (0..b * t).filter(|&row| real[row] != 0 && unmasked[row] != 0).map(|row| row as u32).collect();
    Ok((positions, replaced))
}

/// `x` `[b, t, d]` with the rows `at` (of `[b * t, d]`) replaced by what `new_rows` makes of them.
fn replace(x: &Tensor, at: &[u32], new_rows: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (b, t, d) = x.dims3()?;
    if at.is_empty() {
        return Ok(x.clone());
    }
    let flat = x.reshape((b * t, d))?;
    let rows = flat.index_select(&Tensor::from_slice(at, at.len(), x.device())?, 0)?;
    let new: Vec<f32> = new_rows(&rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut out: Vec<f32> = flat.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    for (&row, new) in at.iter().zip(new.chunks_exact(d)) {
        out[row as usize * d..][..d].copy_from_slice(new);
    }
    Ok(Tensor::from_vec(out, (b, t, d), x.device())?.to_dtype(x.dtype())?)
}

/// Logits of a pass with the log of each counted row's normaliser, in f64.
struct Logits {
    values: Vec<f32>,
    vocab: usize,
    log_normaliser: Vec<f64>,
}

impl Logits {
    fn of(logits: Option<Tensor>, positions: &[Position]) -> Result<Self> {
        let logits = logits.ok_or_else(|| Error::request("the host gave no logits", "use a host that has a language-model head"))?;
        let vocab = logits.dim(candle_core::D::Minus1)?;
        let values: Vec<f32> = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let log_normaliser = positions
            .par_iter()
            .map(|p| {
                let row = &values[p.row * vocab..][..vocab];
                let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                max + row.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
            })
            .collect();
        Ok(Self { values, vocab, log_normaliser })
    }

    fn row(&self, p: &Position) -> &[f32] {
        &self.values[p.row * self.vocab..][..self.vocab]
    }

    /// -log p(next token) at each position.
    fn cross_entropies(&self, positions: &[Position]) -> Result<Vec<f64>> {
        if let Some(p) = positions.iter().find(|p| p.target >= self.vocab) {
            let help = "tokenise the corpus with the host's own tokenizer";
            return Err(Error::request(format!("token id {} in a vocabulary of {}", p.target, self.vocab), help));
        }
        finite(positions.iter().zip(&self.log_normaliser).map(|(p, z)| z - f64::from(self.row(p)[p.target])).collect())
    }

    /// KL(self || other) at each position.
    fn divergences(&self, other: &Self, positions: &[Position]) -> Result<Vec<f64>> {
        let all = positions.par_iter().zip(&self.log_normaliser).zip(&other.log_normaliser).map(|((p, &zp), &zq)| {
            let terms = self.row(p).iter().zip(other.row(p)).map(|(&lp, &lq)| {
                let log_p = f64::from(lp) - zp;
                log_p.exp() * (log_p - (f64::from(lq) - zq))
            });
            terms.sum::<f64>()
        });
        finite(all.collect())
    }
}

fn finite(values: Vec<f64>) -> Result<Vec<f64>> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(first) => Err(Error::NotFinite {
            what: "the losses of a batch".into(),
            count: values.iter().filter(|v| !v.is_finite()).count(),
            place: format!("counted position {first}"),
            help: "check the host in f32; in low precision a replaced activation can overflow it".into(),
        }),
    }
}

#[cfg(test)]
mod tests;
