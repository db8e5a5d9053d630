//! Launches of `kernels/pursuit.cu`: matching pursuit of a block of rows at a time, some steps with rows of the Gram matrix or one with
//! scores of all atoms, until every row has ended; and its orthogonal form. Not for gradients.

use super::super::{Pick, PursuitRule};
use super::encode::{block, cast, certified_lists, numbers, room, scored, Encoder, Lists};
use super::engine::{Arg, Buffer, Engine, Grid, Operands, NULL};
use crate::error::Result;

/// Steps between fresh inner products, as on the CPU.
pub(super) const REFRESH: usize = 32;
/// Inner products held at once, bytes.
const SCRATCH: usize = 64 << 20;
/// Inner products of a row that stay in shared memory, bytes: what a block may have on every chip since sm_80, less what it has besides.
const SHARED: usize = 95 << 10;
/// Bit of a row's state that says that it has ended (`ENDED` there).
const ENDED: u32 = 1 << 31;

/// Atoms on the device.
#[derive(Debug, Clone, Copy)]
pub struct Atoms {
    /// `[m, d]`, f32.
    pub at: u64,
    /// `[m, m]`, f32: their inner products.
    pub gram: Option<u64>,
    /// How many.
    pub m: usize,
    /// Their width.
    pub d: usize,
}

/// Where the steps of `n` rows go.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// `[n, steps]`, u32.
    pub indices: u64,
    /// `[n, steps]`, f32.
    pub values: u64,
    /// `[n, d]`, f32.
    pub residual: u64,
}

/// Inner products of all pairs of `m` atoms into `gram` `[m, m]`.
///
/// # Errors
/// A product that fails.
pub fn gram(engine: &dyn Engine, atoms: u64, (m, d): (usize, usize), gram: u64) -> Result<()> {
    engine.product(Operands::F32, atoms, atoms, m, m, d, gram, m)
}

/// What is done at once.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Rows.
    pub rows: usize,
    /// Bytes of shared memory per block.
    pub shared: usize,
}

impl Room {
    /// For `n` rows.
    pub fn new(n: usize, atoms: &Atoms) -> Self {
        let rows = match atoms.gram {
            Some(_) => (SCRATCH / 4 / atoms.m.max(1)).min(block(n)),
            None => block(n),
        };
        Self { rows: rows.max(1), shared: SHARED }
    }
}

/// Takes `n` rows at `x`, `[n, d]`, f32, apart.
///
/// # Errors
/// No memory on the device, a launch that fails.
pub fn pursue(engine: &dyn Engine, x: u64, n: usize, atoms: &Atoms, rule: &PursuitRule, to: &Path, room: Room) -> Result<()> {
    let (m, d, steps) = (atoms.m, atoms.d, rule.steps);
    // Only positive scores have a screen: bf16 products find who may be the best, f64 decides.
    let encoder = match (atoms.gram, rule.pick) {
        (None, Pick::NonNeg) if m > 0 => Encoder::screened(engine, atoms.at, 0, m, d)?,
        _ => Encoder { d_sae: m, d, w: atoms.at, bias: 0, half: None },
    };
    blocks(n, room.rows, x, to, (d, steps), &mut |x, n, to| {
        let rows = Rows::start(engine, x, n, atoms, rule, to)?;
        rows.run(&mut |live| match atoms.gram {
            Some(gram) => rows.by_gram(live, gram, room.shared),
            None => rows.by_atoms(live, &encoder),
        })
    })
}

/// Calls `each` with blocks of rows: where they begin in x, how many they are, and where their steps go.
fn blocks(
    n: usize,
    rows: usize,
    x: u64,
    to: &Path,
    (d, steps): (usize, usize),
    each: &mut dyn FnMut(u64, usize, Path) -> Result<()>,
) -> Result<()> {
    for first in (0..n).step_by(rows) {
        let after = |at: u64, width: usize| at + (4 * first * width) as u64;
        let to = Path { indices: after(to.indices, steps), values: after(to.values, steps), residual: after(to.residual, d) };
        each(after(x, d), rows.min(n - first), to)?;
    }
    Ok(())
}

/// Rows of an orthogonal pursuit that are done at once: their factors are the largest of what each has.
pub fn orthogonal_room(n: usize, steps: usize) -> usize {
    (SCRATCH / 8 / steps.saturating_mul(steps).max(1)).clamp(1, block(n).max(1))
}

