//! Zip archives as PyTorch and NumPy write them: stored or deflated entries, with or without the 64-bit records.
//!
//! The reader is stricter than the specification where looseness is how archives lie: names must be plain relative paths and unique,
//! entries must not overlap, both headers of an entry must agree, sizes must be possible, checksums (where there are any) must match. The writer stores.
//!
//! Not for: unpacking to disk (nothing is ever written by a name in an archive), encryption, archives in several parts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Compressed entries may inflate to this many times the length of the archive, together...
pub const MOST_INFLATED: u64 = 16;
/// ... or to this many bytes, whichever is more.
pub const INFLATED_ANYWAY: u64 = 1 << 24;
/// Deflate cannot do better than this: a byte of it stands for 1032 at most.
const BEST_RATIO: u64 = 1032;

const FORMAT: &str = "zip archive";
const AGAIN: &str = "get the file again, or save it again with the tool that made it";

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const IN_64: u64 = u32::MAX as u64;

/// How an entry's bytes lie in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Deflated,
}

#[derive(Debug)]
struct Entry {
    method: Method,
    crc: u32,
    /// Where its data begins.
    at: usize,
    /// Bytes in the archive.
    packed: usize,
    /// Bytes of the data.
    size: usize,
}

/// An archive whose directory has been read and checked.
#[derive(Debug)]
pub struct Zip<'a> {
    bytes: &'a [u8],
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// Little-endian numbers, one after the other; `None` beyond the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, n: usize) -> Option<u64> {
        Some(self.take(n)?.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
    }

    fn u16(&mut self) -> Option<u64> {
        self.number(2)
    }

    fn u32(&mut self) -> Option<u64> {
        self.number(4)
    }

    fn u64(&mut self) -> Option<u64> {
        self.number(8)
    }
}

/// `bytes[at..at + n]`, if they are there.
fn slice(bytes: &[u8], at: u64, n: u64) -> Option<&[u8]> {
    let from = usize::try_from(at).ok()?;
    bytes.get(from..from.checked_add(usize::try_from(n).ok()?)?)
}

/// Where the directory lies: its offset, its length, how many entries it has.
struct End {
    at: u64,
    length: u64,
    entries: u64,
}

fn find_end(bytes: &[u8]) -> Result<End, String> {
    let cut = || "its end record is cut off".to_string();
    // The record is 22 bytes and a comment of at most 65535, which ends the file.
    let from = bytes.len().saturating_sub(22 + 0xFFFF);
    let ends_here = |at: &usize| {
        bytes[*at..].starts_with(END)
            && bytes.get(at + 20..at + 22).is_some_and(|n| at + 22 + usize::from(u16::from_le_bytes([n[0], n[1]])) == bytes.len())
    };
    let end = (from..bytes.len().saturating_sub(21)).rev().find(ends_here);
    let end =
        end.ok_or_else(
            || if bytes.starts_with(LOCAL) { "it is cut off: its directory is missing".into() } else { "it is none".to_string() },
        )?;
    let mut f = Fields(&bytes[end + 4..]);
    let mut numbers = || Some((f.u16()?, f.u16()?, f.u16()?, f.u16()?, f.u32()?, f.u32()?));
    let (disk, first_disk, here, entries, length, at) = numbers().ok_or_else(cut)?;
    let several = "it is one of several parts".to_string();
    let locator = end.checked_sub(20).filter(|&l| bytes[l..].starts_with(LOCATOR64));
    let (found, directory_end) = match locator {
        None => {
            if disk != 0 || first_disk != 0 || here != entries {
                return Err(several);
            }
            (End { at, length, entries }, end as u64)
        }
        Some(locator) => {
            let mut f = Fields(&bytes[locator + 4..end]);
            let (disk, at64, disks) = (|| Some((f.u32()?, f.u64()?, f.u32()?)))().ok_or_else(cut)?;
            if disk != 0 || disks > 1 {
                return Err(several);
            }
            let record =
                slice(bytes, at64, 56).filter(|r| r.starts_with(END64)).ok_or("its 64-bit end record is not where it should be")?;
            let mut f = Fields(&record[4..]);
            let rest = f.u64().ok_or_else(cut)?;
            if at64.checked_add(12).and_then(|a| a.checked_add(rest)) != Some(locator as u64) {
                return Err("its 64-bit end record has another length".into());
            }
            let mut numbers = || {
                f.take(4)?;
                Some((f.u32()?, f.u32()?, f.u64()?, f.u64()?, f.u64()?, f.u64()?))
            };
            let (disk, first_disk, here, entries64, length64, at64_directory) = numbers().ok_or_else(cut)?;
            if disk != 0 || first_disk != 0 || here != entries64 {
                return Err(several);
            }
            // What both records say must be the same.
            let agree = |narrow: u64, limit: u64, wide: u64| narrow == limit || narrow == wide;
            if !(agree(entries, 0xFFFF, entries64) && agree(length, IN_64, length64) && agree(at, IN_64, at64_directory)) {
                return Err("its two end records disagree".into());
            }
            (End { at: at64_directory, length: length64, entries: entries64 }, at64)
        }
    };
    if found.at.checked_add(found.length) != Some(directory_end) {
        return Err("its directory does not end where its end record begins".into());
    }
    // A directory entry is 46 bytes at least.
    if found.entries > found.length / 46 {
        return Err(format!("it claims {} entries in a directory of {} bytes", found.entries, found.length));
    }
    Ok(found)
}

