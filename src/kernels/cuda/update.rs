//! Launches of `kernels/update.cu`: the gradient's norm, the factor that clips it, and the update of everything, without the host waiting
//! for any of it. Buffers are made once.

use super::super::cpu::adam::Rule;
use super::super::Adam;
use super::columns::DeviceColumns;
use super::engine::{Arg, Buffer, Engine, Grid, NULL};
use super::reduce::{ColumnSums, Matrix, Reduce};
use super::rows::{block, Block, Kind, RUN};
use crate::error::Result;

/// What a list of entries is known by.
#[derive(Debug, Clone, Copy)]
pub enum Entries<'a> {
    /// The entries themselves, and room for what they gather.
    Columns(&'a DeviceColumns, &'a Gathered),
    /// The sums that they lead to, made otherwise (by products of matrices, where few latents have many entries each).
    #[cfg_attr(not(test), allow(dead_code))]
    Sums {
        /// u32 `[d_sae + 1]`: a latent's rows of `sums` begin here and end where the next one's begin.
        segments: u64,
        /// f32 `[_, d_out + d_in]`: scaled gradients of the decoder's row and of the encoder's.
        sums: u64,
        /// f32 `[_]`: scaled gradients of the encoder's bias.
        biases: u64,
    },
}

/// Entries by latent with the gradient at what they reconstruct.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The entries.
    pub entries: Entries<'a>,
    /// `[groups, n, d_out]`, of the kind of the update's rows.
    pub grads: u64,
    /// The latent after each group's last, u32 `[groups]`; 0 with one group.
    pub ends: u64,
    /// How many groups: latents are taught by the first that holds them.
    pub groups: usize,
    /// Makes `grads` a gradient.
    pub scale: f32,
    /// A further factor that only the device knows, f32, or 0.
    pub times: u64,
}

/// A parameter with its first and second moment, f32.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// The parameter.
    pub at: u64,
    /// Its first moment.
    pub first: u64,
    /// Its second moment.
    pub second: u64,
}

impl Moved {
    fn args(&self) -> [Arg; 3] {
        [self.at, self.first, self.second].map(Arg::Ptr)
    }
}

/// All that an update writes; 0 stands for what there is none of.
#[derive(Debug, Clone, Copy)]
pub struct Parameters {
    /// `[d_sae, d_in]`.
    pub w_enc: Moved,
    /// `[d_sae]`.
    pub b_enc: Moved,
    /// `[d_sae, d_out]`.
    pub w_dec: Moved,
    /// `[d_out]`.
    pub b_dec: Moved,
    /// bf16 of `w_enc`.
    pub half_enc: u64,
    /// bf16 of `w_dec`.
    pub half_dec: u64,
    /// Norms of `half_enc`'s rows and of what they lack, f32 `[d_sae, 2]`.
    pub norms: u64,
    /// Tokens since each latent last fired, u64 `[d_sae]`.
    pub silent: u64,
}

/// A step's gradient, before it is known by latent.
#[derive(Debug, Clone, Copy)]
pub struct StepGrad<'a> {
    /// The codes.
    pub codes: Source<'a>,
    /// AuxK's.
    pub aux: Option<Source<'a>>,
    /// What the encoder read, `[n, d_in]`, of the update's kind of rows.
    pub x: u64,
    /// Rows.
    pub n: usize,
    /// A part of `b_dec`'s gradient that does not come from `codes.grads`, f64 `[d_out]`, or 0.
    pub b_dec: u64,
    /// Is `x` centred by `b_dec`?
    pub centred: bool,
}

/// Sizes that an update is made for.
#[derive(Debug, Clone, Copy)]
pub struct UpdateShape {
    /// Latents.
    pub d_sae: usize,
    /// Width of the encoder's rows.
    pub d_in: usize,
    /// Width of the decoder's rows.
    pub d_out: usize,
    /// Rows of a batch.
    pub n: usize,
    /// How gradients and inputs lie in memory.
    pub kind: Kind,
    /// Are decoder rows kept at norm 1?
    pub unit_norm: bool,
}

/// What the entries of a list gather: room that is made once.
#[derive(Debug)]
pub struct Gathered {
    /// Gradient of each entry's value, by latent, f32: [`Update::measure`] finds it.
    pub dz: Buffer,
    sums: Buffer,
    biases: Buffer,
}

impl Gathered {
    /// For `columns`, with decoder and encoder rows of `width` elements together.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(engine: &dyn Engine, columns: &DeviceColumns, width: usize) -> Result<Self> {
        let most = columns.shape.max_segments().max(1);
        Ok(Self {
            dz: engine.alloc(4 * columns.shape.capacity.max(1))?,
            sums: engine.alloc(4 * most * width)?,
            biases: engine.alloc(4 * most)?,
        })
    }
}