/// Takes `n` rows at `x`, `[n, d]`, f32, apart, `rows` of them at a time; after each step the coefficients of all atoms taken are fitted
/// again.
///
/// # Errors
/// No memory on the device, a launch that fails.
pub fn pursue_orthogonally(engine: &dyn Engine, x: u64, n: usize, atoms: &Atoms, rule: &PursuitRule, to: &Path, rows: usize) -> Result<()> {
    let (m, d, steps) = (atoms.m, atoms.d, rule.steps);
    let encoder = Encoder { d_sae: m, d, w: atoms.at, bias: 0, half: None };
    blocks(n, rows, x, to, (d, steps), &mut |x, n, to| {
        let rows = Rows::start(engine, x, n, atoms, rule, to)?;
        let (factors, vectors) = (engine.alloc(8 * n * steps * steps)?, engine.alloc(16 * n * steps)?);
        rows.run(&mut |live| {
            let best = rows.best(live, &encoder, true)?;
            let [steps, _, _, residuals, indices, values, states, floors] = rows.step();
            let args = [
                (&best).into(),
                Arg::Ptr(x),
                Arg::Ptr(atoms.at),
                (&live.rows).into(),
                (d as u32).into(),
                steps,
                residuals,
                indices,
                values,
                states,
                floors,
                (&factors).into(),
                (&vectors).into(),
            ];
            engine.launch("pursuit_fit", Grid::line(live.n, rows.threads()), &args)
        })
    })
}

/// A block of rows on its way.
struct Rows<'a> {
    engine: &'a dyn Engine,
    atoms: &'a Atoms,
    rule: &'a PursuitRule,
    n: usize,
    to: Path,
    /// Steps taken, and [`ENDED`], `[n]`.
    states: Buffer,
    /// Squared norms below which rows end, `[n]`.
    floors: Buffer,
}

/// Those that have not ended.
struct Live {
    n: usize,
    /// Their numbers, `[n]`.
    rows: Buffer,
    /// Their residuals, `[n, d]`.
    residuals: Buffer,
}

impl<'a> Rows<'a> {
    fn start(engine: &'a dyn Engine, x: u64, n: usize, atoms: &'a Atoms, rule: &'a PursuitRule, to: Path) -> Result<Self> {
        let (states, floors) = (engine.alloc(4 * n)?, engine.alloc(4 * n)?);
        let rows = Self { engine, atoms, rule, n, to, states, floors };
        let args = [
            Arg::Ptr(x),
            (atoms.d as u32).into(),
            (rule.steps as u32).into(),
            rule.tolerance.into(),
            u32::from(rule.relative).into(),
            Arg::Ptr(to.residual),
            Arg::Ptr(to.indices),
            Arg::Ptr(to.values),
            (&rows.states).into(),
            (&rows.floors).into(),
        ];
        engine.launch("pursuit_start", Grid::line(n, rows.threads()), &args)?;
        Ok(rows)
    }

    /// Threads for work on vectors of d elements.
    fn threads(&self) -> u32 {
        self.atoms.d.div_ceil(8).next_multiple_of(32).clamp(32, 512) as u32
    }

    /// Calls `step` with the rows that have not ended, until all have.
    fn run(&self, step: &mut dyn FnMut(&Live) -> Result<()>) -> Result<()> {
        let mut states = vec![0; self.n];
        loop {
            let live: Vec<u32> = (0..self.n as u32).filter(|&r| states[r as usize] & ENDED == 0).collect();
            if live.is_empty() || self.atoms.m == 0 {
                return Ok(());
            }
            step(&self.gather(&live)?)?;
            states = numbers(self.engine, &self.states, self.n)?;
        }
    }

    fn gather(&self, live: &[u32]) -> Result<Live> {
        let (engine, d) = (self.engine, self.atoms.d);
        let (rows, residuals) = (engine.alloc(4 * live.len())?, engine.alloc(4 * live.len() * d)?);
        engine.upload(&live.iter().flat_map(|r| r.to_le_bytes()).collect::<Vec<_>>(), &rows)?;
        let args = [Arg::Ptr(self.to.residual), (&rows).into(), (d as u32).into(), (&residuals).into()];
        engine.launch("pursuit_gather", Grid::line(live.len(), self.threads()), &args)?;
        Ok(Live { n: live.len(), rows, residuals })
    }

