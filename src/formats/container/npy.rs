//! NumPy's `.npy`: a magic number, a dict as text, numbers. Either order of axes and of bytes.
//!
//! Not for: structured types, strings, pickled objects (`dtype=object`, which would be a program).

use std::path::Path;

use super::array::{count, Array, Element};
use crate::error::{Error, Result};

const FORMAT: &str = "NumPy array";
const AGAIN: &str = "save it again with numpy.save, as float32";
/// Longer headers belong to structured types.
const MOST_HEADER: usize = 1 << 16;

/// The elements of `bytes`, row-major whatever order they are stored in. `path` is for messages.
///
/// # Errors
/// Something that is no .npy file of numbers, or whose length is not what its header says.
pub fn read(bytes: &[u8], path: &Path) -> Result<Array> {
    parse(bytes).map_err(|problem| Error::format(FORMAT, path, problem, AGAIN))
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let cut = "it ends inside its header";
    let rest = bytes.strip_prefix(b"\x93NUMPY".as_slice()).ok_or("it does not begin as one")?;
    let (version, rest) = rest.split_at_checked(2).ok_or(cut)?;
    let (length, rest) = match version[0] {
        1 => {
            let (n, rest) = rest.split_at_checked(2).ok_or(cut)?;
            (usize::from(n[0]) | usize::from(n[1]) << 8, rest)
        }
        2 | 3 => {
            let (n, rest) = rest.split_at_checked(4).ok_or(cut)?;
            (n.iter().rev().fold(0usize, |v, &b| v << 8 | usize::from(b)), rest)
        }
        other => return Err(format!("its version is {other}; 1 to 3 are read")),
    };
    if length > MOST_HEADER {
        return Err(format!("its header claims {length} bytes"));
    }
    let (text, data) = rest.split_at_checked(length).ok_or(cut)?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is not text")?;
    let header = header(text).ok_or_else(|| format!("its header is not understood: {}", text.trim()))?;
    let (element, big_endian) = element(header.descr)?;
    let size = element.size();
    let expected = count(&header.shape).and_then(|n| n.checked_mul(size));
    if expected != Some(data.len()) {
        return Err(format!("{} bytes are there for {} of shape {:?}", data.len(), header.descr, header.shape));
    }
    let mut data = if header.fortran && header.shape.len() > 1 { row_major(data, &header.shape, size) } else { data.to_vec() };
    if big_endian {
        data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    Array::new(element, header.shape, data).map_err(|e| e.to_string())
}

struct Header<'a> {
    descr: &'a str,
    fortran: bool,
    shape: Vec<usize>,
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 64), }`, the keys in any order, and nothing else.
fn header(text: &str) -> Option<Header<'_>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| ['\'', '"'].contains(c))?;
        let (key, after) = rest[1..].split_once(quote)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        let after = match key {
            "descr" if descr.is_none() => {
                let quote = value.chars().next().filter(|c| ['\'', '"'].contains(c))?;
                let (name, after) = value[1..].split_once(quote)?;
                descr = Some(name);
                after
            }
            "fortran_order" if fortran.is_none() => {
                let (order, after) = match value.strip_prefix("True") {
                    Some(after) => (true, after),
                    None => (false, value.strip_prefix("False")?),
                };
                fortran = Some(order);
                after
            }
            "shape" if shape.is_none() => {
                let (inner, after) = value.strip_prefix('(')?.split_once(')')?;
                // `(7,)` has a comma at its end, `(7)` would be no tuple.
                let sizes = inner.split(',').map(str::trim).filter(|s| !s.is_empty());
                // Python 2 wrote longs as `7L`.
                shape = Some(sizes.map(|s| s.trim_end_matches('L').parse().ok()).collect::<Option<Vec<usize>>>()?);
                after
            }
            _ => return None,
        };
        rest = after.trim_start();
        rest = rest.strip_prefix(',').map_or(rest, str::trim_start);
    }
    Some(Header { descr: descr?, fortran: fortran?, shape: shape? })
}

/// Kind and order of bytes.
fn element(descr: &str) -> Result<(Element, bool), String> {
    let (order, kind) = descr.split_at_checked(1).ok_or_else(|| format!("its type {descr:?} is none"))?;
    let big_endian = match order {
        "<" | "|" | "=" => false,
        ">" => true,
        _ => return Err(format!("its type {descr:?} is none of numbers")),
    };
    let element = match kind {
        "f8" => Element::F64,
        "f4" => Element::F32,
        "f2" => Element::F16,
        "i8" => Element::I64,
        "i4" => Element::I32,
        "i2" => Element::I16,
        "i1" => Element::I8,
        "u1" => Element::U8,
        "b1" => Element::Bool,
        "O" => return Err("it holds Python objects (dtype=object), which would be run to be read".into()),
        _ => return Err(format!("its type {descr:?} is not read: floats of 2, 4, 8 bytes and integers up to 8 are")),
    };
    Ok((element, big_endian))
}

/// Elements whose first axis runs fastest, in row-major order.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = vec![1usize; shape.len()];
    for i in 1..shape.len() {
        strides[i] = strides[i - 1].wrapping_mul(shape[i - 1]);
    }
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    let mut at = 0usize;
    for _ in 0..data.len() / size {
        out.extend_from_slice(&data[at * size..(at + 1) * size]);
        for i in (0..index.len()).rev() {
            index[i] += 1;
            at += strides[i];
            if index[i] < shape[i] {
                break;
            }
            at -= index[i] * strides[i];
            index[i] = 0;
        }
    }
    out
}

/// The bytes of a `.npy` file (version 1, C order). bf16, which NumPy lacks, becomes f32.
pub fn write(array: &Array) -> Vec<u8> {
    let as_f32;
    let array = if array.element == Element::Bf16 {
        as_f32 = Array::from_f32(array.shape.clone(), &array.to_f32()).expect("the shape is that of the values");
        &as_f32
    } else {
        array
    };
    let descr = match array.element {
        Element::F64 => "<f8",
        Element::F32 | Element::Bf16 => "<f4",
        Element::F16 => "<f2",
        Element::I64 => "<i8",
        Element::I32 => "<i4",
        Element::I16 => "<i2",
        Element::I8 => "|i1",
        Element::U8 => "|u1",
        Element::Bool => "|b1",
    };
    let shape: String = match array.shape.as_slice() {
        [one] => format!("{one},"),
        all => all.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Data begin at a multiple of 64; the header ends with a newline.
    let padding = (64 - (10 + dict.len() + 1) % 64) % 64;
    dict.push_str(&" ".repeat(padding));
    dict.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend(u16::try_from(dict.len()).expect("a shape of a few dimensions is short").to_le_bytes());
    out.extend(dict.as_bytes());
    out.extend(array.bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dict: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_written_comes_back_and_is_aligned() {
        for shape in [vec![], vec![6], vec![2, 3], vec![3, 1, 2], vec![0, 4]] {
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let array = Array::from_f32(shape, &values).unwrap();
            let bytes = write(&array);
            assert_eq!((bytes.len() - array.bytes().len()) % 64, 0);
            assert_eq!(parse(&bytes).unwrap(), array);
        }
        assert_eq!(parse(&write(&Array::from_i64(vec![2], &[-1, 1 << 40]).unwrap())).unwrap().to_i64().unwrap(), [-1, 1 << 40]);
    }

    #[test]
    fn both_orders_of_axes_and_bytes() {
        // [[0, 1, 2], [3, 4, 5]] by columns.
        let by_columns = file("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", &floats(&[0., 3., 1., 4., 2., 5.]));
        assert_eq!(parse(&by_columns).unwrap().to_f32(), [0., 1., 2., 3., 4., 5.]);
        let big: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_be_bytes()).collect();
        assert_eq!(parse(&file("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", &big)).unwrap().to_f32(), [1.5, -2.0]);
    }

    #[test]
    fn what_is_no_array_of_numbers_is_refused() {
        let f4 = |shape: &str| file(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}"), &[0; 16]);
        assert!(parse(&f4("4,")).is_ok() && parse(&f4("2, 2")).is_ok());
        for shape in ["5,", "3,", "-4,", "18446744073709551615, 18446744073709551615", "4611686018427387905,", "9999999999999999999999,"] {
            assert!(parse(&f4(shape)).is_err(), "{shape}");
        }
        assert!(parse(&file("{'descr': '|O', 'fortran_order': False, 'shape': (), }", b"cos\nsystem\n")).unwrap_err().contains("objects"));
        for dict in ["{}", "{'descr': '<f4'}", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "{'x': 1}", "{'"] {
            assert!(parse(&file(dict, &[0; 4])).is_err(), "{dict}");
        }
        let whole = f4("4,");
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_err(), "{n}");
        }
        assert!(parse(b"\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF").unwrap_err().contains("claims"));
    }
}
