//! A coder that lives on the device while it learns: each step is a row of launches, and the host does not wait for them. It waits where it
//! must know a count to go on: once per step of a batch selection (did the guess hold?) and of AuxK (how many are dead?).

use super::super::resident::{Choice, Precision, ResidentConfig, StepPlan, Told};
use super::super::{Adam, Coder, Moments};
use super::batch::BatchChoice;
use super::columns::{ColumnsShape, DeviceColumns, RowCodes};
use super::decode::{decode, nested, suffix_sums, Base, Decoded};
use super::encode::{cast, certified_lists, finish, merged, room, Encoder, Lists};
use super::engine::{Arg, Buffer, Engine, Grid, Operands, NULL};
use super::fused::Fused;
use super::reduce::{aux_scale, Matrix, Reduce};
use super::rows::Kind;
use super::update::{Entries, Gathered, Moved, Parameters, Source, StepGrad, Update, UpdateShape};
use crate::error::{Error, Result};

/// Steps whose figures are kept until the host reads them.
const SLOTS: usize = 64;

/// Scores of dead latents held at once, bytes.
const AUX_SCRATCH: usize = 64 << 20;

/// Sums of heavy latents held at once, bytes.
const SEGMENT_SUMS: usize = 128 << 20;

struct Param {
    at: Buffer,
    first: Buffer,
    second: Buffer,
}

impl Param {
    fn new(engine: &dyn Engine, [at, first, second]: [&[f32]; 3]) -> Result<Self> {
        let put = |data: &[f32]| -> Result<Buffer> {
            let buffer = engine.alloc(4 * data.len())?;
            engine.upload(bytes_of(data), &buffer)?;
            Ok(buffer)
        };
        Ok(Self { at: put(at)?, first: put(first)?, second: put(second)? })
    }

    fn moved(&self) -> Moved {
        Moved { at: self.at.address, first: self.first.address, second: self.second.address }
    }

    fn read(&self, engine: &dyn Engine) -> Result<[Vec<f32>; 3]> {
        Ok([floats(engine, &self.at)?, floats(engine, &self.first)?, floats(engine, &self.second)?])
    }
}

struct Aux {
    coef: f64,
    k: usize,
    columns: DeviceColumns,
    gathered: Gathered,
    list: Buffer,
    count: Buffer,
    indices: Buffer,
    values: Buffer,
    error: Buffer,
    half: Option<Buffer>,
    squares: Buffer,
    scratch: Buffer,
    sums: Buffer,
    numbers: Buffer,
    reduce: Reduce,
}

/// The coder, its optimiser, and room for a step.
pub struct Resident {
    config: ResidentConfig,
    d_sae: usize,
    d: usize,
    params: [Param; 4],
    half: Option<[Buffer; 2]>,
    norms: Buffer,
    silent: Buffer,
    x: Buffer,
    xc: Buffer,
    xc_half: Option<Buffer>,
    row_norms: Option<Buffer>,
    bad: Buffer,
    lists: Lists,
    fused: Option<Fused>,
    indices: Buffer,
    values: Buffer,
    lengths: Buffer,
    batch: Option<BatchChoice>,
    errors: Buffer,
    halves: Option<Buffer>,
    squares: Buffer,
    ends: Buffer,
    columns: DeviceColumns,
    gathered: Gathered,
    aux: Option<Aux>,
    update: Update,
    reduce: Reduce,
    slots: Buffer,
    pending: Vec<StepPlan>,
}

