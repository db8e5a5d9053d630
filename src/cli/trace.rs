//! `lapidary trace`: which latents fire on each token of a text.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::Device;
use lapidary::trace::{trace, Prompt, Trace};
use lapidary::Result;
use serde::Serialize;

use super::output::Output;
use super::prompt::PromptFlags;

/// Show which latents fire on each token of a text, and how strongly.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary trace --dictionary runs/k8 --model fable --text 'one sunny morning , a boy named tom met two foxes'
  lapidary trace --dictionary runs/k8 --model fable --features features --text 'tom said , \" i want the kite . \"' --top 3
  lapidary trace --dictionary runs/k32 --model openai-community/gpt2 --text-file story.txt --latent 12 --latent 90
  echo 'some text' | lapidary trace --dictionary runs/k32 --model path/to/model --text - --json
Special tokens (and a first token without BOS) are shown, marked and not encoded, as a harvest leaves them out.")]
pub struct Args {
    #[command(flatten)]
    pub prompt: PromptFlags,
    /// Latents to show per token, strongest first (--json has all).
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub top: usize,
    /// Only this latent; may be repeated.
    #[arg(long, value_name = "I")]
    pub latent: Vec<u32>,
}

/// What fires.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One per text.
    pub texts: Vec<Trace>,
    /// Labels of the latents that occur, where a feature table has them.
    pub labels: BTreeMap<u32, String>,
    #[serde(skip)]
    top: usize,
}

/// Runs it.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<Report> {
    let opened = args.prompt.open(device, output)?;
    opened.check_latents(args.latent.iter().copied())?;
    let mut texts = Vec::new();
    for text in &opened.texts {
        let prompt = Prompt::new(text, opened.host.info(), &opened.tokenizer, opened.reading)?;
        texts.push(trace(opened.host.as_ref(), &opened.at, &opened.dictionary, &prompt)?.only(&args.latent));
    }
    let occur = texts.iter().flat_map(|t| &t.tokens).flat_map(|t| &t.active).map(|a| a.latent);
    let labels = occur.filter_map(|l| Some((l, opened.label(l)?.to_string()))).collect();
    Ok(Report { texts, labels, top: args.top })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, text) in self.texts.iter().enumerate() {
            if i > 0 {
                writeln!(f, "\n")?;
            }
            let fvu = text.fvu.map_or("-".to_string(), |v| format!("{v:.3}"));
            writeln!(f, "{}, FVU of this text {fvu}", text.hook)?;
            let width = text.tokens.iter().map(|t| shown(&t.token).chars().count()).max().unwrap_or(0).clamp(5, 24);
            write!(f, "{:>4}  {:<width$}  {:>8}  {:>6}  latents", "", "token", "norm", "nmse")?;
            for token in &text.tokens {
                let nmse = token.nmse.map_or("-".to_string(), |v| format!("{v:.3}"));
                write!(f, "\n{:>4}  {:<width$}  {:>8.3}  {nmse:>6}  ", token.position, shown(&token.token), token.norm)?;
                if let Some(rule) = token.masked {
                    write!(f, "({rule}: masked)")?;
                }
                let latents = token.active.iter().take(self.top).map(|a| match self.labels.get(&a.latent) {
                    Some(label) => format!("{}:{:.2} {}", a.latent, a.value, shown(label)),
                    None => format!("{}:{:.2}", a.latent, a.value),
                });
                write!(f, "{}", latents.collect::<Vec<_>>().join("  "))?;
                if token.active.len() > self.top {
                    write!(f, "  +{}", token.active.len() - self.top)?;
                }
            }
        }
        Ok(())
    }
}

/// Control characters would move the cursor.
pub(super) fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
