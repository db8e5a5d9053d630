//! The compute seam's functions over an [`Engine`]: tensors in, tensors or codes out. What a GPU runs, and what the simulator checks. Not for
//! training, whose step keeps everything on the device (`resident`).

use candle_core::{DType, Tensor};

use super::columns::RowCodes;
use super::decode::{decode, Base, Decoded};
use super::encode::{above, block, certified, finished, Encoder, Rows};
use super::engine::{Buffer, Engine};
use super::pursuit::{gram, orthogonal_room, pursue, pursue_orthogonally, Atoms, Path, Room};
use super::reduce::Matrix;
use super::rows::Kind;
use crate::codes::{Codes, PAD};
use crate::error::{Error, Result};
use crate::kernels::{EncodeCounts, PursuitPath, PursuitRule, Selection};

fn encoder(engine: &dyn Engine, w_enc: &Tensor, b_enc: &Tensor) -> Result<Encoder> {
    let (d_sae, d) = w_enc.dims2()?;
    Encoder::screened(engine, engine.address(w_enc)?, engine.address(b_enc)?, d_sae, d)
}

/// Calls `each` with blocks of rows as the encoder sees them, and the first row of each.
fn blocks(engine: &dyn Engine, x: &Tensor, each: &mut dyn FnMut(usize, &Rows) -> Result<()>) -> Result<()> {
    let (n, d) = x.dims2()?;
    let (at, size) = (engine.address(x)?, block(n).max(1));
    for first in (0..n).step_by(size) {
        each(first, &Rows::new(engine, at + (4 * first * d) as u64, size.min(n - first), d)?)?;
    }
    Ok(())
}

/// See [`crate::kernels::encode_topk`].
pub fn encode_topk(engine: &dyn Engine, x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize, rank: Option<&Tensor>) -> Result<Selection> {
    if rank.is_some() {
        return Err(Error::Unsupported {
            by: "the CUDA kernels".into(),
            what: "selection by value times atom norm".into(),
            instead: "use --device cpu, or import the dictionary with --fold-norms where that is exact".into(),
        });
    }
    let (n, encoder) = (x.dim(0)?, encoder(engine, w_enc, b_enc)?);
    let (mut indices, mut values) = (vec![PAD; n * k], vec![0f32; n * k]);
    let mut counts = EncodeCounts { rows: n as u64, ..EncodeCounts::default() };
    blocks(engine, x, &mut |first, rows| {
        let (lists, taken) = certified(engine, &encoder, rows, k)?;
        counts.candidates += taken.scored;
        counts.whole_rows += u64::from(taken.in_full);
        for (r, row) in finished(engine, &lists, rows.n, k)?.into_iter().enumerate() {
            for (i, (j, v)) in row.into_iter().enumerate() {
                (indices[(first + r) * k + i], values[(first + r) * k + i]) = (j, v);
            }
        }
        Ok(())
    })?;
    counts.add();
    let device = x.device();
    Ok(Selection { indices: Tensor::from_vec(indices, (n, k), device)?, values: Tensor::from_vec(values, (n, k), device)? })
}

/// See [`crate::kernels::encode_threshold`].
pub fn encode_threshold(engine: &dyn Engine, x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    let encoder = encoder(engine, w_enc, b_enc)?;
    let threshold = threshold.to_dtype(DType::F32)?.contiguous()?;
    let at = engine.address(&threshold)?;
    let mut codes = Codes::new(encoder.d_sae);
    blocks(engine, x, &mut |_, rows| {
        for mut row in above(engine, &encoder, rows, at)? {
            row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            codes.push_row(row.into_iter());
        }
        Ok(())
    })?;
    Ok(codes)
}

