//! Encodes on a device: scores by matrix product a chunk of latents at a time, merged into each row's list while the next are made. Not
//! for the parameters' life during training (`resident`), nor for what a tensor is (`enabled`).

use super::engine::{Arg, Buffer, Engine, Grid, Operands, NULL};
use crate::error::{Error, Result};

/// An encoder as the device holds it, with what screening needs.
#[derive(Debug)]
pub struct Encoder {
    /// Number of latents.
    pub d_sae: usize,
    /// Width of the input.
    pub d: usize,
    /// `W_enc`, `[d_sae, d]`, f32.
    pub w: u64,
    /// `b_enc`, `[d_sae]`, f32.
    pub bias: u64,
    /// `W_enc` in bf16, and per latent the norms of that and of what it lost.
    pub half: Option<(Buffer, Buffer)>,
}

/// Rows as the encoder sees them.
#[derive(Debug)]
pub struct Rows {
    /// How many.
    pub n: usize,
    /// `[n, d]`, f32.
    pub full: u64,
    /// `[n, d]`, bf16.
    pub half: Buffer,
    /// Norms of `half` and of what it lost, `[n, 2]`.
    pub norms: Buffer,
}

/// Counts of what exactness took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Exact dot products of candidates.
    pub scored: u64,
    /// Rows whose candidates did not fit, and were done in full.
    pub in_full: u32,
}

/// Shared memory that a block may have on every chip since sm_80, bytes.
const SHARED: usize = 96 << 10;

/// Scores held at once, bytes.
const SCRATCH: usize = 64 << 20;

/// Latents per chunk for `n` rows: a multiple of 256, so that the scores stay within the scratch.
pub fn chunk(n: usize, d_sae: usize) -> usize {
    let fits = SCRATCH / 4 / n.max(1) / 256 * 256;
    fits.clamp(256, 8192).min(d_sae.next_multiple_of(256))
}

/// Rows that go together: with more, even the smallest chunk would leave the scratch.
pub fn block(n: usize) -> usize {
    n.min(SCRATCH / 4 / 1024)
}

/// Room in a row's list: what selection keeps, what one turn of 256 columns adds, and enough between that compactions are rare. Candidates
/// of the certified form are several times k.
pub fn room(k: usize, certified: bool) -> usize {
    let kept = if certified { 8 * k + 256 } else { k + k / 8 };
    (kept + 256 + k.max(224)).next_multiple_of(32)
}

/// Factor of `|x_q| |w_q|` that bounds the rounding of a sum of `d` products: a unit of 2^-22 each, since tensor cores truncate.
pub fn summing(d: usize) -> f32 {
    (d + 16) as f32 * 2f32.powi(-22)
}

impl Encoder {
    /// With a screen: bf16 rows and their norms.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn screened(engine: &dyn Engine, w: u64, bias: u64, d_sae: usize, d: usize) -> Result<Self> {
        let (half, norms) = (engine.alloc(2 * d_sae * d)?, engine.alloc(8 * d_sae)?);
        let bad = engine.alloc(4)?;
        engine.zero(&bad)?;
        cast(engine, w, NULL, d_sae, d, NULL, &half, Some(&norms), &bad)?;
        Ok(Self { d_sae, d, w, bias, half: Some((half, norms)) })
    }
}

/// `x - b` of rows, as f32 where `full` is not null, and as bf16 with norms.
///
/// # Errors
/// A launch that fails.
#[allow(clippy::too_many_arguments)]
pub fn cast(
    engine: &dyn Engine,
    x: u64,
    b: Arg,
    n: usize,
    d: usize,
    full: Arg,
    half: &Buffer,
    norms: Option<&Buffer>,
    bad: &Buffer,
) -> Result<()> {
    let norms = norms.map_or(NULL, Arg::from);
    let args = [Arg::Ptr(x), b, (n as u32).into(), (d as u32).into(), full, half.into(), norms, bad.into()];
    engine.launch("cast_rows", Grid::warps(n), &args)
}

