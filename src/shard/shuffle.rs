//! Shuffled rows in bounded memory, exactly resumable.
//!
//! Each epoch draws a permutation of all row groups; consecutive row groups of it form a *window* of at most `buffer_bytes`; a window is
//! loaded whole, its rows are permuted and emitted, while the next one is loaded on another thread. So the order depends on the seed,
//! the shards and `buffer_bytes` alone, and three numbers restore it.

use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::reader::{Group, Shards};
use super::{Batch, Split};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// How to shuffle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShuffleConfig {
    /// Seed of the stream "data".
    pub seed: u64,
    /// Bytes of one window, as f32; two are held (one read, one being loaded). A window has one row group at least.
    pub buffer_bytes: usize,
}

impl Default for ShuffleConfig {
    fn default() -> Self {
        Self { seed: 0, buffer_bytes: 256 << 20 }
    }
}

/// A place in the endless sequence of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Window of the epoch.
    pub window: u64,
    /// Rows of the window that were emitted.
    pub offset: u64,
}

/// Endless shuffled rows of one column. Every epoch emits each row once.
pub struct Shuffled {
    shards: Shards,
    column: usize,
    width: usize,
    split: Option<Split>,
    config: ShuffleConfig,
    /// Windows of the cursor's epoch.
    plan: Vec<Vec<Group>>,
    cursor: Cursor,
    window: Option<Window>,
    ahead: Option<(Cursor, JoinHandle<Result<Window>>)>,
}

/// A loaded window: rows as they lie in the files, and the order in which they leave.
struct Window {
    rows: Batch,
    order: Vec<u32>,
}

impl Shuffled {
    pub(super) fn new(shards: Shards, column: usize, split: Option<Split>, config: &ShuffleConfig) -> Result<Self> {
        let width = shards.manifest().columns[column].column.width;
        if shards.rows(split) == 0 {
            let which = split.map_or("any", Split::name);
            return Err(Error::request(
                format!("{} has no rows in split `{which}`", shards.dir().display()),
                "harvest more tokens, or choose the other split",
            ));
        }
        let mut shuffled = Self {
            shards,
            column,
            width,
            split,
            config: config.clone(),
            plan: Vec::new(),
            cursor: Cursor::default(),
            window: None,
            ahead: None,
        };
        shuffled.plan = shuffled.plan_of(0);
        Ok(shuffled)
    }