/// f32 as the bytes they are.
pub(super) fn bytes_of(data: &[f32]) -> &[u8] {
    // SAFETY: f32 has no padding, u8 any alignment, and the length is that of the same memory.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

fn floats(engine: &dyn Engine, buffer: &Buffer) -> Result<Vec<f32>> {
    let mut bytes = vec![0; buffer.bytes];
    engine.download(buffer, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn data(tensor: &candle_core::Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Codes a row may hold for a batch selection before the host must step in.
fn row_room(k: usize, d_sae: usize) -> usize {
    (8 * k).clamp(64, 512).min(d_sae)
}

impl Resident {
    /// Takes parameters, moments and silence to the device.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(engine: &dyn Engine, coder: &Coder, moments: &Moments, silence: &[u64], config: ResidentConfig) -> Result<Self> {
        let (d_sae, d) = coder.w_enc.dims2()?;
        if coder.w_dec.dims2()?.1 != d {
            return Err(Error::Unsupported {
                by: "training on a GPU".into(),
                what: "a decoder of another width than the encoder".into(),
                instead: "use --device cpu".into(),
            });
        }
        let n = config.batch;
        let pairs = moments.pairs();
        let param = |i: usize, tensor: &candle_core::Tensor| -> Result<Param> {
            let [first, second] = pairs[i];
            Param::new(engine, [&data(tensor)?, &data(first)?, &data(second)?])
        };
        let params = [param(0, &coder.w_enc)?, param(1, &coder.b_enc)?, param(2, &coder.w_dec)?, param(3, &coder.b_dec)?];
        let low = matches!(config.precision, Precision::Bf16);
        let screened = matches!(config.precision, Precision::Bf16 | Precision::Certified);
        let norms = engine.alloc(8 * d_sae)?;
        let bad = engine.alloc(4)?;
        engine.zero(&bad)?;
        let half = if screened {
            let half = [engine.alloc(2 * d_sae * d)?, engine.alloc(2 * d_sae * d)?];
            for (param, half, norms) in [(&params[0], &half[0], Some(&norms)), (&params[2], &half[1], None)] {
                cast(engine, param.at.address, NULL, d_sae, d, NULL, half, norms, &bad)?;
            }
            Some(half)
        } else {
            None
        };
        let silent = engine.alloc(8 * d_sae)?;
        engine.upload(&silence.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>(), &silent)?;
        let kind = if low { Kind::Bf16 } else { Kind::F32 };
        // A batch selection may keep more of one row than its mean.
        let width = row_room(config.k, d_sae).max(config.k);
        let capacity = n * config.k;
        let columns = DeviceColumns::new(engine, ColumnsShape::new(d_sae, n, capacity, 2 * d, SEGMENT_SUMS))?;
        let aux = config.aux_k.map(|(coef, k)| Aux::new(engine, (coef, k.min(d_sae)), n, d_sae, d, low)).transpose()?;
        let shape = UpdateShape { d_sae, d_in: d, d_out: d, n, kind, unit_norm: config.unit_norm };
        let update = Update::new(engine, shape)?;
        let groups = config.most_prefixes.max(1);
        let half_of = |elements: usize, wanted: bool| wanted.then(|| engine.alloc(2 * elements)).transpose();
        let lists = Lists::new(engine, n, room(width, config.precision == Precision::Certified))?;
        let xc_half = half_of(n * d, screened)?;
        let fused = match (&half, &xc_half) {
            (Some([w, _]), Some(x)) if low => Fused::new(engine, config.encode, (x, w), (n, d_sae, d), config.k)?,
            _ => None,
        };
        Ok(Self {
            d_sae,
            d,
            params,
            half,
            norms,
            silent,
            x: engine.alloc(4 * n * d)?,
            xc: engine.alloc(4 * n * d)?,
            xc_half,
            row_norms: (config.precision == Precision::Certified).then(|| engine.alloc(8 * n)).transpose()?,
            bad,
            lists,
            fused,
            indices: engine.alloc(4 * n * width)?,
            values: engine.alloc(4 * n * width)?,
            lengths: engine.alloc(4 * n)?,
            batch: Some(BatchChoice::new(engine, n, capacity)?),
            errors: engine.alloc(4 * groups * n * d)?,
            halves: half_of(groups * n * d, low)?,
            squares: engine.alloc(8 * groups * n)?,
            ends: engine.alloc(4 * groups)?,
            gathered: Gathered::new(engine, &columns, 2 * d)?,
            columns,
            aux,
            update,
            reduce: Reduce::new(engine, n, n, d)?,
            slots: engine.alloc(8 * SLOTS * (4 + 2 * groups))?,
            pending: Vec::with_capacity(SLOTS),
            config,
        })
    }

    /// Must the figures be read before another step?
    pub fn is_full(&self) -> bool {
        self.pending.len() == SLOTS
    }

    fn slot(&self) -> usize {
        4 + 2 * self.config.most_prefixes.max(1)
    }

    /// One step on rows that the host has, `[n, d]`.
    ///
    /// # Errors
    /// Another batch size, figures of too many steps unread, a launch that fails.
    pub fn step_rows(&mut self, engine: &dyn Engine, rows: &[f32], plan: &StepPlan, adam: &Adam) -> Result<()> {
        self.check(rows.len())?;
        engine.upload(bytes_of(rows), &self.x)?;
        self.step(engine, plan, adam)
    }

    /// One step on rows that the device has, `[n, d]` f32 at `rows`, `elements` in all.
    ///
    /// # Errors
    /// As [`Resident::step_rows`].
    pub fn step_at(&mut self, engine: &dyn Engine, rows: u64, elements: usize, plan: &StepPlan, adam: &Adam) -> Result<()> {
        self.check(elements)?;
        engine.copy(rows, &self.x, 4 * elements)?;
        self.step(engine, plan, adam)
    }

    fn check(&self, got: usize) -> Result<()> {
        let expected = self.config.batch * self.d;
        if got == expected {
            return Ok(());
        }
        let help = "batches on a device are all of one size".into();
        Err(Error::Width { what: "the batch".into(), expected, got, help })
    }

    fn step(&mut self, engine: &dyn Engine, plan: &StepPlan, adam: &Adam) -> Result<()> {
        let (n, d, d_sae, groups) = (self.config.batch, self.d, self.d_sae, plan.prefixes.len());
        if self.is_full() || groups == 0 || groups > self.config.most_prefixes.max(1) {
            return Err(Error::Cuda { reason: "a step without room for its figures".into(), help: "this is a bug: report it".into() });
        }
        let per_element = 1.0 / (groups as f64 * n as f64 * d as f64);
        let slot = self.slots.address + (8 * self.pending.len() * self.slot()) as u64;

        // x - b_dec.
        let half = self.xc_half.as_ref().map_or(NULL, Arg::from);
        let row_norms = self.row_norms.as_ref().map_or(NULL, Arg::from);
        let counts = [(n as u32).into(), (d as u32).into()];
        let args =
            [(&self.x).into(), (&self.params[3].at).into(), counts[0], counts[1], (&self.xc).into(), half, row_norms, (&self.bad).into()];
        engine.launch("cast_rows", Grid::warps(n), &args)?;

        // Codes.
        let [w, bias] = [0, 1].map(|i| self.params[i].at.address);
        let codes = self.select(engine, plan, Encoder { d_sae, d, w, bias, half: None })?;
        let [w_enc, b_enc, w_dec, b_dec] = &self.params;
        self.columns.build(engine, &codes)?;

        // Errors after each prefix.
        let (low, certified) = (self.config.precision == Precision::Bf16, self.config.precision == Precision::Certified);
        let decoder = match &self.half {
            Some([_, half]) if low => Matrix { at: half.address, kind: Kind::Bf16, n: d_sae, d },
            _ => Matrix { at: w_dec.at.address, kind: Kind::F32, n: d_sae, d },
        };
        debug_assert!(!(low && certified));
        let ends: Vec<u8> = plan.prefixes.iter().flat_map(|&m| (m as u32).to_le_bytes()).collect();
        engine.upload(&ends, &self.ends)?;
        let last = self.errors.address + (4 * (groups - 1) * n * d) as u64;
        let halves = self.halves.as_ref().map_or(0, |h| h.address);
        if groups == 1 {
            let to = Decoded { full: last, half: halves, squares: self.squares.address };
            decode(engine, &decoder, (Base::Rows(self.xc.address), -1.0), &codes, 0..d_sae, &to)?;
        } else {
            nested(engine, &decoder, self.xc.address, &codes, &plan.prefixes, self.errors.address, self.squares.address)?;
        }
        let figures = slot + (8 * (4 + self.config.most_prefixes.max(1))) as u64;
        for g in 0..groups {
            self.reduce.sum(engine, self.squares.address + (8 * g * n) as u64, n, 1.0, false, figures + 8 * g as u64)?;
        }

        // AuxK reads the last error, before the sums over prefixes take its place.
        let aux = match &mut self.aux {
            Some(aux) => {
                let dead = aux.dead(engine, &self.silent, self.config.dead_after_tokens, d_sae)?;
                if dead > 0 {
                    let (operands, x, w) = match (&self.half, &self.xc_half) {
                        (Some([half, _]), Some(x)) if low => (Operands::Bf16, x.address, half.address),
                        _ if self.config.precision == Precision::Tf32 => (Operands::Tf32, self.xc.address, w_enc.at.address),
                        _ => (Operands::F32, self.xc.address, w_enc.at.address),
                    };
                    aux.run(engine, dead, (operands, x, w), &b_enc.at, &decoder, n, last)?;
                    Some(&*aux)
                } else {
                    None
                }
            }
            None => None,
        };
        if groups > 1 {
            suffix_sums(engine, self.errors.address, groups, n * d, halves)?;
        }

        // Gradient, norm, update.
        let parameters = Parameters {
            w_enc: w_enc.moved(),
            b_enc: b_enc.moved(),
            w_dec: w_dec.moved(),
            b_dec: b_dec.moved(),
            half_enc: self.half.as_ref().map_or(0, |h| h[0].address),
            half_dec: self.half.as_ref().map_or(0, |h| h[1].address),
            norms: if self.half.is_some() { self.norms.address } else { 0 },
            silent: self.silent.address,
        };
        let grads = if low { halves } else { self.errors.address };
        let ends = if groups == 1 { 0 } else { self.ends.address };
        let source = Source {
            entries: Entries::Columns(&self.columns, &self.gathered),
            grads,
            ends,
            groups,
            scale: (2.0 * per_element) as f32,
            times: 0,
        };
        let x = match &self.xc_half {
            Some(half) if low => half.address,
            _ => self.xc.address,
        };
        let grad = StepGrad { codes: source, aux: aux.map(|a| a.source(low)), x, n, b_dec: 0, centred: true };
        self.update.measure(engine, &grad, &parameters, self.config.clip_norm as f32)?;
        self.update.apply(engine, &grad, &parameters, adam)?;

        let smallest = match (&plan.choice, &self.batch) {
            (Choice::BatchTopK { .. }, Some(batch)) => Arg::Ptr(batch.smallest()),
            _ => NULL,
        };
        let aux_loss = aux.map_or(NULL, |a| Arg::Ptr(a.loss()));
        let aux_entries = aux.map_or(NULL, |a| Arg::Ptr(a.columns.starts.address + 4 * d_sae as u64));
        let args = [
            (&self.update.norm).into(),
            (&self.update.bad).into(),
            aux_loss,
            aux_entries,
            smallest,
            (&self.columns.starts).into(),
            (&self.ends).into(),
            (groups as u32).into(),
            Arg::Ptr(slot),
        ];
        engine.launch("record", Grid::line(1, 32), &args)?;
        self.pending.push(plan.clone());
        Ok(())
    }

    /// This step's codes, on the device.
    fn select(&mut self, engine: &dyn Engine, plan: &StepPlan, encoder: Encoder) -> Result<RowCodes> {
        let (n, d_sae) = (self.config.batch, self.d_sae);
        let precision = self.config.precision;
        let operands = match (&self.half, &self.xc_half) {
            (Some([half, _]), Some(x)) if precision == Precision::Bf16 => (Operands::Bf16, x.address, half.address),
            _ if precision == Precision::Tf32 => (Operands::Tf32, self.xc.address, encoder.w),
            _ => (Operands::F32, self.xc.address, encoder.w),
        };
        let (k, guess) = match plan.choice {
            Choice::TopK { k } => (k, NULL),
            Choice::BatchTopK { .. } => (
                row_room(self.config.k, d_sae),
                self.batch.as_ref().map_or(NULL, |b| if precision == Precision::Certified { NULL } else { b.guess() }),
            ),
        };
        if let (Choice::TopK { k }, Some(fused)) = (plan.choice, &self.fused) {
            fused.encode(engine, encoder.bias, (n, d_sae, self.d), k, &self.values, &self.indices, &self.lengths)?;
            return Ok(RowCodes::padded(n, k, self.indices.address, self.values.address));
        }
        match (precision, &self.half, &self.xc_half, &self.row_norms) {
            (Precision::Certified, Some([half, _]), Some(x), Some(row_norms)) => {
                let screen = (half.address, &self.norms);
                certified_lists(engine, &encoder, screen, (n, self.xc.address, x.address, row_norms), k, &self.lists)?;
            }
            _ => merged(engine, &encoder, n, operands, k, guess, &self.lists)?,
        }
        finish(engine, &self.lists, n, k, &self.values, &self.indices, &self.lengths)?;
        match plan.choice {
            Choice::TopK { k } => Ok(RowCodes::padded(n, k, self.indices.address, self.values.address)),
            Choice::BatchTopK { k: mean } => {
                let total = ((n as f64 * mean).round() as usize).min(n * self.config.k);
                let Some(batch) = &mut self.batch else { unreachable!("made with the rest") };
                let held = batch.choose(engine, (&self.values, &self.indices, &self.lengths), n, k, total, d_sae)?;
                if !held {
                    // A row with more codes than it has room for, or a guess that held some back: all over again, as long as it takes.
                    let entries = all_positive(engine, &encoder, n, operands, total)?;
                    batch.replace(engine, n, total, entries)?;
                }
                Ok(RowCodes::ragged(n, n * self.config.k, batch.starts(), batch.indices(), batch.values()))
            }
        }
    }

    /// Figures of the steps since the last reading, in order; waits for them.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read(&mut self, engine: &dyn Engine) -> Result<Vec<Told>> {
        let (count, width, most) = (self.pending.len(), self.slot(), self.config.most_prefixes.max(1));
        let mut bytes = vec![0; 8 * count * width];
        if count > 0 {
            engine.download(&self.slots, &mut bytes)?;
        }
        let numbers: Vec<f64> = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect();
        let told = self.pending.drain(..).zip(numbers.chunks_exact(width)).map(|(plan, slot)| {
            let groups = plan.prefixes.len();
            Told {
                sq_errors: slot[4 + most..4 + most + groups].to_vec(),
                active: slot[4..4 + groups].iter().map(|&v| v as u64).collect(),
                aux_loss: (slot[2] >= 0.0).then_some(slot[2]),
                smallest: (matches!(plan.choice, Choice::BatchTopK { .. }) && slot[3].is_finite()).then_some(slot[3] as f32),
                grad_norm: slot[0],
                prefixes: plan.prefixes,
            }
        });
        Ok(told.collect())
    }

    /// Copies parameters and moments back to the host's.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn write_back(&self, engine: &dyn Engine, coder: &Coder, moments: &Moments) -> Result<()> {
        let tensors = [&coder.w_enc, &coder.b_enc, &coder.w_dec, &coder.b_dec];
        for ((param, tensor), [first, second]) in self.params.iter().zip(tensors).zip(moments.pairs()) {
            let [p, m, v] = param.read(engine)?;
            super::super::overwrite(tensor, &p)?;
            super::super::overwrite(first, &m)?;
            super::super::overwrite(second, &v)?;
        }
        Ok(())
    }

    /// Tokens since each latent last fired.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read_silence(&self, engine: &dyn Engine, silence: &mut [u64]) -> Result<()> {
        let mut bytes = vec![0; 8 * self.d_sae];
        engine.download(&self.silent, &mut bytes)?;
        for (to, b) in silence.iter_mut().zip(bytes.chunks_exact(8)) {
            *to = u64::from_le_bytes(b.try_into().unwrap_or_default());
        }
        Ok(())
    }
}