impl Rows {
    /// From rows on the device, `[n, d]`, f32.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(engine: &dyn Engine, x: u64, n: usize, d: usize) -> Result<Self> {
        let (half, norms, bad) = (engine.alloc(2 * n * d)?, engine.alloc(8 * n)?, engine.alloc(4)?);
        engine.zero(&bad)?;
        cast(engine, x, NULL, n, d, NULL, &half, Some(&norms), &bad)?;
        Ok(Self { n, full: x, half, norms })
    }
}

/// Each row's lists after a merge, and their lengths.
#[derive(Debug)]
pub struct Lists {
    /// (value bits, latent), `[n, cap]`.
    pub entries: Buffer,
    /// `[n]`.
    pub counts: Buffer,
    /// `[n]`.
    pub gates: Buffer,
    /// Room of each.
    pub cap: usize,
    /// How many belong to a row.
    pub lists_per_row: usize,
}

impl Lists {
    /// Room for `n` rows.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(engine: &dyn Engine, n: usize, cap: usize) -> Result<Self> {
        Ok(Self { entries: engine.alloc(8 * n * cap)?, counts: engine.alloc(4 * n)?, gates: engine.alloc(4 * n)?, cap, lists_per_row: 1 })
    }

    /// Empties them. `guess` points to a value that selections are believed to exceed, or is null.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn start(&self, engine: &dyn Engine, n: usize, guess: Arg) -> Result<()> {
        engine.launch(
            "merge_start",
            Grid::threads(n),
            &[(n as u32).into(), guess, 1u32.into(), (&self.counts).into(), (&self.gates).into()],
        )
    }
}

/// The k largest positive pre-activations of each row, exactly: bf16 scores with bounds, f64 for those that may be among them. The lists
/// hold at least them, with exact values, when this is done.
///
/// # Errors
/// No memory on the device, a launch that fails.
pub fn certified(engine: &dyn Engine, encoder: &Encoder, rows: &Rows, k: usize) -> Result<(Lists, Taken)> {
    let Some((half, norms)) = &encoder.half else { unreachable!("an encoder without a screen is not asked to screen") };
    let lists = Lists::new(engine, rows.n, room(k, true))?;
    let screen = (half.address, norms);
    let counters = certified_lists(engine, encoder, screen, (rows.n, rows.full, rows.half.address, &rows.norms), k, &lists)?;
    let [low, high, in_full] = numbers(engine, &counters, 3)?[..] else { unreachable!("three were asked for") };
    Ok((lists, Taken { scored: u64::from(low) | u64::from(high) << 32, in_full }))
}

/// [`certified`] into lists that are there, from rows (`n`, f32, bf16, norms) and a screen (bf16, norms) that are: nobody waits. Returns
/// where the counts are: dot products (u64), rows done in full (u32).
///
/// # Errors
/// No memory on the device, a launch that fails.
pub fn certified_lists(
    engine: &dyn Engine,
    encoder: &Encoder,
    (w_half, norms): (u64, &Buffer),
    (n, full, half, row_norms): (usize, u64, u64, &Buffer),
    k: usize,
    lists: &Lists,
) -> Result<Buffer> {
    let (d, sum) = (encoder.d, Arg::from(summing(encoder.d)));
    let (rows, wanted, cap) = (Arg::from(n as u32), Arg::from(k as u32), Arg::from(lists.cap as u32));
    let (entries, counts, gates) = (Arg::from(&lists.entries), Arg::from(&lists.counts), Arg::from(&lists.gates));
    let bounds = [sum, row_norms.into(), norms.into()];
    lists.start(engine, n, NULL)?;
    scored(engine, encoder, n, Operands::Bf16, half, w_half, &mut |scores, stride, columns, first| {
        let chunk = [scores.into(), (stride as u64).into(), Arg::Ptr(encoder.bias), rows, (columns as u32).into(), (first as u32).into()];
        engine.launch("merge_certified", Grid::warps(n), &[&chunk[..], &[wanted, cap, entries, counts, gates], &bounds].concat())
    })?;
    let counters = engine.alloc(16)?;
    engine.zero(&counters)?;
    let exact = [Arg::Ptr(full), Arg::Ptr(encoder.w), Arg::Ptr(encoder.bias), rows, (d as u32).into()];
    let relu = Arg::from(1u32);
    let args = [&exact[..], &[wanted, cap, entries, counts, gates, relu], &bounds, &[Arg::Ptr(counters.address)]].concat();
    engine.launch("rescore", Grid::warps(n), &args)?;
    let in_full = [(encoder.d_sae as u32).into(), wanted, cap, entries, counts, relu, Arg::Ptr(counters.address + 8)];
    engine.launch("exact_rows", Grid::line(n, 256), &[&exact[..], &in_full].concat())?;
    Ok(counters)
}

