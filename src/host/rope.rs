//! Rotary positions: how configurations spell them, and the table of cosines and sines they mean.
//!
//! Su et al., "RoFormer" (2021). Longer contexts: linear interpolation (Chen et al. 2023), dynamic NTK, YaRN (Peng et al. 2023),
//! LongRoPE (Ding et al. 2024), and the ramp of Llama 3.1. Not for: rotating (`layers`, `cpu`).

use serde_json::Value;

use super::config::Config;
use crate::error::Result;

/// Rotary positions, in the half-split convention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeSpec {
    /// The width that frequencies are spread over; of a head's dimensions, this many rotate, rounded up to an even number.
    pub dims: usize,
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// All frequencies divided.
    Linear {
        factor: f64,
    },
    /// The base grows with the length of the batch beyond the original context.
    Dynamic {
        factor: f64,
        original_context: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// The same idea with a ramp over dimensions, and all angles' cosines and sines scaled.
    Yarn {
        factor: f64,
        /// First and last dimension of the ramp.
        ramp: (f64, f64),
        amplitude: f64,
    },
    /// Each frequency divided by its own factor: one list up to the original context, another for longer batches.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_context: usize,
        amplitude: f64,
    },
}

impl RopeSpec {
    /// How many of a head's dimensions rotate, from the first.
    pub fn n_dims(&self) -> usize {
        2 * self.dims.div_ceil(2)
    }

    /// Cosines and sines of positions 0..t, `[t, n_dims / 2]` each. Rounded to f32 where Hugging Face rounds, so that long contexts
    /// agree: exponents, powers, frequencies, angles.
    pub fn table(&self, t: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies: Vec<f32> = (0..self.n_dims() / 2).map(|i| self.frequency(i, t)).collect();
        let amplitude = match self.scaling {
            RopeScaling::Yarn { amplitude, .. } | RopeScaling::LongRope { amplitude, .. } => amplitude as f32,
            _ => 1.0,
        };
        let angles = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..t).flat_map(|p| frequencies.iter().map(move |w| amplitude * f(f64::from(p as f32 * w)) as f32)).collect()
        };
        (angles(f64::cos), angles(f64::sin))
    }

    /// Radians per position of the `i`-th pair, in a batch of `t` positions.
    fn frequency(&self, i: usize, t: usize) -> f32 {
        let exponent = f64::from((2 * i) as f32 / self.dims as f32);
        let wavelength = |theta: f64| theta.powf(exponent) as f32; // in units of 2 pi
        let plain = 1.0 / wavelength(self.theta);
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / *factor as f32,
            RopeScaling::Dynamic { factor, original_context } => {
                let length = (t as f64).max(*original_context);
                let dims = self.dims as f64;
                let growth = (factor * length / original_context - (factor - 1.0)).powf(dims / (dims - 2.0));
                1.0 / wavelength(self.theta * growth)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                // Turns over the original context: below `low` the frequency is divided, above `high` it is kept.
                let plain = f64::from(plain);
                let turns = original_context * plain / std::f64::consts::TAU;
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                ((1.0 - keep) * plain / factor + keep * plain) as f32
            }
            RopeScaling::Yarn { factor, ramp: (first, last), .. } => {
                let divided = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                let slow = 1.0 / (factor * f64::from(wavelength(self.theta)));
                (slow * divided + f64::from(plain) * (1.0 - divided)) as f32
            }
            RopeScaling::LongRope { short, long, original_context, .. } => {
                let factors = if t > *original_context { long } else { short };
                1.0 / (factors[i] as f32 * wavelength(self.theta))
            }
        }
    }

    /// Longest context that the kind of scaling is made for, when that is more than the configuration says.
    pub fn stretches_to(&self, n_context: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { factor, .. } => (n_context as f64 * factor.max(1.0)) as usize,
            _ => n_context,
        }
    }
}

/// What a family takes for granted about its rotary positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    pub theta: f64,
    /// Key of the base outside any table.
    pub theta_key: &'static str,
    /// Key and default of the share of a head that rotates; `None`: the whole head, always.
    pub partial: Option<(&'static str, f64)>,
    /// Original context outside any table, which then counts (Phi-3), and its default.
    pub original_context: Option<usize>,
    /// `su` and `yarn` are old names of `longrope` (Phi-3).
    pub longrope_aliases: bool,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, theta_key: "rope_theta", partial: None, original_context: None, longrope_aliases: false }
    }
}

