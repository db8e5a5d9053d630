//! What to do to a latent's code, as written: `12=+8`, `12=5`, `12=x2`, `12=0`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// What becomes of a code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// So much more (or less), whether the latent fires or not.
    Add(f32),
    /// Exactly this, whether it fires or not; 0 ablates.
    Set(f32),
    /// So many times what it is; nothing where it does not fire.
    Scale(f32),
}

/// A change of one latent's code. Values are in units of the dictionary's codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edit {
    /// Which.
    pub latent: u32,
    /// How.
    pub change: Change,
}

impl Edit {
    /// The latent silenced.
    pub fn ablate(latent: u32) -> Self {
        Self { latent, change: Change::Set(0.0) }
    }

    /// What must be added to the code `z` (0 where the latent does not fire).
    pub fn difference(&self, z: f32) -> f32 {
        match self.change {
            Change::Add(by) => by,
            Change::Set(to) => to - z,
            Change::Scale(by) => by * z - z,
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.change {
            Change::Add(by) => write!(f, "{}={by:+}", self.latent),
            Change::Set(to) => write!(f, "{}={to}", self.latent),
            Change::Scale(by) => write!(f, "{}=x{by}", self.latent),
        }
    }
}

impl Serialize for Edit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Edit {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || {
            let help = "write LATENT=+8 or LATENT=-8 (add), LATENT=5 (clamp), LATENT=x2 (scale) or LATENT=0 (ablate)";
            Error::request(format!("`{s}` changes no latent"), help)
        };
        let (latent, change) = s.split_once('=').ok_or_else(bad)?;
        let latent = latent.trim().parse().map_err(|_| bad())?;
        let change = change.trim();
        let number = |text: &str| text.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(bad);
        let change = match change.as_bytes().first() {
            Some(b'x' | b'X') => Change::Scale(number(&change[1..])?),
            Some(b'+' | b'-') => Change::Add(number(change)?),
            _ => Change::Set(number(change)?),
        };
        Ok(Self { latent, change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_read_and_written() {
        for (text, change) in [
            ("12=+8", Change::Add(8.0)),
            ("12=-0.5", Change::Add(-0.5)),
            ("12=5", Change::Set(5.0)),
            ("12=x2", Change::Scale(2.0)),
            ("12=0", Change::Set(0.0)),
        ] {
            let edit: Edit = text.parse().unwrap();
            assert_eq!(edit, Edit { latent: 12, change });
            assert_eq!(edit.to_string(), text);
        }
        for wrong in ["12", "=5", "a=5", "12=", "12=x", "12=inf", "12=+nan", "-1=3"] {
            let error = wrong.parse::<Edit>().unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("LATENT=+8"), "{wrong}");
        }
        assert_eq!(Edit { latent: 0, change: Change::Scale(1.0) }.difference(3.7), 0.0);
        assert_eq!(Edit::ablate(0).difference(3.0), -3.0);
    }
}
