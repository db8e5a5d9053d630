//! `lapidary completions` and `lapidary man`: what a shell and its reader want of a command line, from the same definitions as `--help`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;
use lapidary::{artefact, Error, Result};

use super::Cli;

/// Print a script that completes verbs and flags in your shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary completions bash > ~/.local/share/bash-completion/completions/lapidary
  lapidary completions zsh  > ~/.zfunc/_lapidary                                 with ~/.zfunc in fpath
  lapidary completions fish > ~/.config/fish/completions/lapidary.fish")]
pub struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Write man pages: one for the program, one per verb.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  lapidary man --out ~/.local/share/man/man1 && man lapidary-train")]
pub struct ManArgs {
    /// Folder to write them into.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Prints the script.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lapidary", &mut script);
    std::io::stdout().write_all(&script).map_err(|e| Error::io("write to", "standard output", e))
}

/// Writes the pages.
pub fn man(args: &ManArgs) -> Result<()> {
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    let mut whole = Cli::command();
    whole.build();
    let page = |command: clap::Command, title: String| -> Result<()> {
        let (name, mut text) = (format!("{title}.1"), Vec::new());
        clap_mangen::Man::new(command).title(title).render(&mut text).map_err(|e| Error::io("write", args.out.join(&name), e))?;
        artefact::write(&args.out, &name, &text)
    };
    let verbs: Vec<clap::Command> = whole.get_subcommands().filter(|v| v.get_name() != "help").cloned().collect();
    page(whole, "lapidary".into())?;
    for verb in verbs {
        let title = format!("lapidary-{}", verb.get_name());
        page(verb, title)?;
    }
    Ok(())
}
