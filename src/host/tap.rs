//! Taps: who looks at, or changes, the activations of a forward pass.
//!
//! Every activation is offered as `[b, t, width]`, f32, whatever the host computes in. Not for: what to do with what was captured.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::hook::HookPoint;

/// Offered every activation of a forward pass.
pub trait Tap {
    /// Does it care about this point? If not, the activation is not even offered.
    fn wants(&self, at: &HookPoint) -> bool;

    /// The activation at a point, `[b, t, width]`, f32. `None` = looked only; `Some(y)` = go on with `y`, of the same shape.
    ///
    /// # Errors
    /// Whatever goes wrong in the tap ends the forward pass.
    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>>;

    /// The forward pass may stop after this point. `None` = run to the logits.
    fn last(&self) -> Option<HookPoint>;
}

/// Looks at nothing; the pass runs to the logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _at: &HookPoint) -> bool {
        false
    }

    fn visit(&mut self, _at: &HookPoint, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn last(&self) -> Option<HookPoint> {
        None
    }
}

/// Keeps the activations of some points. The pass stops after the last of them, unless told to go on.
///
/// ```no_run
/// # use lapidary::{host, HookPoint};
/// # fn main() -> lapidary::Result<()> {
/// let model = host::load("path/to/gpt2", &host::LoadOptions::default())?;
/// let at: HookPoint = "blocks.5.hook_resid_post".parse()?;
/// let mut capture = host::Capture::new(&[at]);
/// model.forward(&host::Tokens::new(&[vec![15496, 995]], &candle_core::Device::Cpu)?, &mut capture)?;
/// let x = capture.get(&at)?; // [1, 2, d_model], f32
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Capture {
    points: Vec<HookPoint>,
    seen: BTreeMap<HookPoint, Tensor>,
    to_the_end: bool,
}

impl Capture {
    /// Captures `points`; the pass stops after the last.
    pub fn new(points: &[HookPoint]) -> Self {
        Self { points: points.to_vec(), ..Self::default() }
    }

    /// Captures `points` and runs on to the logits.
    pub fn with_logits(points: &[HookPoint]) -> Self {
        Self { points: points.to_vec(), to_the_end: true, ..Self::default() }
    }

    /// What was seen at `at` in the last pass, `[b, t, width]`, f32.
    ///
    /// # Errors
    /// When the pass did not come by that point, or it was not asked for.
    pub fn get(&self, at: &HookPoint) -> Result<&Tensor> {
        self.seen.get(at).ok_or_else(|| missing(at))
    }

    /// Takes what was seen at `at` in the last pass out of the capture.
    ///
    /// # Errors
    /// As [`Capture::get`].
    pub fn take(&mut self, at: &HookPoint) -> Result<Tensor> {
        self.seen.remove(at).ok_or_else(|| missing(at))
    }
}

fn missing(at: &HookPoint) -> Error {
    Error::request(format!("nothing was captured at {at}"), "list the point in the capture, and check that the host has it")
}

impl Tap for Capture {
    fn wants(&self, at: &HookPoint) -> bool {
        self.points.contains(at)
    }

    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        self.seen.insert(*at, x.clone());
        Ok(None)
    }

    fn last(&self) -> Option<HookPoint> {
        if self.to_the_end {
            None
        } else {
            self.points.iter().max().copied()
        }
    }
}

/// Replaces the activation at one point by a function of it, and runs to the logits.
pub struct Splice<F> {
    /// Where.
    pub at: HookPoint,
    /// From the activation, `[b, t, width]`, f32, to its replacement, of the same shape.
    pub f: F,
}

impl<F: FnMut(&Tensor) -> Result<Tensor>> Splice<F> {
    /// Replaces the activation at `at` by `f` of it.
    pub fn new(at: HookPoint, f: F) -> Self {
        Self { at, f }
    }
}

impl<F: FnMut(&Tensor) -> Result<Tensor>> Tap for Splice<F> {
    fn wants(&self, at: &HookPoint) -> bool {
        *at == self.at
    }

    fn visit(&mut self, _at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        (self.f)(x).map(Some)
    }

    fn last(&self) -> Option<HookPoint> {
        None
    }
}

/// Adds a vector at one point, at every position, and runs to the logits.
#[derive(Debug, Clone)]
pub struct Steer {
    /// Where.
    pub at: HookPoint,
    /// What to add, `[width]`.
    pub vector: Tensor,
    /// How much of it.
    pub scale: f64,
}

impl Tap for Steer {
    fn wants(&self, at: &HookPoint) -> bool {
        *at == self.at
    }

    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        let vector = row_for(at, x, &self.vector)?;
        Ok(Some(x.broadcast_add(&(vector * self.scale)?)?))
    }

    fn last(&self) -> Option<HookPoint> {
        None
    }
}

/// Replaces the activation at one point, at every position, by zero or by a fixed vector, and runs to the logits.
#[derive(Debug, Clone)]
pub struct Ablate {
    /// Where.
    pub at: HookPoint,
    /// What stands there instead, `[width]`; `None` = zero.
    pub value: Option<Tensor>,
}

impl Ablate {
    /// Zero at `at`.
    pub fn zero(at: HookPoint) -> Self {
        Self { at, value: None }
    }

    /// A fixed vector, `[width]`, at `at`: the mean over a corpus, say.
    pub fn to(at: HookPoint, value: Tensor) -> Self {
        Self { at, value: Some(value) }
    }
}

impl Tap for Ablate {
    fn wants(&self, at: &HookPoint) -> bool {
        *at == self.at
    }

    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match &self.value {
            None => x.zeros_like()?,
            Some(value) => row_for(at, x, value)?.broadcast_as(x.shape())?.contiguous()?,
        }))
    }

    fn last(&self) -> Option<HookPoint> {
        None
    }
}

/// `vector` as a row that fits `x`, in its dtype and on its device.
fn row_for(at: &HookPoint, x: &Tensor, vector: &Tensor) -> Result<Tensor> {
    let (expected, got) = (x.dim(candle_core::D::Minus1)?, vector.elem_count());
    if expected != got {
        return Err(Error::Width {
            what: format!("the vector for {at}"),
            expected,
            got,
            help: "pass a vector as wide as the hook point".into(),
        });
    }
    Ok(vector.flatten_all()?.to_dtype(DType::F32)?.to_device(x.device())?)
}

/// Two taps in one pass: the second sees what the first made of the activation.
pub struct Pair<'a>(pub &'a mut dyn Tap, pub &'a mut dyn Tap);

impl Tap for Pair<'_> {
    fn wants(&self, at: &HookPoint) -> bool {
        self.0.wants(at) || self.1.wants(at)
    }

    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>> {
        let first = if self.0.wants(at) { self.0.visit(at, x)? } else { None };
        let second = if self.1.wants(at) { self.1.visit(at, first.as_ref().unwrap_or(x))? } else { None };
        Ok(second.or(first))
    }

    /// The later of the two; none when either wants the logits. A change alone does not ask for logits that nobody reads, so wrap
    /// a capture that must stop the pass alone.
    fn last(&self) -> Option<HookPoint> {
        Some(self.0.last()?.max(self.1.last()?))
    }
}