/// Sorts what lists hold into rows of k, padded: `values` and `indices` `[n, k]`, `lengths` `[n]`.
///
/// # Errors
/// A k beyond what a block's shared memory can sort, a launch that fails.
pub fn finish(engine: &dyn Engine, lists: &Lists, n: usize, k: usize, values: &Buffer, indices: &Buffer, lengths: &Buffer) -> Result<()> {
    let slots = k.next_power_of_two().max(k + 32).max(512);
    let warps = (SHARED / (8 * slots)).min(8);
    if warps == 0 {
        let most = SHARED / 16;
        return Err(Error::config("sae.k", format!("{k} latents per row cannot be sorted on a GPU"), format!("choose k up to {most}")));
    }
    let words = [lists.lists_per_row, lists.cap, n, k, slots].map(|v| Arg::from(v as u32));
    let args = [&[(&lists.entries).into(), (&lists.counts).into()][..], &words, &[values.into(), indices.into(), lengths.into()]].concat();
    let grid = Grid::line(n.div_ceil(warps), 32 * warps as u32).with_shared(8 * slots * warps);
    engine.launch("finish", grid, &args)
}

/// Makes scores a chunk of latents at a time and hands each to `merge(scores, stride, columns, first)`.
///
/// # Errors
/// No memory on the device, a launch that fails.
#[allow(clippy::too_many_arguments)]
pub fn scored(
    engine: &dyn Engine,
    encoder: &Encoder,
    n: usize,
    operands: Operands,
    x: u64,
    w: u64,
    merge: &mut dyn FnMut(&Buffer, usize, usize, usize) -> Result<()>,
) -> Result<()> {
    let (d_sae, d) = (encoder.d_sae, encoder.d);
    let width = chunk(n, d_sae);
    let scores = engine.alloc(4 * n * width)?;
    let element = if operands == Operands::Bf16 { 2 } else { 4 };
    for first in (0..d_sae).step_by(width) {
        let columns = width.min(d_sae - first);
        engine.product(operands, x, w + (first * d * element) as u64, n, columns, d, scores.address, width)?;
        merge(&scores, width, columns, first)?;
    }
    Ok(())
}

/// The k largest of scores as they are rounded: training's encode. With `guess`, only those above it.
///
/// # Errors
/// No memory on the device, a launch that fails.
#[allow(clippy::too_many_arguments)]
pub fn merged(
    engine: &dyn Engine,
    encoder: &Encoder,
    n: usize,
    (operands, x, w): (Operands, u64, u64),
    k: usize,
    guess: Arg,
    lists: &Lists,
) -> Result<()> {
    lists.start(engine, n, guess)?;
    scored(engine, encoder, n, operands, x, w, &mut |scores, stride, columns, first| {
        let args = [
            scores.into(),
            (stride as u64).into(),
            Arg::Ptr(encoder.bias),
            (n as u32).into(),
            (columns as u32).into(),
            (first as u32).into(),
            (k as u32).into(),
            (lists.cap as u32).into(),
            (&lists.entries).into(),
            (&lists.counts).into(),
            (&lists.gates).into(),
        ];
        engine.launch("merge_topk", Grid::warps(n), &args)
    })
}