/// Is `name` a plain relative path?
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('/')
        && !name.contains(['\\', ':', '\0'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| part != ".." && part != ".")
}

/// Reads the 64-bit values of an extra field into those of `values` that say to look there.
fn widen(mut extra: Fields<'_>, values: [&mut u64; 3]) -> Option<()> {
    if values.iter().all(|v| **v != IN_64) {
        return Some(());
    }
    while !extra.0.is_empty() {
        let (id, length) = (extra.u16()?, extra.u16()?);
        let mut body = Fields(extra.take(length as usize)?);
        if id == 1 {
            for value in values {
                if *value == IN_64 {
                    *value = body.u64()?;
                }
            }
            return Some(());
        }
    }
    // No such field: the values are what they are.
    Some(())
}

impl<'a> Zip<'a> {
    /// Reads the directory of an archive. `path` is for messages.
    ///
    /// # Errors
    /// An archive that is damaged, cut off, in a form that is not read, or that lies.
    pub fn new(bytes: &'a [u8], path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::format(FORMAT, path, problem, AGAIN);
        let end = find_end(bytes).map_err(bad)?;
        let directory = slice(bytes, end.at, end.length).ok_or_else(|| bad("its directory is outside the file".into()))?;
        let mut rest = Fields(directory);
        let mut entries = BTreeMap::new();
        let mut spans = Vec::new();
        let mut inflated = 0u64;
        for i in 0..end.entries {
            let (name, header_at, entry) = read_entry(bytes, &mut rest, end.at).map_err(|e| bad(format!("entry {i}: {e}")))?;
            spans.push((header_at, entry.at + entry.packed, name.clone()));
            if entry.method == Method::Deflated {
                inflated = inflated.saturating_add(entry.size as u64);
            }
            if entries.insert(name.clone(), entry).is_some() {
                return Err(bad(format!("it has two entries `{name}`")));
            }
        }
        if !rest.0.is_empty() {
            return Err(bad(format!("{} bytes follow the last entry of its directory", rest.0.len())));
        }
        spans.sort();
        if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(bad(format!("its entries `{}` and `{}` overlap", pair[0].2, pair[1].2)));
        }
        let most = INFLATED_ANYWAY.max(MOST_INFLATED.saturating_mul(bytes.len() as u64));
        if inflated > most {
            let problem = format!("{} bytes claim to inflate to {inflated}: more than {most} is taken for a bomb", bytes.len());
            return Err(Error::format(FORMAT, path, problem, "if the file is sound, save it without compression (numpy.savez)"));
        }
        Ok(Self { bytes, path: path.to_path_buf(), entries })
    }

    /// Where the archive lies, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Does it hold `name`?
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Length of an entry's data in bytes, if there is such an entry.
    pub fn size(&self, name: &str) -> Option<usize> {
        self.entries.get(name).map(|e| e.size)
    }

    /// The data of an entry, checked against its checksum where it has one; borrowed where it is stored.
    ///
    /// # Errors
    /// No such entry; data that are damaged.
    pub fn read(&self, name: &str) -> Result<Cow<'a, [u8]>> {
        let bad = |problem: String| Error::format(FORMAT, &self.path, problem, AGAIN);
        let entry = self.entries.get(name).ok_or_else(|| bad(format!("it has no entry `{name}`")))?;
        let packed = &self.bytes[entry.at..entry.at + entry.packed];
        let data = match entry.method {
            Method::Stored => Cow::Borrowed(packed),
            Method::Deflated => {
                // Grown as data come: the claimed size is trusted no further than the data go.
                let mut data = Vec::new();
                let most = entry.size as u64 + 1;
                let inflated = flate2::read::DeflateDecoder::new(packed).take(most).read_to_end(&mut data);
                inflated.map_err(|e| bad(format!("entry `{name}` cannot be inflated: {e}")))?;
                if data.len() != entry.size {
                    return Err(bad(format!("entry `{name}` is not {} bytes long, as its header says", entry.size)));
                }
                Cow::Owned(data)
            }
        };
        // PyTorch can be told not to compute checksums, and then writes 0.
        if entry.crc == 0 {
            return Ok(data);
        }
        let mut crc = flate2::Crc::new();
        crc.update(&data);
        if crc.sum() != entry.crc {
            return Err(bad(format!("entry `{name}` is damaged: its checksum is {:08x}, {:08x} expected", crc.sum(), entry.crc)));
        }
        Ok(data)
    }
}

