//! `lapidary steer`: text from a host whose latents are changed.

use std::fmt;

use candle_core::Device;
use lapidary::steer::{steer, Edit, Positions, Sampling, SteerConfig, Steered};
use lapidary::trace::Prompt;
use lapidary::Result;
use serde::Serialize;

use super::output::Output;
use super::prompt::PromptFlags;
use super::trace::shown;

/// Continue a text with latents clamped, scaled or ablated, beside what the host writes untouched.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary steer --dictionary runs/k8 --model fable --latent 12=+8 --text 'one sunny morning , a boy'
  lapidary steer --dictionary runs/k8 --model fable --latent 12=0 --latent 40=x2 --text 'tom said ,' --generated-only
  lapidary steer --dictionary runs/k32 --model openai-community/gpt2 --latent 90=20 --text 'I think' --temperature 1 --samples 3 --seed 7
Values are in the units of the dictionary's codes, which `lapidary trace` shows. What the dictionary does not reconstruct is kept, so an
edit that changes no code changes no byte; with --without-error the reconstruction stands in. Masked positions (BOS, special
tokens) are never changed. With --temperature both texts are drawn with the same random numbers.")]
pub struct Args {
    #[command(flatten)]
    pub prompt: PromptFlags,
    /// A latent and what to do to its code: 12=+8 or 12=-8 adds, 12=5 clamps, 12=x2 scales, 12=0 ablates; may be repeated.
    #[arg(long, value_name = "I=CHANGE", required = true)]
    pub latent: Vec<Edit>,
    /// Tokens to write at most.
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub n_tokens: usize,
    /// 0 takes the likeliest token; above it tokens are drawn.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw among the K likeliest.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw among the likeliest that together have this probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Texts to draw.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// Replace activations by the reconstruction from the changed codes.
    #[arg(long)]
    pub without_error: bool,
    /// Change positions from this one on, counted from 0 with BOS.
    #[arg(long, value_name = "POSITION", conflicts_with_all = ["prompt_only", "generated_only"])]
    pub from_position: Option<usize>,
    /// Change the positions of the prompt only.
    #[arg(long, conflicts_with = "generated_only")]
    pub prompt_only: bool,
    /// Change the positions after the prompt only.
    #[arg(long)]
    pub generated_only: bool,
    /// Next tokens after the prompt to show, those whose probability changed most.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub top: usize,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One per text.
    pub texts: Vec<Steered>,
    /// Label of each edited latent, where a feature table has it.
    pub labels: Vec<Option<String>>,
}

/// Runs it.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<Report> {
    let config = SteerConfig {
        edits: args.latent.clone(),
        keep_error: !args.without_error,
        positions: match (args.from_position, args.prompt_only, args.generated_only) {
            (Some(first), _, _) => Positions::From(first),
            (_, true, _) => Positions::Prompt,
            (_, _, true) => Positions::Generated,
            _ => Positions::All,
        },
        n_tokens: args.n_tokens,
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        samples: args.samples,
        seed: args.seed,
        top: args.top,
    };
    let opened = args.prompt.open(device, output)?;
    opened.check_latents(args.latent.iter().map(|e| e.latent))?;
    let mut texts = Vec::new();
    for text in &opened.texts {
        let prompt = Prompt::new(text, opened.host.info(), &opened.tokenizer, opened.reading)?;
        let (host, tokenizer) = (opened.host.as_ref(), &opened.tokenizer);
        texts.push(steer(host, tokenizer, &opened.at, &opened.dictionary, &prompt, &config, output)?);
    }
    let labels = args.latent.iter().map(|e| opened.label(e.latent).map(str::to_string)).collect();
    Ok(Report { texts, labels })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, text) in self.texts.iter().enumerate() {
            if i > 0 {
                writeln!(f, "\n")?;
            }
            let edits = text.edits.iter().zip(&self.labels).map(|(e, label)| match label {
                Some(label) => format!("{e} ({})", shown(label)),
                None => e.to_string(),
            });
            let positions = match text.positions {
                Positions::All => "all positions".to_string(),
                Positions::Prompt => "the prompt's positions".to_string(),
                Positions::Generated => "positions after the prompt".to_string(),
                Positions::From(first) => format!("positions from {first} on"),
            };
            let error = if text.error_kept { "error term kept" } else { "reconstruction instead of the activation" };
            writeln!(f, "{} at {}, {positions} but masked ones; {error}", edits.collect::<Vec<_>>().join(", "), text.hook)?;
            writeln!(f, "prompt     {}", shown(&text.text))?;
            for sample in &text.samples {
                writeln!(f, "unsteered  {}", shown(sample.unsteered.trim_start()))?;
                writeln!(f, "steered    {}", shown(sample.steered.trim_start()))?;
                writeln!(f, "           KL {:.4} nats per token over {} tokens", sample.mean_kl, sample.tokens.len())?;
            }
            write!(f, "next after the prompt, KL {:.4} nats:", text.prompt_kl)?;
            for s in &text.shifts {
                write!(f, "\n  {:<16} {:.4} -> {:.4}", shown(&s.token), s.before, s.after)?;
            }
        }
        Ok(())
    }
}