/// All pre-activations above their latent's threshold (`[d_sae]` on the device), exactly: counts per row, and their latents and values row
/// after row, with where each row's begin.
///
/// # Errors
/// No memory on the device, a launch that fails.
pub fn above(engine: &dyn Engine, encoder: &Encoder, rows: &Rows, threshold: u64) -> Result<Vec<Vec<(u32, f32)>>> {
    let (n, d) = (rows.n, encoder.d);
    let Some((w_half, norms)) = &encoder.half else { unreachable!("an encoder without a screen is not asked to screen") };
    let (counts, starts) = (engine.alloc(4 * n)?, engine.alloc(8 * n)?);
    let screen = |entries: Arg| -> Result<()> {
        engine.zero(&counts)?;
        scored(engine, encoder, n, Operands::Bf16, rows.half.address, w_half.address, &mut |scores, stride, columns, first| {
            let args = [
                scores.into(),
                (stride as u64).into(),
                Arg::Ptr(encoder.bias),
                Arg::Ptr(threshold),
                (n as u32).into(),
                (columns as u32).into(),
                (first as u32).into(),
                summing(d).into(),
                (&rows.norms).into(),
                norms.into(),
                (&counts).into(),
                (&starts).into(),
                entries,
            ];
            engine.launch("threshold_screen", Grid::warps(n), &args)
        })
    };
    screen(NULL)?;
    let room = numbers(engine, &counts, n)?;
    let begin: Vec<u64> = room
        .iter()
        .scan(0u64, |at, &c| {
            *at += u64::from(c);
            Some(*at - u64::from(c))
        })
        .collect();
    let total: usize = room.iter().map(|&c| c as usize).sum();
    engine.upload(&begin.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), &starts)?;
    let (entries, values) = (engine.alloc(4 * total.max(1))?, engine.alloc(4 * total.max(1))?);
    screen((&entries).into())?;
    let args = [
        Arg::Ptr(rows.full),
        Arg::Ptr(encoder.w),
        Arg::Ptr(encoder.bias),
        Arg::Ptr(threshold),
        (n as u32).into(),
        (d as u32).into(),
        (&counts).into(),
        (&starts).into(),
        (&entries).into(),
        (&values).into(),
    ];
    engine.launch("threshold_rescore", Grid::warps(n), &args)?;
    let (kept, entries, values) = (numbers(engine, &counts, n)?, numbers(engine, &entries, total)?, numbers(engine, &values, total)?);
    let row = |(&at, &len): (&u64, &u32)| {
        let range = at as usize..at as usize + len as usize;
        entries[range.clone()].iter().copied().zip(values[range].iter().map(|&v| f32::from_bits(v))).collect()
    };
    Ok(begin.iter().zip(&kept).map(row).collect())
}

/// The first `n` u32 of a buffer.
///
/// # Errors
/// A copy that fails.
pub fn numbers(engine: &dyn Engine, buffer: &Buffer, n: usize) -> Result<Vec<u32>> {
    let mut bytes = vec![0; 4 * n];
    engine.download(buffer, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Sorts what the lists hold into rows of k: on the host, for k beyond what the device's sort takes or where codes go there anyway.
///
/// # Errors
/// A copy that fails.
pub fn finished(engine: &dyn Engine, lists: &Lists, n: usize, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
    let counts = numbers(engine, &lists.counts, n)?;
    let entries = numbers(engine, &lists.entries, 2 * n * lists.cap)?;
    let row = |(r, &count): (usize, &u32)| {
        let list = &entries[2 * r * lists.cap..][..2 * count as usize];
        let mut row: Vec<(u32, f32)> = list.chunks_exact(2).map(|e| (e[1], f32::from_bits(e[0]))).collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        row.truncate(k);
        row
    };
    Ok(counts.iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_and_lists_stay_within_bounds() {
        for n in [1, 100, 2048, 8192, 16384] {
            for d_sae in [1, 100, 24576, 1 << 20] {
                let width = chunk(block(n), d_sae);
                assert!(width.is_multiple_of(256) && 4 * block(n) * width <= SCRATCH.max(4 * n * 256), "{n} {d_sae} {width}");
            }
        }
        for k in [1, 32, 64, 500] {
            assert!(room(k, false) >= k + 288 && room(k, true) > 8 * k + 256);
        }
    }
}