/// The next entry of the directory, which begins at `directory_at`: its name, where its local header begins, and itself.
fn read_entry(bytes: &[u8], rest: &mut Fields<'_>, directory_at: u64) -> Result<(String, usize, Entry), String> {
    let cut = "its header is cut off";
    if rest.take(4) != Some(CENTRAL) {
        return Err("there is no header in the directory".into());
    }
    rest.take(4).ok_or(cut)?;
    let mut numbers = || {
        let (flags, method) = (rest.u16()?, rest.u16()?);
        rest.take(4)?;
        let (crc, packed, size) = (rest.u32()?, rest.u32()?, rest.u32()?);
        let (name, extra, comment, disk) = (rest.u16()?, rest.u16()?, rest.u16()?, rest.u16()?);
        rest.take(6)?;
        let at = rest.u32()?;
        let (name, extra) = (rest.take(name as usize)?, rest.take(extra as usize)?);
        rest.take(comment as usize)?;
        Some((flags, method, crc, packed, size, disk, at, name, extra))
    };
    let (flags, method, crc, mut packed, mut size, disk, mut at, raw_name, extra) = numbers().ok_or(cut)?;
    let name = std::str::from_utf8(raw_name).map_err(|_| "its name is not text")?.to_string();
    if !is_plain(&name) {
        return Err(format!("its name {name:?} is no plain relative path"));
    }
    widen(Fields(extra), [&mut size, &mut packed, &mut at]).ok_or("its 64-bit sizes are cut off")?;
    let about = |problem: String| format!("`{name}` {problem}");
    if flags & 1 != 0 {
        return Err(about("is encrypted".into()));
    }
    if disk != 0 {
        return Err(about("is in another part".into()));
    }
    let method = match method {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => return Err(about(format!("is compressed by method {other}; stored (0) and deflated (8) are read"))),
    };
    if method == Method::Stored && packed != size {
        return Err(about(format!("is stored, but {packed} bytes are there and {size} are announced")));
    }
    if size > packed.saturating_mul(BEST_RATIO).saturating_add(64) {
        return Err(about(format!("claims to inflate from {packed} to {size} bytes, which deflate cannot do")));
    }
    // The local header says it again.
    let mut local = Fields(slice(bytes, at, 30).ok_or_else(|| about("lies outside the file".into()))?);
    if local.take(4) != Some(LOCAL) {
        return Err(about("is not where the directory says".into()));
    }
    let mut numbers = || {
        local.take(2)?;
        let (flags, method) = (local.u16()?, local.u16()?);
        local.take(4)?;
        Some((flags, method, local.u32()?, local.u32()?, local.u32()?, local.u16()?, local.u16()?))
    };
    let (local_flags, local_method, local_crc, mut local_packed, mut local_size, name_length, extra_length) = numbers().ok_or(cut)?;
    let after = at + 30;
    let outside = || about("lies outside the file".into());
    let local_name = slice(bytes, after, name_length).ok_or_else(outside)?;
    let local_extra = slice(bytes, after + name_length, extra_length).ok_or_else(outside)?;
    let mut nowhere = 0;
    widen(Fields(local_extra), [&mut local_size, &mut local_packed, &mut nowhere]).ok_or("its 64-bit sizes are cut off")?;
    let same_method = local_method == if method == Method::Stored { 0 } else { 8 };
    // With bit 3 the sizes come after the data, and here are zeros.
    let same_sizes = local_flags & 8 != 0 || (local_crc, local_packed, local_size) == (crc, packed, size);
    if local_name != raw_name || !same_method || !same_sizes || local_flags & 1 != 0 {
        return Err(about("is described in two ways that disagree".into()));
    }
    let data_at = after + name_length + extra_length;
    let data_end = data_at.checked_add(packed).filter(|&e| e <= directory_at);
    if data_end.is_none() {
        return Err(about(format!("is cut off: {packed} bytes were announced")));
    }
    // All below the file's length by now.
    let entry = Entry { method, crc: crc as u32, at: data_at as usize, packed: packed as usize, size: size as usize };
    Ok((name, at as usize, entry))
}