/// See [`crate::kernels::decode_codes`].
pub fn decode_codes(engine: &dyn Engine, codes: &Codes, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let ((d_sae, d), n) = (w_dec.dims2()?, codes.n_rows());
    if let Some(&bad) = codes.indices.iter().find(|&&j| j as usize >= d_sae) {
        return Err(Error::request(format!("latent {bad} of a dictionary with {d_sae}"), "decode with the dictionary that made the codes"));
    }
    let put = |words: Vec<u32>| -> Result<Buffer> {
        let buffer = engine.alloc(4 * words.len().max(1))?;
        engine.upload(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>(), &buffer)?;
        Ok(buffer)
    };
    let mut starts = vec![0u32];
    for r in 0..n {
        starts.push(starts[r] + codes.row(r).0.len() as u32);
    }
    let (starts, indices) = (put(starts)?, put(codes.indices.clone())?);
    let values = put(codes.values.iter().map(|v| v.to_bits()).collect())?;
    let out = Tensor::zeros((n, d), DType::F32, w_dec.device())?;
    let w = Matrix { at: engine.address(w_dec)?, kind: Kind::F32, n: d_sae, d };
    let base = match b_dec {
        Some(b) => Base::Shared(engine.address(b)?),
        None => Base::Nothing,
    };
    let rows = RowCodes::ragged(n, codes.indices.len(), starts.address, indices.address, values.address);
    decode(engine, &w, (base, 1.0), &rows, 0..d_sae, &Decoded { full: engine.address(&out)?, half: 0, squares: 0 })?;
    Ok(out)
}

/// Where the elements of an f32 tensor begin.
fn numbers_of(engine: &dyn Engine, tensor: &Tensor) -> Result<u64> {
    match tensor.dtype() {
        DType::F32 => engine.address(tensor),
        got => Err(candle_core::Error::UnexpectedDType { msg: "kernels", expected: DType::F32, got }.into()),
    }
}

/// See [`crate::kernels::fill_gram`].
pub fn fill_gram(engine: &dyn Engine, atoms: &Tensor, to: &Tensor) -> Result<()> {
    match atoms.dims2()? {
        (0, _) => Ok(()),
        shape => gram(engine, numbers_of(engine, atoms)?, shape, numbers_of(engine, to)?),
    }
}

/// An empty path, and where its parts are.
fn path(engine: &dyn Engine, x: &Tensor, steps: usize) -> Result<(PursuitPath, Path)> {
    let ((n, d), device) = (x.dims2()?, x.device());
    let path = PursuitPath {
        indices: Tensor::zeros((n, steps), DType::U32, device)?,
        values: Tensor::zeros((n, steps), DType::F32, device)?,
        residual: Tensor::zeros((n, d), DType::F32, device)?,
    };
    let [indices, values, residual] = [&path.indices, &path.values, &path.residual].map(|t| engine.address(t));
    let to = Path { indices: indices?, values: values?, residual: residual? };
    Ok((path, to))
}

/// See [`crate::kernels::pursuit`].
pub fn pursuit(engine: &dyn Engine, x: &Tensor, atoms: &Tensor, gram: Option<&Tensor>, rule: &PursuitRule) -> Result<PursuitPath> {
    let ((n, _), (m, d)) = (x.dims2()?, atoms.dims2()?);
    let (path, to) = path(engine, x, rule.steps)?;
    if n > 0 {
        let gram = gram.map(|g| numbers_of(engine, g)).transpose()?;
        let atoms = Atoms { at: numbers_of(engine, atoms)?, gram, m, d };
        pursue(engine, numbers_of(engine, x)?, n, &atoms, rule, &to, Room::new(n, &atoms))?;
    }
    Ok(path)
}

/// See [`crate::kernels::orthogonal_pursuit`].
pub fn orthogonal_pursuit(engine: &dyn Engine, x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> Result<PursuitPath> {
    let ((n, _), (m, d)) = (x.dims2()?, atoms.dims2()?);
    let (path, to) = path(engine, x, rule.steps)?;
    if n > 0 {
        let atoms = Atoms { at: numbers_of(engine, atoms)?, gram: None, m, d };
        pursue_orthogonally(engine, numbers_of(engine, x)?, n, &atoms, rule, &to, orthogonal_room(n, rule.steps))?;
    }
    Ok(path)
}