/// All positive scores of each row, on the host: what a batch selection falls back to. Slow, and rare.
fn all_positive(
    engine: &dyn Engine,
    encoder: &Encoder,
    n: usize,
    operands: (Operands, u64, u64),
    total: usize,
) -> Result<Vec<(u32, u32, f32)>> {
    let cap = room(encoder.d_sae, false);
    let block = (256 << 20) / (8 * cap) + 1;
    let element = if operands.0 == Operands::Bf16 { 2 } else { 4 };
    let mut entries = Vec::new();
    for first in (0..n).step_by(block) {
        let rows = block.min(n - first);
        let lists = Lists::new(engine, rows, cap)?;
        let x = operands.1 + (first * encoder.d * element) as u64;
        merged(engine, encoder, rows, (operands.0, x, operands.2), encoder.d_sae, NULL, &lists)?;
        for (r, row) in super::encode::finished(engine, &lists, rows, encoder.d_sae)?.into_iter().enumerate() {
            entries.extend(row.into_iter().map(|(j, v)| ((first + r) as u32, j, v)));
        }
        // Only the largest so far can be among the largest of all.
        entries.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1)));
        entries.truncate(total);
    }
    Ok(entries)
}

impl Aux {
    fn new(engine: &dyn Engine, (coef, k): (f64, usize), n: usize, d_sae: usize, d: usize, low: bool) -> Result<Self> {
        let columns = DeviceColumns::new(engine, ColumnsShape::new(d_sae, n, n * k, 2 * d, SEGMENT_SUMS))?;
        Ok(Self {
            coef,
            k,
            gathered: Gathered::new(engine, &columns, 2 * d)?,
            columns,
            list: engine.alloc(4 * d_sae)?,
            count: engine.alloc(4)?,
            indices: engine.alloc(4 * n * k)?,
            values: engine.alloc(4 * n * k)?,
            error: engine.alloc(4 * n * d)?,
            half: low.then(|| engine.alloc(2 * n * d)).transpose()?,
            squares: engine.alloc(8 * n)?,
            scratch: engine.alloc(AUX_SCRATCH)?,
            sums: engine.alloc(8 * d)?,
            // spread, square, loss (f64), scale (f32).
            numbers: engine.alloc(32)?,
            reduce: Reduce::new(engine, n, n, d)?,
        })
    }