    /// What a step needs of the rule, and where it goes.
    fn step(&self) -> [Arg; 8] {
        let pick = match self.rule.pick {
            Pick::NonNeg => 0u32,
            Pick::Max => 1,
            Pick::Signed => 2,
        };
        [
            (self.rule.steps as u32).into(),
            pick.into(),
            u32::from(self.rule.stop_on_repeat).into(),
            Arg::Ptr(self.to.residual),
            Arg::Ptr(self.to.indices),
            Arg::Ptr(self.to.values),
            (&self.states).into(),
            (&self.floors).into(),
        ]
    }

    /// Up to [`REFRESH`] steps that update inner products by rows of the Gram matrix.
    fn by_gram(&self, live: &Live, gram: u64, most: usize) -> Result<()> {
        let (engine, Atoms { at, m, d, .. }) = (self.engine, *self.atoms);
        let products = engine.alloc(4 * live.n * m)?;
        engine.product(Operands::F32, live.residuals.address, at, live.n, m, d, products.address, m)?;
        let (kernel, shared) = match (4 * m <= most, m.is_multiple_of(4) && gram.is_multiple_of(16)) {
            (true, true) => ("pursuit_gram", 4 * m),
            (true, false) => ("pursuit_gram_odd", 4 * m),
            (false, _) => ("pursuit_gram_wide", 0),
        };
        let threads = self.threads().max(m.div_ceil(16).next_multiple_of(32).clamp(32, 512) as u32);
        let matrices = [(&products).into(), Arg::Ptr(at), Arg::Ptr(gram), (&live.rows).into()];
        let sizes = [m, d, REFRESH].map(|v| Arg::from(v as u32));
        let args = [&matrices[..], &sizes, &self.step()].concat();
        engine.launch(kernel, Grid::line(live.n, threads).with_shared(shared), &args)
    }

    /// One step that meets all atoms again.
    fn by_atoms(&self, live: &Live, encoder: &Encoder) -> Result<()> {
        let best = match &encoder.half {
            Some(screen) => self.screened(live, encoder, screen)?,
            None => self.best(live, encoder, false)?,
        };
        let d = Arg::from(self.atoms.d as u32);
        let args = [&[(&best).into(), Arg::Ptr(self.atoms.at), (&live.rows).into(), d][..], &self.step()].concat();
        self.engine.launch("pursuit_step", Grid::line(live.n, self.threads()), &args)
    }

    /// The atom that each residual picks, of positive ones: keys `[n]`, 0 for none. Exact.
    fn screened(&self, live: &Live, encoder: &Encoder, (half, norms): &(Buffer, Buffer)) -> Result<Buffer> {
        let (engine, n, d) = (self.engine, live.n, self.atoms.d);
        let (best, rows, row_norms, bad) = (engine.alloc(8 * n)?, engine.alloc(2 * n * d)?, engine.alloc(8 * n)?, engine.alloc(4)?);
        engine.zero(&bad)?;
        cast(engine, live.residuals.address, NULL, n, d, NULL, &rows, Some(&row_norms), &bad)?;
        let lists = Lists::new(engine, n, room(1, true))?;
        let of_rows = (n, live.residuals.address, rows.address, &row_norms);
        certified_lists(engine, encoder, (half.address, norms), of_rows, 1, &lists)?;
        let args = [(&lists.entries).into(), (&lists.counts).into(), (n as u32).into(), (lists.cap as u32).into(), (&best).into()];
        engine.launch("pursuit_listed", Grid::warps(n), &args)?;
        Ok(best)
    }

    /// The same by f32 products, for any pick; those of atoms already taken do not count if they are to be `distinct`.
    fn best(&self, live: &Live, encoder: &Encoder, distinct: bool) -> Result<Buffer> {
        let (engine, n) = (self.engine, live.n);
        let best = engine.alloc(8 * n)?;
        engine.zero(&best)?;
        let [steps, pick, _, _, indices, _, states, _] = self.step();
        scored(engine, encoder, n, Operands::F32, live.residuals.address, self.atoms.at, &mut |scores, stride, columns, first| {
            let chunk = [scores.into(), (stride as u64).into(), (n as u32).into(), (columns as u32).into(), (first as u32).into()];
            if distinct {
                let args = [&chunk[..], &[(&live.rows).into(), steps, indices, states]].concat();
                engine.launch("pursuit_mask", Grid::warps(n), &args)?;
            }
            engine.launch("pursuit_best", Grid::warps(n), &[&chunk[..], &[pick, (&best).into()]].concat())
        })?;
        Ok(best)
    }
}
