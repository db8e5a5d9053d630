//! Training rows straight from a host: `harvest`'s rows, mixed in memory, as a source that `train` takes like shards.
//!
//! ```text
//! harvest::Stream --a window of rows--> permuted --> batches      no row touches the disk
//! ```
//!
//! A *window* is read whole, its rows are permuted and handed out, then the next one is read. So the order depends on seed, corpus,
//! host and configuration alone, and a window can be read again from its [`Spot`]: a checkpoint holds no rows. A window never holds
//! rows of two epochs; a corpus that fits into one is read once and permuted anew for each epoch. Held-out documents run through the
//! host like the others, so that counts and thresholds are those of a harvest, and are then left out.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::harvest::{Spot, Stream};
use crate::progress::Progress;
use crate::rng::Rng;
use crate::shard::{Batch, Counts};
use crate::train::{Cursor, Forward, RowSource, SourceReport};

/// Bytes of a row besides its values: document, position, token, place in the order.
const ID_BYTES: u64 = 20;

/// How to mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixConfig {
    /// Seed of the stream "data".
    pub seed: u64,
    /// Bytes of one window, as f32. One is held; it may be greater by one block (at most 64 MiB), and before the outlier thresholds are
    /// known by the rows they are decided on.
    pub buffer_bytes: u64,
    /// Rows that will be wanted in all. Windows are of like size, and not larger than that.
    pub n_rows: u64,
}

/// Endless mixed rows of a host. Every epoch hands out each training row once.
pub struct Streamed<'a> {
    stream: Stream<'a>,
    id: String,
    config: MixConfig,
    /// Rows that a window has at least, unless the corpus ends.
    window_rows: usize,
    progress: &'a dyn Progress,
    epoch: u64,
    window: u64,
    offset: u64,
    state: Position,
    /// `state` as a cursor carries it.
    source: serde_json::Value,
    rows: Batch,
    /// The order in which the rows leave; `None`: they are not those of this window yet.
    order: Option<Vec<u32>>,
    /// Where the next window begins, and whether that is in the next epoch.
    after: (Spot, bool),
    /// Are `rows` a whole epoch?
    whole: bool,
    /// Was it told that the corpus is read again?
    told: bool,
}

/// What a checkpoint keeps besides epoch, window and offset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    /// Host, corpus and configuration.
    id: String,
    /// Where the window begins.
    spot: Spot,
    /// Counts of the first epoch, once it is complete.
    first_epoch: Option<Counts>,
    /// Of the first window, once it was read.
    norm: Option<Norm>,
}

/// What the rows are normalised by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Norm {
    /// Rows of the first window.
    rows: u64,
    /// Their mean squared norm.
    mean_sq_norm: f64,
}

impl<'a> Streamed<'a> {
    /// At the beginning of the corpus. `progress` hears how windows fill, and can interrupt that.
    ///
    /// # Errors
    /// Never in practice: as [`Stream::id`].
    pub fn new(stream: Stream<'a>, config: MixConfig, progress: &'a dyn Progress) -> Result<Self> {
        let id = stream.id()?;
        let row_bytes = 4 * stream.column().width as u64 + ID_BYTES;
        let most = (config.buffer_bytes / row_bytes).max(1);
        // As few windows as fit, all of like size: a small last one would mix badly.
        let n_rows = config.n_rows.min(stream.config().n_tokens.unwrap_or(u64::MAX)).max(1);
        let windows = n_rows.div_ceil(most);
        let window_rows = n_rows.div_ceil(windows) as usize;
        let mut streamed = Self {
            stream,
            id,
            config,
            window_rows,
            progress,
            epoch: 0,
            window: 0,
            offset: 0,
            state: Position::default(),
            source: serde_json::Value::Null,
            rows: Batch::default(),
            order: None,
            after: (Spot::default(), false),
            whole: false,
            told: false,
        };
        streamed.go(0, 0, 0, Position { id: streamed.id.clone(), ..Position::default() })?;
        Ok(streamed)
    }

