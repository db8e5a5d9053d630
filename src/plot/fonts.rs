//! Fonts without a system: DejaVu Sans, in the binary.

use std::sync::OnceLock;

use plotters::style::{register_font, FontStyle};

use crate::error::{Error, Result};

/// The family that every text asks for. SVG readers without DejaVu fall back to their own sans-serif.
pub const FAMILY: &str = "sans-serif";

static REGISTERED: OnceLock<bool> = OnceLock::new();

/// Registers the fonts once; must come before the first text, SVG included (text is measured there too).
pub fn register() -> Result<()> {
    let ok = *REGISTERED.get_or_init(|| {
        register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular()).is_ok()
            && register_font(FAMILY, FontStyle::Bold, dejavu::sans::bold()).is_ok()
    });
    if ok {
        Ok(())
    } else {
        Err(Error::request("the built-in fonts cannot be read", "report this: they are part of the binary"))
    }
}
