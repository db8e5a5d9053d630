//! Checkpoints: one file for a whole sweep, replaced atomically, from which a killed run goes on to the same bytes.
//!
//! `checkpoint.safetensors` holds parameters, moments and silence counters of each member as `<member>/<name>`, and one metadata
//! key `state` with the rest as JSON. It is gone when the run is complete.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::log::Window;
use super::optim::Optimizer;
use super::pam;
use super::source::Cursor;
use crate::artefact;
use crate::error::{Error, Result};
use crate::kernels;
use crate::sae::Learner;

const FILE: &str = "checkpoint.safetensors";
const VERSION: u32 = 1;

/// Everything but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Where the next row comes from.
    pub cursor: Cursor,
    /// By member, in order.
    pub members: Vec<MemberState>,
}

/// A member's share of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberState {
    /// Its name.
    pub name: String,
    /// Bytes of `log.jsonl` that belong to the steps done.
    pub log_len: u64,
    /// Sums since the last line of the log.
    pub window: Window,
    /// What the learner keeps besides tensors.
    #[serde(default)]
    pub learner: serde_json::Value,
    /// What solves for its decoder, if something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<pam::State>,
}

impl State {
    /// At a step.
    pub fn new(step: u64, cursor: Cursor, members: Vec<MemberState>) -> Self {
        Self { version: VERSION, step, cursor, members }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Everything of a member that is a tensor, by the name it has in the file.
fn tensors<'a>(learner: &'a dyn Learner, optimizer: &'a Optimizer) -> Vec<(String, &'a Tensor)> {
    let mut all = Vec::new();
    for (group, c) in [("param", learner.coder()), ("first", &optimizer.moments.first), ("second", &optimizer.moments.second)] {
        let parts = [("w_enc", &c.w_enc), ("b_enc", &c.b_enc), ("w_dec", &c.w_dec), ("b_dec", &c.b_dec)];
        all.extend(parts.map(|(part, tensor)| (format!("{group}.{part}"), tensor)));
    }
    all.extend(learner.anchors().into_iter().map(|(part, tensor)| (format!("anchor.{part}"), tensor)));
    for ((name, parameter), [first, second]) in learner.extras().into_iter().zip(&optimizer.extras) {
        all.extend([("param", parameter), ("first", first), ("second", second)].map(|(group, t)| (format!("{group}.{name}"), t)));
    }
    all
}

/// Writes the checkpoint of all members.
pub fn save<'a>(dir: &Path, state: &State, members: impl Iterator<Item = (&'a str, &'a dyn Learner, &'a Optimizer)>) -> Result<()> {
    let mut buffers: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, learner, optimizer) in members {
        for (part, tensor) in tensors(learner, optimizer) {
            let data = tensor.flatten_all()?.to_vec1::<f32>()?;
            let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
            buffers.push((format!("{name}/{part}"), Dtype::F32, tensor.dims().to_vec(), bytes));
        }
        let silence = &learner.silence().tokens;
        let bytes = silence.iter().flat_map(|t| t.to_le_bytes()).collect();
        buffers.push((format!("{name}/silence"), Dtype::U64, vec![silence.len()], bytes));
    }
    let bad = |e: safetensors::SafeTensorError| {
        Error::format("checkpoint", path(dir), e.to_string(), "report this: a fresh checkpoint must serialise")
    };
    let views: Vec<(&str, TensorView<'_>)> = buffers
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(bad)?)))
        .collect::<Result<_>>()?;
    let json = serde_json::to_string(state).expect("the state is plain data");
    let bytes = safetensors::serialize(views, Some(HashMap::from([("state".to_string(), json)]))).map_err(bad)?;
    artefact::write(dir, FILE, &bytes)
}

/// Is there one?
pub fn exists(dir: &Path) -> bool {
    path(dir).is_file()
}

/// Removes it: the run is complete.
pub fn remove(dir: &Path) -> Result<()> {
    match fs::remove_file(path(dir)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path(dir), e)),
        _ => Ok(()),
    }
}

/// A checkpoint that was read.
pub struct Loaded {
    bytes: Vec<u8>,
    path: PathBuf,
    /// All but the tensors.
    pub state: State,
}

impl Loaded {
    /// Reads `dir`'s checkpoint.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = path(dir);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&path, e))?;
        let json = metadata.metadata().as_ref().and_then(|m| m.get("state")).ok_or_else(|| damaged(&path, "it has no state"))?;
        let state: State = serde_json::from_str(json).map_err(|e| damaged(&path, e))?;
        if state.version != VERSION {
            return Err(damaged(&path, format!("its version is {}, this build reads {VERSION}", state.version)));
        }
        Ok(Self { bytes, path, state })
    }

    /// Puts a member's tensors back in place.
    pub fn restore(&self, name: &str, learner: &mut dyn Learner, optimizer: &mut Optimizer) -> Result<()> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| damaged(&self.path, e))?;
        let tensor = |key: String| file.tensor(&key).map_err(|e| damaged(&self.path, format!("{key}: {e}")));
        for (part, target) in tensors(learner, optimizer) {
            let view = tensor(format!("{name}/{part}"))?;
            if view.shape() != target.dims() {
                return Err(damaged(&self.path, format!("{name}/{part} is {:?}, {:?} expected", view.shape(), target.dims())));
            }
            let (chunks, _) = view.data().as_chunks::<4>();
            kernels::overwrite(target, &chunks.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>())?;
        }
        let view = tensor(format!("{name}/silence"))?;
        let (chunks, _) = view.data().as_chunks::<8>();
        learner.body_mut().silence.tokens = chunks.iter().map(|b| u64::from_le_bytes(*b)).collect();
        optimizer.step = self.state.step;
        Ok(())
    }
}

fn damaged(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::format("checkpoint", path, problem.to_string(), "start the run again with --overwrite")
}