/// The update, with what it keeps between kernels.
#[derive(Debug)]
pub struct Update {
    shape: UpdateShape,
    /// f32 `[d_sae]`: how much of each decoder row's gradient is parallel to the row and was taken away.
    pub parallel: Buffer,
    bias: Buffer,
    squares: Buffer,
    b_dec_sums: Buffer,
    /// The gradient of `b_dec`, f32 `[d_out]`.
    pub b_dec_grad: Buffer,
    reduce: Reduce,
    /// f32 `[2]`: the factor that clips, and 1, or 0 where the step was not applied.
    pub control: Buffer,
    /// f64: the gradient's norm before clipping.
    pub norm: Buffer,
    /// u32: steps whose gradient was not finite; none of them was applied.
    pub bad: Buffer,
}

impl Update {
    /// Room for updates.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(engine: &dyn Engine, shape: UpdateShape) -> Result<Self> {
        let UpdateShape { d_sae, d_in, d_out, n, .. } = shape;
        let bad = engine.alloc(4)?;
        engine.zero(&bad)?;
        Ok(Self {
            shape,
            parallel: engine.alloc(4 * d_sae)?,
            bias: engine.alloc(4 * d_sae)?,
            squares: engine.alloc(8 * d_sae)?,
            b_dec_sums: engine.alloc(8 * d_out)?,
            b_dec_grad: engine.alloc(4 * d_out)?,
            reduce: Reduce::new(engine, d_sae, n.max(d_sae), d_in.max(d_out))?,
            control: engine.alloc(8)?,
            norm: engine.alloc(8)?,
            bad,
        })
    }

    fn block(&self, grad: &StepGrad<'_>, others: &[u64]) -> Result<Block> {
        let aux = grad.aux.map_or(0, |aux| aux.grads);
        let addresses: Vec<u64> = [grad.codes.grads, aux, grad.x].iter().chain(others).copied().collect();
        block(&[self.shape.d_in, self.shape.d_out], RUN, &addresses)
    }

    fn kernel(&self, block: Block, names: [&'static str; 4]) -> &'static str {
        self.shape.kind.pick(block.odd, names)
    }

    /// `ends, groups, stride` of the codes' gradients.
    fn groups(&self, grad: &StepGrad<'_>) -> [Arg; 3] {
        let stride = (grad.n * self.shape.d_out) as u64;
        [Arg::Ptr(grad.codes.ends), (grad.codes.groups as u32).into(), stride.into()]
    }

    fn lists(grad: &StepGrad<'_>) -> Vec<Arg> {
        let mut args = source(&grad.codes).to_vec();
        match &grad.aux {
            Some(aux) => args.extend(source(aux)),
            None => args.extend([NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0f32.into()]),
        }
        args
    }

    /// Finds the gradient's norm and the factor that clips it to `clip_norm` (0: none), the gradients of all values and of both biases.
    ///
    /// # Errors
    /// Rows that no block can hold, a launch that fails.
    pub fn measure(&self, engine: &dyn Engine, grad: &StepGrad<'_>, parameters: &Parameters, clip_norm: f32) -> Result<()> {
        let UpdateShape { d_sae, d_in, d_out, kind, unit_norm, .. } = self.shape;
        let block = self.block(grad, &[parameters.w_dec.at])?;
        let widths = [Arg::from(d_in as u32), (d_out as u32).into()];
        let (x, w_dec) = (Arg::Ptr(grad.x), Arg::Ptr(parameters.w_dec.at));
        let names = ["gather_segments_f32", "gather_segments_bf16", "gather_segments_f32_odd", "gather_segments_bf16_odd"];
        let of_aux = grad.aux.as_ref().map(|aux| (aux, [NULL, 1u32.into(), 0u64.into()]));
        for (list, groups) in [(&grad.codes, self.groups(grad))].into_iter().chain(of_aux) {
            let Entries::Columns(columns, _) = list.entries else { continue };
            let most = columns.shape.max_segments();
            if most == 0 {
                continue;
            }
            let mut args = source(list).to_vec();
            args.extend(groups);
            args.extend([Arg::from(&columns.owners), (columns.shape.segment as u32).into(), (most as u32).into(), (d_sae as u32).into()]);
            args.extend([x, w_dec]);
            args.extend(widths);
            engine.launch(self.kernel(block, names), Grid::line(most, block.threads), &args)?;
        }
        let mut args = Self::lists(grad);
        args.extend(self.groups(grad));
        args.extend([x, w_dec]);
        args.extend(widths);
        args.push(u32::from(unit_norm).into());
        args.extend([&self.parallel, &self.bias, &self.squares].map(Arg::from));
        let names = ["measure_f32", "measure_bf16", "measure_f32_odd", "measure_bf16_odd"];
        engine.launch(self.kernel(block, names), Grid::line(d_sae, block.threads), &args)?;
        // b_dec: the columns of the gradient at the reconstruction, less what its centring of the encoder's input carries back.
        let grads = Matrix { at: grad.codes.grads, kind, n: grad.n, d: d_out };
        let (sums, rounded) = (self.b_dec_sums.address, self.b_dec_grad.address);
        let to = ColumnSums { weights: 0, factor: grad.codes.scale, base: grad.b_dec, total: sums, rounded };
        self.reduce.columns(engine, &grads, &to)?;
        if grad.centred {
            let encoder = Matrix { at: parameters.w_enc.at, kind: Kind::F32, n: d_sae, d: d_in };
            let to = ColumnSums { weights: self.bias.address, factor: -1.0, base: sums, total: 0, rounded };
            self.reduce.columns(engine, &encoder, &to)?;
        }
        let (parts, count) = self.reduce.parts(engine, self.squares.address, d_sae)?;
        let outs = [&self.control, &self.norm, &self.bad].map(Arg::from);
        let args = [parts.into(), (count as u32).into(), (&self.b_dec_grad).into(), widths[1], clip_norm.into(), outs[0], outs[1], outs[2]];
        engine.launch("clip_factor", Grid::line(1, 256), &args)
    }

    /// Adam on everything along the gradient that [`Update::measure`] saw, with the factor that it found (`adam.grad_scale` is not read);
    /// nothing where the gradient was not finite.
    ///
    /// # Errors
    /// Rows that no block can hold, a launch that fails.
    pub fn apply(&self, engine: &dyn Engine, grad: &StepGrad<'_>, parameters: &Parameters, adam: &Adam) -> Result<()> {
        let UpdateShape { d_sae, d_in, d_out, unit_norm, .. } = self.shape;
        let Parameters { w_enc, b_enc, w_dec, b_dec, half_enc, half_dec, norms, silent } = parameters;
        let moved = [w_enc, w_dec].map(|m| [m.at, m.first, m.second]).concat();
        let block = self.block(grad, &[&moved[..], &[*half_enc, *half_dec]].concat())?;
        let rule = Rule::new(adam);
        let rule = [rule.beta1, rule.beta2, rule.eps, rule.step_size, rule.root_correction].map(Arg::from);
        let mut args = Self::lists(grad);
        args.extend(self.groups(grad));
        args.extend([(grad.n as u32).into(), Arg::Ptr(grad.x), (d_in as u32).into(), (d_out as u32).into(), u32::from(unit_norm).into()]);
        args.extend([&self.parallel, &self.bias, &self.control].map(Arg::from));
        args.extend(rule);
        args.extend([w_dec, w_enc, b_enc].iter().flat_map(|m| m.args()));
        args.extend([half_dec, half_enc, norms, silent].map(|&at| Arg::Ptr(at)));
        let grid = Grid { blocks: [d_sae as u32, 2], threads: block.threads, shared: 0 };
        engine.launch(self.kernel(block, ["update_f32", "update_bf16", "update_f32_odd", "update_bf16_odd"]), grid, &args)?;
        let mut args = b_dec.args().to_vec();
        args.extend([Arg::from(&self.b_dec_grad), (d_out as u32).into(), (&self.control).into()]);
        args.extend(rule);
        engine.launch("update_vector", Grid::threads(d_out), &args)
    }
}

/// The arguments of `SOURCE` in the kernels.
fn source(list: &Source<'_>) -> [Arg; 10] {
    let (grads, times, scale) = (Arg::Ptr(list.grads), Arg::Ptr(list.times), Arg::from(list.scale));
    match list.entries {
        Entries::Columns(columns, gathered) => {
            let [starts, rows, values, segments] = [&columns.starts, &columns.rows, &columns.values, &columns.segments].map(Arg::from);
            let [dz, sums, biases] = [&gathered.dz, &gathered.sums, &gathered.biases].map(Arg::from);
            [starts, rows, values, dz, segments, sums, biases, grads, times, scale]
        }
        Entries::Sums { segments, sums, biases } => {
            let [segments, sums, biases] = [segments, sums, biases].map(Arg::Ptr);
            [NULL, NULL, NULL, NULL, segments, sums, biases, grads, times, scale]
        }
    }
}