    fn loss(&self) -> u64 {
        self.numbers.address + 16
    }

    /// How many latents are dead; waits for the answer.
    fn dead(&self, engine: &dyn Engine, silent: &Buffer, after: u64, d_sae: usize) -> Result<usize> {
        let args = [silent.into(), after.into(), (d_sae as u32).into(), (&self.list).into(), (&self.count).into()];
        engine.launch("dead_list", Grid::line(1, 1024), &args)?;
        let mut count = [0; 4];
        engine.download(&self.count, &mut count)?;
        Ok(u32::from_le_bytes(count) as usize)
    }

    /// Selects among the dead latents, decodes them onto the error at `last`, and finds the loss and its scale.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        engine: &dyn Engine,
        dead: usize,
        (operands, x, w): (Operands, u64, u64),
        bias: &Buffer,
        decoder: &Matrix,
        n: usize,
        last: u64,
    ) -> Result<()> {
        let (d, k) = (decoder.d, self.k);
        let element = if operands == Operands::Bf16 { 2 } else { 4 };
        let rows = engine.alloc(dead * d * element)?;
        let args = [Arg::Ptr(w), (&self.list).into(), (dead as u32).into(), ((d * element) as u32).into(), (&rows).into()];
        engine.launch("gather_rows", Grid::warps(dead), &args)?;
        let block = (AUX_SCRATCH / 4 / dead).clamp(1, n);
        let grown = (4 * block * dead > AUX_SCRATCH).then(|| engine.alloc(4 * block * dead)).transpose()?;
        let scores = grown.as_ref().unwrap_or(&self.scratch);
        for first in (0..n).step_by(block) {
            let count = block.min(n - first);
            engine.product(operands, x + (first * d * element) as u64, rows.address, count, dead, d, scores.address, dead)?;
            let offset = (4 * first * k) as u64;
            let args = [
                scores.into(),
                (dead as u64).into(),
                bias.into(),
                (&self.list).into(),
                (count as u32).into(),
                (dead as u32).into(),
                (k as u32).into(),
                Arg::Ptr(self.indices.address + offset),
                Arg::Ptr(self.values.address + offset),
            ];
            engine.launch("select_rows", Grid::line(count, 256), &args)?;
        }
        let codes = RowCodes::padded(n, k, self.indices.address, self.values.address);
        let half = self.half.as_ref().map_or(0, |h| h.address);
        let to = Decoded { full: self.error.address, half, squares: self.squares.address };
        decode(engine, decoder, (Base::Rows(last), 1.0), &codes, 0..decoder.n, &to)?;
        let numbers = self.numbers.address;
        self.reduce.sum(engine, self.squares.address, n, 1.0, false, numbers + 8)?;
        let error = Matrix { at: last, kind: Kind::F32, n, d };
        self.reduce.spread(engine, &error, &self.sums, &self.squares, numbers)?;
        aux_scale(engine, numbers, numbers + 8, self.coef as f32, numbers + 24, numbers + 16)?;
        self.columns.build(engine, &codes)
    }

    fn source(&self, low: bool) -> Source<'_> {
        let grads = match &self.half {
            Some(half) if low => half.address,
            _ => self.error.address,
        };
        let entries = Entries::Columns(&self.columns, &self.gathered);
        Source { entries, grads, ends: 0, groups: 1, scale: 1.0, times: self.numbers.address + 24 }
    }
}