/// Writes an archive of stored entries, one after the other.
#[derive(Debug)]
pub struct ZipWriter<W: Write> {
    out: W,
    at: u64,
    directory: Vec<u8>,
    entries: u64,
}

/// Data begin at multiples of this, as PyTorch wants them for mapping.
const ALIGN: u64 = 64;

impl<W: Write> ZipWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, at: 0, directory: Vec::new(), entries: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// What the output says; a name beyond 65535 bytes.
    pub fn add(&mut self, name: &str, data: &[u8]) -> std::io::Result<()> {
        let name_length = u16::try_from(name.len()).map_err(|_| std::io::Error::other("a name beyond 65535 bytes"))?;
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let (size, at) = (data.len() as u64, self.at);
        let wide = size >= IN_64 || at >= IN_64;
        let narrow = |v: u64| if wide { u32::MAX } else { v as u32 };
        // Version, flags, method, time, date (1980-01-01: no wall clock in what is written), checksum, both sizes, length of the name.
        let mut common = Vec::with_capacity(26);
        for v in [if wide { 45u16 } else { 20 }, 0, 0, 0, 0x21] {
            common.extend(v.to_le_bytes());
        }
        for v in [crc.sum(), narrow(size), narrow(size)] {
            common.extend(v.to_le_bytes());
        }
        common.extend(name_length.to_le_bytes());
        let mut extra = Vec::new();
        if wide {
            extra.extend([1u16.to_le_bytes(), 16u16.to_le_bytes()].concat());
            extra.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        }
        // PyTorch's own padding field, `FB`.
        let before = at + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = (ALIGN - before % ALIGN) % ALIGN;
        extra.extend([b"FB".as_slice(), &(padding as u16).to_le_bytes()].concat());
        extra.resize(extra.len() + padding as usize, b'Z');

        self.put(LOCAL)?;
        self.put(&common)?;
        self.put(&(extra.len() as u16).to_le_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&extra)?;
        self.put(data)?;

        let mut extra = Vec::new();
        if wide {
            extra.extend([1u16.to_le_bytes(), 24u16.to_le_bytes()].concat());
            extra.extend([size.to_le_bytes(), size.to_le_bytes(), at.to_le_bytes()].concat());
        }
        let d = &mut self.directory;
        d.extend(CENTRAL);
        d.extend(45u16.to_le_bytes());
        d.extend(common);
        d.extend((extra.len() as u16).to_le_bytes());
        // No comment, first part, no attributes.
        d.extend([0; 10]);
        d.extend(narrow(at).to_le_bytes());
        d.extend(name.as_bytes());
        d.extend(extra);
        self.entries += 1;
        Ok(())
    }

    /// Writes the directory and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> std::io::Result<W> {
        let directory = std::mem::take(&mut self.directory);
        let (at, length, n) = (self.at, directory.len() as u64, self.entries);
        self.put(&directory)?;
        if at >= IN_64 || length >= IN_64 || n >= 0xFFFF {
            let end = self.at;
            self.put(END64)?;
            self.put(&44u64.to_le_bytes())?;
            self.put(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
            for v in [n, n, length, at] {
                self.put(&v.to_le_bytes())?;
            }
            self.put(LOCATOR64)?;
            self.put(&0u32.to_le_bytes())?;
            self.put(&end.to_le_bytes())?;
            self.put(&1u32.to_le_bytes())?;
        }
        self.put(END)?;
        self.put(&[0; 4])?;
        let n = n.min(0xFFFF) as u16;
        self.put(&[n.to_le_bytes(), n.to_le_bytes()].concat())?;
        self.put(&(length.min(IN_64) as u32).to_le_bytes())?;
        self.put(&(at.min(IN_64) as u32).to_le_bytes())?;
        self.put(&[0; 2])?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests;