    /// The next `n` rows. Batches run on over the ends of windows and epochs.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn next_batch(&mut self, n: usize) -> Result<Batch> {
        let mut out = Batch {
            n: 0,
            x: Vec::with_capacity(n * self.width),
            doc_id: Vec::with_capacity(n),
            position: Vec::with_capacity(n),
            token_id: Vec::new(),
        };
        while out.n < n {
            if self.window.is_none() {
                self.window = Some(self.take_window()?);
            }
            let window = self.window.as_ref().expect("loaded above");
            let left = &window.order[self.cursor.offset as usize..];
            let take = left.len().min(n - out.n);
            for &row in &left[..take] {
                let row = row as usize;
                out.x.extend_from_slice(&window.rows.x[row * self.width..(row + 1) * self.width]);
                out.doc_id.push(window.rows.doc_id[row]);
                out.position.push(window.rows.position[row]);
                if let Some(&token) = window.rows.token_id.get(row) {
                    out.token_id.push(token);
                }
            }
            out.n += take;
            self.cursor.offset += take as u64;
            if self.cursor.offset as usize == window.order.len() {
                self.window = None;
                let next = self.after(self.cursor);
                if next.epoch != self.cursor.epoch {
                    self.plan = self.plan_of(next.epoch);
                }
                self.cursor = next;
            }
        }
        Ok(out)
    }

    /// Where the next row comes from.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to a place that [`Shuffled::cursor`] gave, on the same shards with the same configuration.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn seek(&mut self, to: &Cursor) -> Result<()> {
        let plan = self.plan_of(to.epoch);
        let rows = plan.get(to.window as usize).map(|groups| groups.iter().map(|g| g.rows as u64).sum::<u64>());
        if rows.is_none_or(|rows| to.offset >= rows) {
            return Err(Error::request(
                format!("the shards have no window {} with a row {} in epoch {}", to.window, to.offset, to.epoch),
                "resume on the shards, seed and buffer_bytes that the run began with",
            ));
        }
        self.plan = plan;
        self.cursor = *to;
        self.window = None;
        Ok(())
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Mean squared norm of the column's training rows, as the manifest has it; 0 when there are none.
    pub fn mean_sq_norm(&self) -> f64 {
        self.shards.manifest().columns[self.column].mean_sq_norm
    }

    /// Passes over the data that are complete.
    pub fn epoch(&self) -> u64 {
        self.cursor.epoch
    }

    /// Rows of one epoch.
    pub fn rows_per_epoch(&self) -> u64 {
        self.shards.rows(self.split)
    }

    /// The windows of an epoch.
    fn plan_of(&self, epoch: u64) -> Vec<Vec<Group>> {
        let mut groups = self.shards.groups(self.split);
        groups.retain(|g| g.rows > 0);
        Rng::stream(self.config.seed, "data", epoch).shuffle(&mut groups);
        let most_rows = self.config.buffer_bytes / (4 * self.width).max(1);
        let mut windows: Vec<Vec<Group>> = Vec::new();
        let mut rows = 0;
        for group in groups {
            match windows.last_mut() {
                Some(window) if rows + group.rows <= most_rows => {
                    rows += group.rows;
                    window.push(group);
                }
                _ => {
                    rows = group.rows;
                    windows.push(vec![group]);
                }
            }
        }
        windows
    }

    fn after(&self, at: Cursor) -> Cursor {
        if at.window as usize + 1 < self.plan.len() {
            Cursor { epoch: at.epoch, window: at.window + 1, offset: 0 }
        } else {
            Cursor { epoch: at.epoch + 1, window: 0, offset: 0 }
        }
    }

    /// The cursor's window, loaded ahead or now; starts loading the one after it.
    fn take_window(&mut self) -> Result<Window> {
        let here = Cursor { offset: 0, ..self.cursor };
        let window = match self.ahead.take() {
            Some((at, loading)) if at == here => join(loading)?,
            _ => load(&self.shards, self.column, &self.plan[here.window as usize], self.config.seed, here)?,
        };
        let next = self.after(here);
        // One window is the whole data: its rows are at hand, but the order is another; reading again keeps one rule.
        let groups =
            if next.epoch == here.epoch { self.plan[next.window as usize].clone() } else { self.plan_of(next.epoch).swap_remove(0) };
        let (shards, column, seed) = (self.shards.clone(), self.column, self.config.seed);
        let loading = std::thread::Builder::new()
            .name("shard-window".into())
            .spawn(move || load(&shards, column, &groups, seed, next))
            .map_err(|e| Error::io("start a reader for", self.shards.dir(), e))?;
        self.ahead = Some((next, loading));
        Ok(window)
    }
}

fn join(loading: JoinHandle<Result<Window>>) -> Result<Window> {
    loading.join().unwrap_or_else(|_| Err(Error::request("a shard reader panicked", "this is a bug in lapidary: please report it")))
}

fn load(shards: &Shards, column: usize, groups: &[Group], seed: u64, at: Cursor) -> Result<Window> {
    let n: usize = groups.iter().map(|g| g.rows).sum();
    let mut rows = Batch::default();
    rows.x.reserve_exact(n * shards.manifest().columns[column].column.width);
    for &group in groups {
        shards.append_group(group, column, &mut rows)?;
    }
    let mut order: Vec<u32> = (0..rows.n as u32).collect();
    Rng::stream(seed, "data-window", at.epoch << 32 | at.window).shuffle(&mut order);
    Ok(Window { rows, order })
}
/// The first rows of a shuffled stream ([`Shards::sample`]), as an iterator that ends.
pub struct Sample {
    pub(super) rows: Shuffled,
    pub(super) left: usize,
}

impl Iterator for Sample {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let n = self.left.min(4096);
        self.left -= n;
        (n > 0).then(|| self.rows.next_batch(n))
    }
}
