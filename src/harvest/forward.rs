//! A block through the host: forward passes over contexts of like length, rows back in corpus order.

use candle_core::{DType, Device, Storage, Tensor};

use super::blocks::Block;
use super::config::Plan;
use crate::corpus::{Context, Mask};
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::{HostModel, Tap, Tokens};
use crate::progress::Progress;

/// The rows of a block that no token rule masks, and what became of every token.
pub(super) struct BlockRows {
    /// Per token of the block: its document and the rule that masks it.
    pub tokens: Vec<(u64, Mask)>,
    /// Does the token begin a document?
    pub begins: Vec<bool>,
    /// Document, position and id of each row, [n].
    pub doc_id: Vec<u64>,
    /// Position in the document, [n].
    pub position: Vec<u32>,
    /// Token id, [n].
    pub token_id: Vec<u32>,
    /// Row-major [n, width] per column.
    pub columns: Vec<Vec<f32>>,
    /// Euclidean norm of each row per column, [n].
    pub norms: Vec<Vec<f64>>,
    /// Places of the forward passes that held no token.
    pub padding: u64,
    /// Where the next block begins.
    pub end: crate::corpus::Place,
}

impl BlockRows {
    /// Rows that no token rule masks.
    pub fn kept(&self) -> usize {
        self.doc_id.len()
    }
}

/// Captures the wanted points and stops after the last.
struct Collect<'a> {
    points: &'a [HookPoint],
    found: Vec<Option<Tensor>>,
}

impl Tap for Collect<'_> {
    fn wants(&self, at: &HookPoint) -> bool {
        self.points.contains(at)
    }

    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        if let Some(i) = self.points.iter().position(|p| p == at) {
            self.found[i] = Some(x.clone());
        }
        Ok(None)
    }

    fn last(&self) -> Option<HookPoint> {
        self.points.iter().max().copied()
    }
}

/// Runs the host over a block.
///
/// # Errors
/// When the host fails, a row holds NaN or infinity, or the work is cancelled.
pub(super) fn run(host: &dyn HostModel, block: &Block, plan: &Plan, progress: &dyn Progress) -> Result<BlockRows> {
    let contexts = &block.contexts;
    let kept = |c: &Context| c.masked.iter().filter(|m| **m == Mask::Keep).count();
    // Row of each context's first kept token.
    let mut first_row = Vec::with_capacity(contexts.len());
    let mut n = 0;
    for context in contexts {
        first_row.push(n);
        n += kept(context);
    }
    let mut rows = BlockRows {
        tokens: Vec::new(),
        begins: Vec::new(),
        doc_id: Vec::with_capacity(n),
        position: Vec::with_capacity(n),
        token_id: Vec::with_capacity(n),
        columns: plan.columns.iter().map(|c| vec![0.0; n * c.width]).collect(),
        norms: plan.columns.iter().map(|_| vec![0.0; n]).collect(),
        padding: 0,
        end: block.end,
    };
    for context in contexts {
        for ((&id, &mask), &(doc_id, position)) in context.ids.iter().zip(&context.masked).zip(&context.places) {
            rows.tokens.push((doc_id, mask));
            rows.begins.push(position == 0);
            if mask == Mask::Keep {
                rows.doc_id.push(doc_id);
                rows.position.push(position);
                rows.token_id.push(id);
            }
        }
    }
    let lengths: Vec<usize> = contexts.iter().map(|c| c.ids.len()).collect();
    for pass in passes(&lengths, plan.config.batch_tokens) {
        if progress.is_cancelled() {
            return Err(Error::Interrupted { doing: "the harvest" });
        }
        let mut tap = Collect { points: &plan.points, found: vec![None; plan.points.len()] };
        host.forward(&tokens(contexts, &pass)?, &mut tap)?;
        rows.padding += pass.iter().map(|&i| (lengths[pass[0]] - lengths[i]) as u64).sum::<u64>();
        for (c, x) in tap.found.into_iter().enumerate() {
            let x = x.ok_or_else(|| Error::UnknownHookPoint {
                given: plan.columns[c].name.clone(),
                host: host.info().name.clone(),
                available: "only points that its forward pass reaches".to_string(),
            })?;
            gather(&x, contexts, &pass, &first_row, c, plan, &mut rows)?;
        }
        progress.advance(pass.iter().map(|&i| kept(&contexts[i]) as u64).sum());
    }
    Ok(rows)
}

/// Groups contexts of these lengths into forward passes of at most `most` tokens, padding included (a longer context goes alone):
/// longest first, equal lengths in the order given, so that like lengths share a pass and little is padded. Each pass begins with its
/// longest context. Depends on nothing but its arguments.
pub fn passes(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut passes: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match passes.last_mut() {
            Some(pass) if (pass.len() + 1) * lengths[pass[0]] <= most => pass.push(i),
            _ => passes.push(vec![i]),
        }
    }
    passes
}

fn tokens(contexts: &[Context], pass: &[usize]) -> Result<Tokens> {
    let t = contexts[pass[0]].ids.len();
    let mut ids = Vec::with_capacity(pass.len() * t);
    let mut mask = Vec::with_capacity(pass.len() * t);
    for &i in pass {
        let n = contexts[i].ids.len();
        ids.extend(contexts[i].ids.iter().copied().chain(std::iter::repeat_n(0, t - n)));
        mask.extend((0..t).map(|at| u8::from(at < n)));
    }
    let shape = (pass.len(), t);
    let padded = mask.contains(&0);
    let mask = if padded { Some(Tensor::from_vec(mask, shape, &Device::Cpu)?) } else { None };
    Ok(Tokens { ids: Tensor::from_vec(ids, shape, &Device::Cpu)?, mask })
}

/// Copies the kept rows of one pass and column to their places, with their norms.
fn gather(
    x: &Tensor,
    contexts: &[Context],
    pass: &[usize],
    first_row: &[usize],
    c: usize,
    plan: &Plan,
    rows: &mut BlockRows,
) -> Result<()> {
    let width = plan.columns[c].width;
    let (b, t, found) = x.dims3()?;
    if found != width || b != pass.len() {
        return Err(Error::Width {
            what: format!("`{}` of the host's forward pass", plan.columns[c].name),
            expected: width,
            got: found,
            help: "the host announces another width: this is a bug in it".to_string(),
        });
    }
    let x = x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::request("an activation did not come to the CPU", "this is a bug in lapidary: please report it"));
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
    for (at, &i) in pass.iter().enumerate() {
        let context = &contexts[i];
        let kept = context.masked.iter().enumerate().filter(|(_, m)| **m == Mask::Keep);
        for (row, (token, _)) in (first_row[i]..).zip(kept) {
            let from = (at * t + token) * width;
            let source = &values[from..from + width];
            let sq = sum_sq(source);
            if !sq.is_finite() {
                let count = source.iter().filter(|v| !v.is_finite()).count();
                let (document, position) = context.places[token];
                return Err(Error::NotFinite {
                    what: format!("`{}`", plan.columns[c].name),
                    count,
                    place: format!("document {document}, position {position}"),
                    help: "the host computes it: load it in f32, and check its weights".to_string(),
                });
            }
            rows.columns[c][row * width..(row + 1) * width].copy_from_slice(source);
            rows.norms[c][row] = sq.sqrt();
        }
    }
    Ok(())
}

/// In f64 and in a fixed order: eight interleaved partial sums.
fn sum_sq(row: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let mut eights = row.chunks_exact(8);
    for eight in &mut eights {
        for (lane, &v) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(eights.remainder()) {
        *lane += f64::from(v) * f64::from(v);
    }
    lanes.iter().sum()
}
