//! Requirements on scores: `fvu<0.2`, checked after scoring, so that a script or a CI job can fail on a bad dictionary.

use std::fmt;
use std::str::FromStr;

use super::report::{figure, Metrics};
use super::{definition, known_ids};
use crate::error::{Error, Result};

/// How the figure must compare with the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Relation {
    fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    /// False for NaN: what is undefined meets no requirement.
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::Greater => value > bound,
            Self::GreaterOrEqual => value >= bound,
        }
    }
}

/// A bound on one metric.
///
/// ```
/// use lapidary::score::Requirement;
/// let r: Requirement = "fvu < 0.2".parse().unwrap();
/// assert_eq!(r.to_string(), "fvu < 0.2");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// Metric id.
    pub metric: String,
    /// How to compare.
    pub relation: Relation,
    /// With what.
    pub bound: f64,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.metric, self.relation.symbol(), self.bound)
    }
}

impl FromStr for Requirement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Requirement {
    /// From `metric<number`, with `<`, `<=`, `>` or `>=`; spaces and underscores in the number are allowed.
    ///
    /// # Errors
    /// Something else, or a metric that does not exist (the message lists those that do).
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |problem: &str| {
            Error::request(format!("`{text}` is no requirement: {problem}"), "write METRIC<NUMBER with <, <=, > or >=, as in 'fvu<0.2'")
        };
        let at = text.find(['<', '>']).ok_or_else(|| wrong("there is no comparison in it"))?;
        let (metric, rest) = (text[..at].trim(), &text[at..]);
        let (relation, number) = match (rest.strip_prefix("<="), rest.strip_prefix(">="), rest.strip_prefix('<'), rest.strip_prefix('>')) {
            (Some(n), ..) => (Relation::LessOrEqual, n),
            (_, Some(n), ..) => (Relation::GreaterOrEqual, n),
            (_, _, Some(n), _) => (Relation::Less, n),
            (.., Some(n)) => (Relation::Greater, n),
            _ => return Err(wrong("there is no comparison in it")),
        };
        let bound: f64 = number.trim().replace('_', "").parse().map_err(|_| wrong("the right side is no number"))?;
        if !bound.is_finite() {
            return Err(wrong("the bound must be finite"));
        }
        if definition(metric).is_none() {
            return Err(Error::request(format!("no metric `{metric}`"), format!("the metrics are {}", known_ids().join(", "))));
        }
        Ok(Self { metric: metric.into(), relation, bound })
    }

    /// Does it hold?
    ///
    /// # Errors
    /// [`Error::Requirement`] when it does not, or the figure is undefined; [`Error::Request`] when the metric was not computed.
    pub fn check(&self, metrics: &Metrics) -> Result<()> {
        let value = *metrics.get(&self.metric).ok_or_else(|| {
            Error::request(
                format!("`{}` was required and not computed", self.metric),
                "metrics of loss recovered need the host model and a corpus, those against the truth need planted rows",
            )
        })?;
        if self.relation.holds(value, self.bound) {
            Ok(())
        } else {
            Err(Error::Requirement(format!("{self}, found {}", figure(value))))
        }
    }

    /// Do all hold? All that fail are named in one error.
    ///
    /// # Errors
    /// As [`Requirement::check`].
    pub fn check_all(requirements: &[Self], metrics: &Metrics) -> Result<()> {
        let mut failed = Vec::new();
        for requirement in requirements {
            match requirement.check(metrics) {
                Ok(()) => {}
                Err(Error::Requirement(what)) => failed.push(what),
                Err(other) => return Err(other),
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Error::Requirement(failed.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        [("fvu".to_string(), 0.25), ("l0".into(), 16.0), ("cosine".into(), f64::NAN)].into_iter().collect()
    }

    #[test]
    fn all_four_relations() {
        for (text, holds) in [
            ("fvu<0.3", true),
            ("fvu < 0.25", false),
            ("fvu<=0.25", true),
            ("l0>=16", true),
            ("l0 > 16", false),
            ("l0<1_000", true),
            ("cosine<2", false), // undefined meets nothing
            ("cosine>=-2", false),
        ] {
            let result = Requirement::parse(text).unwrap().check(&metrics());
            assert_eq!(result.is_ok(), holds, "{text}");
            if let Err(e) = result {
                assert_eq!(e.exit_code(), 1, "{e}");
            }
        }
    }

    #[test]
    fn wrong_ones_say_what_is_right() {
        for text in ["fvu", "fvu=0.2", "fvu<", "fvu<x", "fvu<nan", "<0.2"] {
            assert_eq!(Requirement::parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        let error = Requirement::parse("fuv<0.2").unwrap_err().to_string();
        assert!(error.contains("no metric `fuv`") && error.contains("explained_variance") && error.contains("ce_loss_score"), "{error}");
    }

    #[test]
    fn every_failure_is_named() {
        let all: Vec<Requirement> = ["fvu<0.2", "l0<=16", "l0<4"].iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(
            Requirement::check_all(&all, &metrics()).unwrap_err().to_string(),
            "requirement not met: fvu < 0.2, found 0.25000; l0 < 4, found 16"
        );
        let absent = Requirement::parse("ce_loss_score>0.9").unwrap().check(&metrics()).unwrap_err();
        assert_eq!(absent.exit_code(), 2, "{absent}");
    }
}
