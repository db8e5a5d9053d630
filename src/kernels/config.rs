//! The `[kernels]` table: how things are computed. Nothing in it changes a result, so no artefact records it.

use serde::{Deserialize, Serialize};

use super::{set_screen, Screen};

/// The `[kernels]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelsConfig {
    /// What looks for a row's candidates before float64 decides: `auto` (the fastest here), `off` (f32), `bf16` or `int8`.
    pub screen: Screen,
}

impl Default for KernelsConfig {
    fn default() -> Self {
        Self { screen: Screen::Auto }
    }
}

impl KernelsConfig {
    /// From now on, in this process.
    pub fn apply(&self) {
        set_screen(self.screen);
    }
}