    /// Rows that a window holds at least, unless the corpus ends.
    pub fn window_rows(&self) -> usize {
        self.window_rows
    }

    /// Bytes that they take.
    pub fn window_bytes(&self) -> u64 {
        self.window_rows as u64 * (4 * self.stream.column().width as u64 + ID_BYTES)
    }

    /// Stands at a place whose window is not loaded.
    fn go(&mut self, epoch: u64, window: u64, offset: u64, state: Position) -> Result<()> {
        (self.epoch, self.window, self.offset) = (epoch, window, offset);
        self.set(state)?;
        self.order = None;
        Ok(())
    }

    fn set(&mut self, state: Position) -> Result<()> {
        self.source = serde_json::to_value(&state)
            .map_err(|e| Error::request(format!("a place in the stream is no JSON: {e}"), "please report this bug"))?;
        self.state = state;
        Ok(())
    }

    /// Reads the window where there is none, and permutes it. An epoch that has no row left gives way to the next one.
    fn load(&mut self) -> Result<()> {
        while self.order.is_none() {
            if let Some(counts) = self.state.first_epoch.as_ref().filter(|_| !self.told) {
                self.told = true;
                let (train, held_out) = (counts.rows.train, counts.rows.held_out);
                let what = if self.stream.config().n_tokens.is_some() { "`harvest.n_tokens` ended the corpus" } else { "the corpus ended" };
                self.progress.warn(&format!("{what} after {train} training rows ({held_out} held out); reading it again"));
            }
            if !(self.whole && self.window == 0) {
                self.fill()?;
            }
            if self.epoch == 0 && self.window == 0 && self.state.norm.is_none() && self.rows.n > 0 {
                let norm = Some(norm(&self.rows, self.stream.column().width));
                self.set(Position { norm, ..self.state.clone() })?;
            }
            if self.rows.n > 0 {
                let mut order: Vec<u32> = (0..self.rows.n as u32).collect();
                Rng::stream(self.config.seed, "data", self.epoch << 32 | self.window).shuffle(&mut order);
                self.order = Some(order);
            } else if self.window > 0 {
                self.next_window()?;
            } else {
                let counts = self.after.0.counts();
                return Err(Error::request(
                    format!("no row is left to train on: {} tokens were read, and all were masked or held out", counts.tokens),
                    "check the corpus; `harvest.keep` switches masking rules off, `harvest.held_out` is the share of documents kept from \
                     training",
                ));
            }
        }
        let n = self.rows.n as u64;
        if self.offset >= n {
            return Err(Error::request(
                format!("window {} of epoch {} has {n} rows, and the checkpoint is at row {}", self.window, self.epoch, self.offset),
                "resume with the host, corpus and settings that started the run",
            ));
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        self.whole = false;
        let width = self.stream.column().width;
        let rows = &mut self.rows;
        rows.n = 0;
        rows.x.clear();
        rows.doc_id.clear();
        rows.position.clear();
        rows.token_id.clear();
        // At once, for a vector that grows holds its rows twice for a while.
        rows.x.reserve_exact((self.window_rows + self.stream.block_tokens()) * width);
        let first = self.epoch == 0 && self.window == 0;
        let filling = Filling { inner: self.progress, bar: first };
        if first {
            self.progress.begin("fill", Some(self.window_rows as u64), "rows");
        } else {
            self.progress.status("filling the buffer");
        }
        let read = self.stream.read(&self.state.spot, self.window_rows, rows, &filling);
        if first {
            self.progress.end();
        }
        self.after = read.map_err(|e| match e {
            Error::Interrupted { .. } => Error::Interrupted { doing: "training" },
            e => e,
        })?;
        self.whole = self.window == 0 && self.after.1;
        Ok(())
    }

    /// Steps over the end of the loaded window.
    fn next_window(&mut self) -> Result<()> {
        let (spot, ended) = self.after.clone();
        if !ended {
            return self.go(self.epoch, self.window + 1, 0, Position { spot, ..self.state.clone() });
        }
        let first_epoch = self.state.first_epoch.clone().or_else(|| Some(spot.counts().clone()));
        self.go(self.epoch + 1, 0, 0, Position { spot: spot.rewound(), first_epoch, ..self.state.clone() })
    }
}

impl RowSource for Streamed<'_> {
    fn width(&self) -> usize {
        self.stream.column().width
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let width = self.width();
        let mut out = Batch { x: Vec::with_capacity(n * width), ..Batch::default() };
        while out.n < n {
            self.load()?;
            let order = self.order.as_ref().expect("loaded above");
            let left = &order[self.offset as usize..];
            let take = left.len().min(n - out.n);
            for &row in &left[..take] {
                let row = row as usize;
                out.x.extend_from_slice(&self.rows.x[row * width..(row + 1) * width]);
                out.doc_id.push(self.rows.doc_id[row]);
                out.position.push(self.rows.position[row]);
                out.token_id.push(self.rows.token_id[row]);
            }
            out.n += take;
            self.offset += take as u64;
            if self.offset as usize == order.len() {
                self.next_window()?;
            }
        }
        Ok(out)
    }

    fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, window: self.window, offset: self.offset, source: self.source.clone() }
    }

    fn seek(&mut self, to: &Cursor) -> Result<()> {
        let here = (to.epoch, to.window) == (self.epoch, self.window);
        let state = if to.source.is_null() {
            if *to != Cursor::default() {
                return Err(Error::request(
                    "the checkpoint is of a run that read its rows from shards",
                    "resume with the --shards that started the run, or choose another --out",
                ));
            }
            // What the first window taught is kept, so that coming back to it costs nothing.
            Position { id: self.id.clone(), norm: self.state.norm, ..Position::default() }
        } else {
            serde_json::from_value(to.source.clone())
                .map_err(|e| Error::request(format!("the checkpoint's place in the stream cannot be read: {e}"), "start the run again"))?
        };
        if state.id != self.id {
            return Err(Error::request(
                "the host, the corpus, the tokenizer or a setting is not what it was when the run started",
                "resume with what started the run, or choose another --out",
            ));
        }
        if here && self.order.is_some() && state.spot == self.state.spot {
            self.offset = to.offset;
            return Ok(());
        }
        self.go(to.epoch, to.window, to.offset, state)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        if self.state.norm.is_none() {
            self.load()?;
        }
        let norm = self.state.norm.ok_or_else(|| {
            Error::request("the checkpoint does not say what the rows are normalised by", "start the run again with --overwrite")
        })?;
        Ok(norm.mean_sq_norm)
    }

    fn report(&self) -> Result<SourceReport> {
        let read = if self.order.is_some() { &self.after.0 } else { &self.state.spot };
        let mut stream = self.stream.provenance(read)?;
        if let Some(counts) = &self.state.first_epoch {
            stream["counts"] = serde_json::json!(counts);
        }
        stream["scale_rows"] = serde_json::json!(self.state.norm.map(|n| n.rows));
        let (seconds, tokens, padding_share) = self.stream.forwarded();
        Ok(SourceReport { stream, forward: Some(Forward { seconds, tokens, padding_share }) })
    }
}

/// In f64, row by row.
fn norm(rows: &Batch, width: usize) -> Norm {
    let sum: f64 = rows.x.chunks_exact(width).map(|row| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()).sum();
    Norm { rows: rows.n as u64, mean_sq_norm: sum / rows.n as f64 }
}

/// A host's progress while a window fills: the training bar counts training rows and nothing else.
struct Filling<'a> {
    inner: &'a dyn Progress,
    bar: bool,
}

impl Progress for Filling<'_> {
    fn advance(&self, n: u64) {
        if self.bar {
            self.inner.advance(n);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
    }
}
