//! Progress as events. The library tells; whoever called decides what to show. The CLI draws bars, notebooks and tests stay silent.

/// Who listens to a long piece of work. All methods have defaults that do nothing.
pub trait Progress: Sync {
    /// Work begins: `total` in `unit`s ("tokens", "rows", "steps"), if known.
    fn begin(&self, _task: &str, _total: Option<u64>, _unit: &'static str) {}
    /// `n` more units are done.
    fn advance(&self, _n: u64) {}
    /// A short figure beside the bar ("fvu 0.213").
    fn status(&self, _text: &str) {}
    /// The work that began last is over.
    fn end(&self) {}
    /// A line worth keeping.
    fn note(&self, _text: &str) {}
    /// Something the user should know and may want to change.
    fn warn(&self, _text: &str) {}
    /// Should the work stop at its next safe point?
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Hears nothing, stops nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
