//! llama.cpp control vectors: a GGUF file of version 3 with one F32 tensor `direction.N`, which llama.cpp adds to what block N writes.
//!
//! An atom that reads `blocks.N.hook_resid_post` (the same place as `blocks.{N+1}.hook_resid_pre`) belongs into `direction.N`. The loader
//! refuses N = 0: nothing can be added after block 0.

use std::path::{Path, PathBuf};

use super::Pick;
use crate::artefact;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::{HookPoint, Site};

const FILE: &str = "control-vector.gguf";
/// Of header and tensors, in bytes.
const ALIGNMENT: usize = 32;
/// Codes of value types.
const INT32: u32 = 5;
const STRING: u32 = 8;

pub(super) fn write(d: &Dictionary, latents: &[Pick], out: &Path) -> Result<(PathBuf, Vec<String>)> {
    if latents.is_empty() {
        return Err(Error::request("a control vector of no latents", "name them: --latents 12,40=2.5"));
    }
    let block = block(&d.provenance.hook)?;
    let width = d.d_out();
    let atoms = d.coder.w_dec.flatten_all()?.to_vec1::<f32>()?;
    let mut sum = vec![0f64; width];
    for pick in latents {
        let atom = &atoms[pick.latent * width..(pick.latent + 1) * width];
        sum.iter_mut().zip(atom).for_each(|(s, &v)| *s += pick.scale * f64::from(v));
    }
    // The input transform divides what a decoder writes.
    let scale = d.input_transform.as_ref().map_or(1.0, |t| t.scale);
    let values: Vec<f32> = sum.iter().map(|s| (s / scale) as f32).collect();
    let hint = d.provenance.host["family"].as_str().or(d.provenance.host["name"].as_str()).unwrap_or("unknown");
    artefact::write(out, FILE, &bytes(block, hint, &values))?;
    let mut notes = vec![format!("direction.{block}: added to what block {block} writes; llama-cli --control-vector {FILE}")];
    if d.row_norm.is_some() {
        notes.push("this dictionary norms its rows: an atom's strength in a row depends on the row".into());
    }
    Ok((out.join(FILE), notes))
}

/// The block after which rows of a hook point lie.
fn block(hook: &str) -> Result<usize> {
    let refuse = |what: String, instead: &str| Err(Error::Unsupported { by: "a control vector".into(), what, instead: instead.into() });
    let point: HookPoint = hook.parse().map_err(|_| {
        Error::request(
            format!("`{hook}` is no hook point of a model, so nothing says where to add atoms"),
            "name it: --hook blocks.5.hook_resid_post",
        )
    })?;
    let block = match point.site {
        Site::ResidPost => Some(point.layer),
        Site::ResidPre => point.layer.checked_sub(1),
        _ => {
            return refuse(
                format!("atoms of {point}: llama.cpp adds to the residual stream between blocks"),
                "use a dictionary of hook_resid_post",
            )
        }
    };
    match block {
        Some(block) if block >= 1 => Ok(block),
        _ => refuse(
            format!(
                "atoms of {point}: llama.cpp numbers directions from 1, and adds number N after block N, so nothing comes after block 0"
            ),
            "use a dictionary of a later block",
        ),
    }
}

fn bytes(block: usize, hint: &str, values: &[f32]) -> Vec<u8> {
    let mut b = Vec::new();
    let string = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    let pad = |b: &mut Vec<u8>| b.resize(b.len().next_multiple_of(ALIGNMENT), 0);
    b.extend(b"GGUF");
    b.extend(3u32.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend(3u64.to_le_bytes());
    for (key, value) in [("general.architecture", "controlvector"), ("controlvector.model_hint", hint)] {
        string(&mut b, key);
        b.extend(STRING.to_le_bytes());
        string(&mut b, value);
    }
    string(&mut b, "controlvector.layer_count");
    b.extend(INT32.to_le_bytes());
    b.extend(1i32.to_le_bytes());
    string(&mut b, &format!("direction.{block}"));
    b.extend(1u32.to_le_bytes());
    b.extend((values.len() as u64).to_le_bytes());
    // Type F32 is 0; the tensor is the first and only one.
    b.extend(0u32.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    pad(&mut b);
    b.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    pad(&mut b);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoms_go_after_their_block_and_never_after_block_0() {
        assert_eq!(block("blocks.5.hook_resid_post").unwrap(), 5);
        assert_eq!(block("blocks.6.hook_resid_pre").unwrap(), 5);
        for (hook, why) in [
            ("blocks.0.hook_resid_post", "block 0"),
            ("blocks.1.hook_resid_pre", "block 0"),
            ("blocks.0.hook_resid_pre", "block 0"),
            ("blocks.3.hook_mlp_out", "residual stream"),
            ("mine", "no hook point"),
        ] {
            let error = block(hook).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(why), "{hook}: {error}");
        }
    }

    #[test]
    fn the_layout_is_aligned() {
        let file = bytes(3, "gpt2", &[1.0, -2.0, 0.5]);
        assert_eq!(file.len() % ALIGNMENT, 0);
        let at = file.len() - ALIGNMENT;
        assert_eq!(file[at..at + 4], 1f32.to_le_bytes());
        assert_eq!(&file[..8], b"GGUF\x03\0\0\0");
    }
}