/// Reads either style: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`. `layer_type` picks a table of its own
/// for a kind of layer, where `rope_parameters` has such tables.
///
/// # Errors
/// On impossible values, unknown kinds, and options of a table that the kind does not have.
pub(super) fn read(config: &Config, d_head: usize, n_context: usize, defaults: &RopeDefaults, layer_type: &str) -> Result<RopeSpec> {
    let (key, table) = match (config.table("rope_parameters")?, config.table("rope_scaling")?) {
        // Both: the older spelling wins, as in transformers 5.
        (_, Some(table)) => ("rope_scaling", Some(table)),
        (table, None) => ("rope_parameters", table),
    };
    let table = match table {
        Some(table) => match table.table(layer_type)? {
            Some(own) => own,
            None => table,
        },
        None => config.empty(),
    };
    read_table(config, key, &table, d_head, n_context, defaults)
}

/// As [`read`], from a given table.
///
/// # Errors
/// As [`read`].
pub(super) fn read_table(
    config: &Config,
    key: &str,
    table: &Config,
    d_head: usize,
    n_context: usize,
    defaults: &RopeDefaults,
) -> Result<RopeSpec> {
    let theta = table.positive("rope_theta", Some(config.positive(defaults.theta_key, Some(defaults.theta))?))?;
    if theta <= 1.0 {
        return Err(config.wrong("rope_theta", format!("is {theta}"), "the base of rotary positions is above 1"));
    }
    let dims = match defaults.partial {
        None => {
            config.refuse_unless("partial_rotary_factor", &Value::from(1.0))?;
            table.refuse_unless("partial_rotary_factor", &Value::from(1.0))?;
            d_head
        }
        Some((outer, default)) => {
            let part = table.positive("partial_rotary_factor", Some(config.positive(outer, Some(default))?))?;
            if part > 1.0 {
                return Err(config.wrong(outer, format!("is {part}"), "the share of a head that rotates is at most 1"));
            }
            (d_head as f64 * part) as usize
        }
    };
    if dims == 0 || 2 * dims.div_ceil(2) > d_head {
        let problem = format!("{dims} of a head's {d_head} dimensions would rotate");
        return Err(config.wrong("head_dim", problem, "rotary positions need an even number of them"));
    }
    // "type" is the oldest spelling.
    let kind = table.string("rope_type")?;
    let old = table.string("type")?;
    let kind = kind.or(old).unwrap_or_else(|| "default".into());
    let kind = if defaults.longrope_aliases && (kind == "su" || kind == "yarn") { "longrope".into() } else { kind };
    // Tables of kinds that have no use for it may hold it too.
    let inner = table.positive("original_max_position_embeddings", Some(n_context as f64))?;
    let original = match defaults.original_context {
        Some(default) => config.positive("original_max_position_embeddings", Some(default as f64))?,
        None => inner,
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: table.positive("factor", None)? },
        "dynamic" => {
            if dims <= 2 {
                return Err(config.wrong(key, "`dynamic` needs more than 2 rotating dimensions", "correct the file"));
            }
            RopeScaling::Dynamic { factor: table.positive("factor", None)?, original_context: n_context as f64 }
        }
        "llama3" => {
            let (low, high) = (table.positive("low_freq_factor", None)?, table.positive("high_freq_factor", None)?);
            if high <= low {
                return Err(config.wrong(key, format!("high_freq_factor {high} is not above low_freq_factor {low}"), "correct the file"));
            }
            let factor = table.positive("factor", None)?;
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context: original }
        }
        "yarn" => yarn(table, dims, theta, n_context as f64, original)?,
        "longrope" => long_rope(config, key, table, dims, n_context as f64, original)?,
        other => {
            let supported = "the supported kinds of rope are default, linear, dynamic, llama3, yarn, longrope";
            return Err(config.unsupported(key, other, supported));
        }
    };
    if let Some(left) = table.unread().first() {
        return Err(config.unsupported(key, left, format!("`{kind}` rope has no such option here; remove it if it does nothing")));
    }
    Ok(RopeSpec { dims, theta, scaling })
}

/// The growth of attention's temperature with the context, as YaRN has it.
fn yarn_amplitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * scale * factor.ln() + 1.0
    }
}

