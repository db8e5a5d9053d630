//! What encoding and a training step cost on this machine: the work behind `lapidary bench step`, and the baselines of `benches/`.
//!
//! ```text
//! rows.rs (seeded, a file, shards) -> step.rs (a learner, one timed sample at a time) -> report.rs
//! process.rs: wall and CPU clocks, resident memory       dense.rs: the same selection without a fused kernel
//! ```
//!
//! Not for: timing kernels alone (`benches/`, criterion), nor for other libraries (`benches/peers/`).

mod dense;
mod process;
mod report;
mod rows;
mod step;

pub use dense::{dense_topk, sorted_topk};
pub use process::{cpu_features, cpu_model, cpu_seconds, Clock, Memory, Sample};
pub use report::{MemoryReport, QualityReport, StageReport, StepReport};
pub use rows::BenchRows;
pub use step::{Stage, StepBench, StepConfig};
