//! The header of NumPy's .npy files. Little-endian, C order; anything else is refused with the way out.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Kind and size of an element: `f4`, `u2`, ...
    pub dtype: String,
    /// Shape; a scalar's is empty.
    pub shape: Vec<u64>,
    /// Offset of the first element in bytes.
    pub data_at: u64,
}

/// Reads the header; the input then stands at the first element.
///
/// # Errors
/// When it is no .npy file, in Fortran order, or big-endian.
pub(crate) fn header(input: &mut impl Read, path: &Path) -> Result<Header> {
    let bad = |problem: String| Error::format("NumPy array", path, problem, "save it again with numpy.save");
    let mut take = |n: usize| -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        input.read_exact(&mut bytes).map_err(|_| bad("it ends inside its header".to_string()))?;
        Ok(bytes)
    };
    let magic = take(8)?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err(bad("it does not begin as one".to_string()));
    }
    let wide = magic[6] >= 2;
    let length = take(if wide { 4 } else { 2 })?.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
    if length > 1 << 20 {
        return Err(bad(format!("its header claims {length} bytes")));
    }
    let data_at = 8 + if wide { 4 } else { 2 } + length as u64;
    let text = String::from_utf8(take(length)?).map_err(|_| bad("its header is not text".to_string()))?;
    let value = |key: &str| -> Option<&str> {
        let at = text.find(&format!("'{key}'"))? + key.len() + 2;
        Some(text[at..].trim_start().strip_prefix(':')?.trim_start())
    };
    let unclear = || bad(format!("its header is not understood: {}", text.trim()));
    let descr = value("descr").and_then(|v| v.strip_prefix('\'')).and_then(|v| v.split('\'').next()).ok_or_else(unclear)?;
    let fortran = value("fortran_order").ok_or_else(unclear)?.starts_with("True");
    let shape = value("shape").and_then(|v| v.strip_prefix('(')).and_then(|v| v.split(')').next()).ok_or_else(unclear)?;
    let shape = shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::parse).collect::<Result<Vec<u64>, _>>();
    let shape = shape.map_err(|_| unclear())?;
    if fortran && shape.len() > 1 {
        return Err(Error::format("NumPy array", path, "it is in Fortran (column) order", "save numpy.ascontiguousarray(x) instead of x"));
    }
    if descr.starts_with('>') {
        return Err(Error::format("NumPy array", path, "it is big-endian", "save x.astype(x.dtype.newbyteorder('<'))"));
    }
    let dtype = descr.trim_start_matches(['<', '|', '=']).to_string();
    Ok(Header { dtype, shape, data_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dict: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        header(&mut &bytes[..], Path::new("x.npy"))
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let h = parse(&file("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 64), }   \n")).unwrap();
        assert_eq!((h.dtype.as_str(), h.shape.as_slice()), ("f4", &[3u64, 64][..]));
        assert_eq!(parse(&file("{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }")).unwrap().shape, [7]);
        assert_eq!(parse(&file("{'descr': '<i8', 'fortran_order': False, 'shape': (), }")).unwrap().shape, Vec::<u64>::new());
    }

    #[test]
    fn what_cannot_be_read_says_how_to_save_it() {
        let e = parse(&file("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 64), }")).unwrap_err().to_string();
        assert!(e.contains("ascontiguousarray"), "{e}");
        assert!(parse(&file("{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }")).unwrap_err().to_string().contains("big-endian"));
        for junk in [&b"PK\x03\x04junkjunk"[..], b"\x93NUMPY", b"", b"\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF"] {
            assert!(parse(junk).is_err());
        }
    }
}
