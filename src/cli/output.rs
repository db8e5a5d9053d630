//! What a person sees: progress bars on stderr, one report on stdout. Ctrl-C is heard here and passed on as "stop at a safe point".

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lapidary::{Progress, Result};
use serde::Serialize;

use super::Common;

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Where events and reports go.
pub struct Output {
    json: bool,
    quiet: bool,
    screen: MultiProgress,
    bars: Mutex<Vec<ProgressBar>>,
}

impl Output {
    /// For this invocation; also starts listening to Ctrl-C.
    pub fn new(common: &Common) -> Self {
        // A second Ctrl-C does what it always does: end at once. What was sealed so far can still be resumed.
        let _ = ctrlc::set_handler(|| {
            if CANCELLED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nstopping at the next safe point; Ctrl-C again to stop at once");
        });
        let hidden = common.quiet || !io::stderr().is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(8) };
        let screen = MultiProgress::with_draw_target(target);
        Self { json: common.json, quiet: common.quiet, screen, bars: Mutex::new(Vec::new()) }
    }

    /// Another stack of bars on the same screen, for work on another thread.
    pub fn second(&self) -> Self {
        Self { json: self.json, quiet: self.quiet, screen: self.screen.clone(), bars: Mutex::new(Vec::new()) }
    }

    /// Prints a report: text, or one JSON document.
    pub fn report<R: Serialize + Display>(&self, report: &R) -> Result<()> {
        self.clear();
        let text = if self.json {
            serde_json::to_string_pretty(report).expect("a report is plain data with string keys")
        } else {
            report.to_string()
        };
        // A closed pipe (`| head`) is not an error of ours.
        let _ = writeln!(io::stdout().lock(), "{text}");
        Ok(())
    }

    /// Takes all bars off the screen.
    pub fn clear(&self) {
        for bar in self.bars().drain(..) {
            bar.finish_and_clear();
        }
    }

    fn bars(&self) -> std::sync::MutexGuard<'_, Vec<ProgressBar>> {
        self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn line(&self, text: &str) {
        if self.screen.is_hidden() || self.screen.println(text).is_err() {
            eprintln!("{text}");
        }
    }
}

impl Progress for Output {
    fn begin(&self, task: &str, total: Option<u64>, unit: &'static str) {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let bar = self.screen.add(bar);
        let template = match total {
            Some(_) if unit == "bytes" => {
                "{msg:10} {bar:28} {bytes}/{total_bytes}  {bytes_per_sec:>12}  ETA {eta:>4}  {prefix}".to_string()
            }
            None if unit == "bytes" => "{msg:10} {spinner} {bytes}  {bytes_per_sec:>12}  {prefix}".to_string(),
            Some(_) => format!("{{msg:10}} {{bar:28}} {{human_pos}}/{{human_len}} {unit}  {{per_sec:>12}}  ETA {{eta:>4}}  {{prefix}}"),
            None => format!("{{msg:10}} {{spinner}} {{human_pos}} {unit}  {{per_sec:>12}}  {{prefix}}"),
        };
        bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(task.to_string());
        bar.enable_steady_tick(Duration::from_millis(250));
        self.bars().push(bar);
    }

    fn advance(&self, n: u64) {
        if let Some(bar) = self.bars().last() {
            bar.inc(n);
        }
    }

    fn status(&self, text: &str) {
        if let Some(bar) = self.bars().last() {
            bar.set_prefix(text.to_string());
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bars().pop() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn is_cancelled(&self) -> bool {
        CANCELLED.load(Ordering::Relaxed)
    }
}
