//! MNIST from its own files (idx, gzipped or not); nothing is downloaded and nothing is shipped.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::rows::Set;
use crate::error::{Error, Result};

/// Ends of the names of the files that are read; anything may stand before.
const FILES: [&str; 2] = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"];
/// Mean and standard deviation of all pixels, as usual for MNIST.
const MEAN: f32 = 0.1307;
const STD: f32 = 0.3081;
/// Pixels of a side.
const SIDE: usize = 28;
const SMALL: usize = 8;
/// "Unsigned bytes in three dimensions".
const MAGIC: u32 = 0x0000_0803;

/// Training and test images, values from 0 to 1, 784 wide.
#[derive(Debug, Clone)]
pub struct Mnist {
    /// 60,000 rows in the original.
    pub train: Set,
    /// 10,000.
    pub test: Set,
}

impl Mnist {
    /// Reads both files of a folder.
    ///
    /// # Errors
    /// A file that is not there or not what it should be.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut sets = Vec::new();
        for name in FILES {
            sets.push(images(&find(dir, name)?)?);
        }
        let test = sets.pop().unwrap_or_default();
        Ok(Self { train: sets.pop().unwrap_or_default(), test })
    }
}

fn find(dir: &Path, name: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    found.retain(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.trim_end_matches(".gz").ends_with(name)));
    found.sort();
    found.into_iter().next().ok_or_else(|| {
        Error::request(
            format!("{} holds no {name}.gz", dir.display()),
            format!("--mnist wants the folder of MNIST's {} and {}, gzipped or not", FILES[0], FILES[1]),
        )
    })
}

/// The images of an idx file, values from 0 to 1.
///
/// # Errors
/// Another format, another size of images, fewer or more bytes than announced, values without any spread.
fn images(path: &Path) -> Result<Set> {
    let bad =
        |problem: String| Error::format("MNIST image file", path, problem, "fetch the file again: 28 x 28 images in idx3-ubyte format");
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw).map_err(|e| Error::io("read", path, e))?;
    let mut bytes = Vec::new();
    if raw.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(raw.as_slice()).read_to_end(&mut bytes).map_err(|e| bad(format!("its compression is damaged ({e})")))?;
    } else {
        bytes = raw;
    }
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(magic), Some(n), Some(rows), Some(columns)) = (word(0), word(1), word(2), word(3)) else {
        return Err(bad(format!("its header is cut off after {} bytes", bytes.len())));
    };
    if magic != MAGIC {
        return Err(bad(format!("it begins with {magic:#010x}, images with {MAGIC:#010x}")));
    }
    if (rows as usize, columns as usize) != (SIDE, SIDE) {
        return Err(bad(format!("its images are {rows} x {columns}")));
    }
    let (announced, there) = (n as usize * SIDE * SIDE, bytes.len() - 16);
    if announced != there || n == 0 {
        return Err(bad(format!("{n} images are {announced} bytes, there are {there}")));
    }
    Ok(Set { x: bytes[16..].iter().map(|&b| f32::from(b) / 255.0).collect(), d: SIDE * SIDE })
}

/// Pixels minus their mean over their standard deviation, the usual constants of MNIST.
pub fn standardised(set: &Set) -> Set {
    Set { x: set.x.iter().map(|v| (v - MEAN) / STD).collect(), d: set.d }
}

/// Images averaged over areas to 8 x 8, 64 wide: a small pixel is the mean of the 3.5 x 3.5 it covers.
pub fn shrunk(set: &Set) -> Set {
    let step = SIDE as f32 / SMALL as f32;
    // How much of each old pixel a new one covers, along one side.
    let cover = |new: usize, old: usize| {
        let (from, to) = (new as f32 * step, (new + 1) as f32 * step);
        (to.min(old as f32 + 1.0) - from.max(old as f32)).max(0.0) / step
    };
    let weights: Vec<Vec<f32>> = (0..SMALL).map(|new| (0..SIDE).map(|old| cover(new, old)).collect()).collect();
    let mut x = Vec::with_capacity(set.len() * SMALL * SMALL);
    for image in set.x.chunks_exact(SIDE * SIDE) {
        for row in &weights {
            for column in &weights {
                let mut sum = 0f32;
                for (line, r) in image.chunks_exact(SIDE).zip(row).filter(|(_, r)| **r > 0.0) {
                    sum += r * line.iter().zip(column).map(|(v, c)| v * c).sum::<f32>();
                }
                x.push(sum);
            }
        }
    }
    Set { x, d: SMALL * SMALL }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn idx(n: u32, side: u32, pixels: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [MAGIC, n, side, side] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend((0..pixels).map(|i| (i % 256) as u8));
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reads_both_files_gzipped_or_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mnist-train-images-idx3-ubyte.gz"), gz(&idx(2, 28, 2 * 784))).unwrap();
        let missing = Mnist::read(dir.path()).unwrap_err();
        assert!(missing.to_string().contains("t10k-images-idx3-ubyte") && missing.exit_code() == 2, "{missing}");
        std::fs::write(dir.path().join("t10k-images-idx3-ubyte"), idx(1, 28, 784)).unwrap();
        let mnist = Mnist::read(dir.path()).unwrap();
        assert_eq!((mnist.train.len(), mnist.test.len(), mnist.test.d), (2, 1, 784));
        assert_eq!(mnist.test.x[255], 1.0);
    }

    #[test]
    fn malformed_files_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut other = idx(1, 28, 784);
        other[3] = 1;
        let torn = gz(&idx(2, 28, 2 * 784));
        for (bytes, says) in [
            (idx(1, 28, 700), "784 bytes, there are 700"),
            (idx(1, 28, 800), "there are 800"),
            (idx(0, 28, 0), "0 images"),
            (idx(1, 27, 729), "27 x 27"),
            (other, "begins with"),
            (vec![0, 0, 8], "cut off"),
            (torn[..torn.len() / 2].to_vec(), "compression is damaged"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = images(&path).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("help: fetch"), "{error}");
        }
    }

    #[test]
    fn shrinking_keeps_the_mean() {
        let set = Set { x: (0..784).map(|i| (i % 7) as f32 / 7.0).collect(), d: 784 };
        let small = shrunk(&set);
        let mean = |s: &Set| s.x.iter().sum::<f32>() / s.x.len() as f32;
        assert_eq!((small.d, small.len()), (64, 1));
        assert!((mean(&small) - mean(&set)).abs() < 1e-5);
        let flat = shrunk(&Set { x: vec![0.25; 784], d: 784 });
        assert!(flat.x.iter().all(|v| (v - 0.25).abs() < 1e-6));
        let dot = shrunk(&Set { x: (0..784).map(|i| f32::from(u8::from(i == 3 * 28 + 3))).collect(), d: 784 });
        // Pixel 3 lies half in the first and half in the second of 3.5 pixels.
        assert!((dot.x[0] - 0.25 / 12.25).abs() < 1e-6 && (dot.x[9] - dot.x[0]).abs() < 1e-7);
    }
}