fn yarn(table: &Config, dims: usize, theta: f64, n_context: f64, original: f64) -> Result<RopeScaling> {
    let factor = table.positive("factor", Some(n_context / original))?;
    let given = table.number_if("attention_factor")?;
    let (scale, scale_all) = (table.number_if("mscale")?.unwrap_or(0.0), table.number_if("mscale_all_dim")?.unwrap_or(0.0));
    let amplitude = match given {
        Some(given) => given,
        None if scale != 0.0 && scale_all != 0.0 => yarn_amplitude(factor, scale) / yarn_amplitude(factor, scale_all),
        None => yarn_amplitude(factor, 1.0),
    };
    // Dimension whose frequency makes `turns` turns over the original context.
    let dims = dims as f64;
    let dimension = |turns: f64| dims * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (fast, slow) = (table.positive("beta_fast", Some(32.0))?, table.positive("beta_slow", Some(1.0))?);
    let (mut first, mut last) = (dimension(fast), dimension(slow));
    if table.flag("truncate", true)? {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(dims - 1.0));
    if first == last {
        last += 0.001;
    }
    Ok(RopeScaling::Yarn { factor, ramp: (first, last), amplitude })
}

fn long_rope(config: &Config, key: &str, table: &Config, dims: usize, n_context: f64, original: f64) -> Result<RopeScaling> {
    let n = dims.div_ceil(2);
    let list = |name: &str| -> Result<Vec<f64>> {
        let factors = table.numbers(name)?;
        if factors.len() != n || factors.iter().any(|f| *f <= 0.0) {
            let problem = format!("{name} has {} numbers", factors.len());
            return Err(config.wrong(key, problem, format!("longrope needs {n} numbers above 0, one per rotating pair")));
        }
        Ok(factors)
    };
    let factor = table.positive("factor", Some(n_context / original))?;
    let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    let amplitude = table.positive("attention_factor", Some(default))?;
    Ok(RopeScaling::LongRope { short: list("short_factor")?, long: list("long_factor")?, original_context: original as usize, amplitude })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(dims: usize, theta: f64) -> RopeSpec {
        RopeSpec { dims, theta, scaling: RopeScaling::None }
    }

    fn from_json(json: &str) -> Result<RopeSpec> {
        read(&Config::parse("config.json".as_ref(), json.as_bytes())?, 8, 64, &RopeDefaults::default(), "full_attention")
    }

    #[test]
    fn llama3_frequencies_keep_the_fast_and_divide_the_slow() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = plain(128, 500_000.0);
        let spec = RopeSpec { scaling, ..plain.clone() };
        assert_eq!(spec.frequency(0, 1), plain.frequency(0, 1));
        assert!((spec.frequency(63, 1) * 8.0 / plain.frequency(63, 1) - 1.0).abs() < 1e-6);
        let ratio = |i| plain.frequency(i, 1) / spec.frequency(i, 1);
        assert!((0..63).all(|i| ratio(i) <= ratio(i + 1) + 1e-6) && (25..40).any(|i| ratio(i) > 1.5 && ratio(i) < 7.5));
    }

    #[test]
    fn an_odd_share_rotates_one_more() {
        let spec = plain(5, 100.0);
        assert_eq!((spec.n_dims(), spec.table(3).0.len()), (6, 9));
        assert!((spec.frequency(1, 1) - 100f32.powf(-2.0 / 5.0)).abs() < 1e-7);
    }

    #[test]
    fn dynamic_and_longrope_look_at_the_length_of_the_batch() {
        let dynamic = from_json(r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#).unwrap();
        assert_eq!(dynamic.frequency(2, 64), plain(8, 10_000.0).frequency(2, 64));
        assert!(dynamic.frequency(2, 128) < dynamic.frequency(2, 65));
        assert_eq!(dynamic.stretches_to(64), 256);
        let long = r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
            "original_max_position_embeddings": 16}}"#;
        let long = from_json(long).unwrap();
        assert_eq!(long.frequency(1, 16), 2.0 * long.frequency(1, 17));
        let amplitude = (1.0 + 4f64.ln() / 16f64.ln()).sqrt() as f32;
        assert!((long.table(1).0[0] - amplitude).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for json in [
            r#"{"rope_scaling": {"rope_type": "proportional"}}"#,
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 2, "beta": 1}}"#,
            r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 1, 1, 1]}}"#,
            r#"{"rope_scaling": {"rope_type": "linear"}}"#,
            r#"{"rope_theta": 0.5}"#,
            r#"{"partial_rotary_factor": 0.5}"#,
            r#"{"rope_parameters": {"rope_theta": 100, "partial_rotary_factor": 0.5}}"#,
        ] {
            assert!(from_json(json).is_err(), "{json}");
        }
    }

    #[test]
    fn both_styles_mean_the_same() {
        let old = from_json(r#"{"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 2}}"#).unwrap();
        let new = from_json(r#"{"rope_parameters": {"rope_type": "linear", "rope_theta": 500, "factor": 2}}"#).unwrap();
        let by_layer = r#"{"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 500, "factor": 2}}}"#;
        assert!(old == new && new == from_json(by_layer).unwrap());
    }
}
