//! `lapidary bench`: what this build shows on this machine.

mod claims;
mod concepts;
mod step;

use lapidary::Result;

use super::output::Output;

/// Try the papers' claims at toy size, look for known concepts, or time encoding and training on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub what: What,
}

/// What to bench.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    Claims(claims::Args),
    Concepts(concepts::Args),
    Step(step::Args),
}

/// Runs and prints.
pub fn run(args: &Args, output: &Output) -> Result<()> {
    match &args.what {
        What::Claims(args) => output.report(&claims::run(args, output)?),
        What::Concepts(args) => output.report(&concepts::run(args, output)?),
        What::Step(args) if args.serve => step::serve(args),
        What::Step(args) => output.report(&step::run(args, output)?),
    }
}
