//! Which tensors a GGUF file holds, and where.

use std::collections::HashSet;
use std::ops::Range;

use super::super::ggml::{GgmlType, name_of_code};
use super::GgufError;
use super::cursor::Cursor;

/// More tensors than any file has: the largest models have some thousand.
const MOST_TENSORS: u64 = 1 << 16;

/// The longest name, in bytes. GGML itself takes 63; longer ones are seen.
const LONGEST_NAME: u64 = 512;

/// Four are GGML's own; convolutions over time are written with five.
const MOST_DIMENSIONS: u32 = 8;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// As the file has it.
    pub name: String,
    /// How its numbers are stored.
    pub kind: GgmlType,
    /// Rows first: the file has the width first.
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// A tensor before it is known where the tensors start.
struct Entry {
    name: String,
    kind: GgmlType,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

/// Reads about so many tensors (`count`), which start at multiples of `alignment`.
pub(super) fn read(
    cursor: &mut Cursor,
    count: u64,
    alignment: u64,
) -> Result<Vec<GgufTensor>, GgufError> {
    if count > MOST_TENSORS {
        return Err(GgufError::TooMany { what: "tensors", claimed: count, most: MOST_TENSORS });
    }
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let entry = entry(cursor)?;
        if !names.insert(entry.name.clone()) {
            return Err(GgufError::DuplicateTensor { name: entry.name });
        }
        entries.push(entry);
    }
    drop(names);
    let start = (cursor.at() as u64).checked_next_multiple_of(alignment);
    let length = cursor.file_length();
    let tensors = entries.into_iter().map(|entry| placed(entry, start, alignment, length));
    let tensors: Vec<_> = tensors.collect::<Result<_, _>>()?;
    refuse_overlaps(&tensors)?;
    Ok(tensors)
}

fn entry(cursor: &mut Cursor) -> Result<Entry, GgufError> {
    let what = "the list of tensors";
    let name = cursor.text(LONGEST_NAME, "a tensor's name")?;
    let dimensions = cursor.u32(what)?;
    if dimensions > MOST_DIMENSIONS {
        let (tensor, most) = (name.to_owned(), MOST_DIMENSIONS);
        return Err(GgufError::Dimensions { tensor, dimensions, most });
    }
    let mut shape: Vec<u64> = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64(what)?);
    }
    shape.reverse();
    let code = cursor.u32(what)?;
    let unread =
        || GgufError::TensorType { tensor: name.to_owned(), code, name: name_of_code(code) };
    let kind = GgmlType::from_code(code).ok_or_else(unread)?;
    let offset = cursor.u64(what)?;
    let (shape, bytes) = size(name, kind, &shape)?;
    Ok(Entry { name: name.to_owned(), kind, shape, bytes, offset })
}

/// The shape and the number of bytes, if they are numbers.
fn size(name: &str, kind: GgmlType, shape: &[u64]) -> Result<(Vec<usize>, u64), GgufError> {
    let tensor = || name.to_owned();
    let too_large = || GgufError::TooLarge { tensor: tensor(), shape: shape.to_vec() };
    let sides: Option<Vec<usize>> = shape.iter().map(|side| usize::try_from(*side).ok()).collect();
    let sides = sides.ok_or_else(too_large)?;
    // The number of elements must be one, too, which that of blocks may be where it is not.
    let product =
        |sides: &[usize]| sides.iter().try_fold(1_usize, |all, side| all.checked_mul(*side));
    product(&sides).ok_or_else(too_large)?;
    let (width, rows) = sides.split_last().map_or((1, &[][..]), |(width, rows)| (*width, rows));
    if !width.is_multiple_of(kind.block_elements()) {
        let (width, kind) = (width as u64, kind.name());
        return Err(GgufError::PartialBlock { tensor: tensor(), width, kind });
    }
    let row = kind.row_bytes(width).ok_or_else(too_large)?;
    let bytes = product(rows).and_then(|rows| rows.checked_mul(row)).ok_or_else(too_large)?;
    Ok((sides, bytes as u64))
}

/// The tensor of `entry` in a file of `length` bytes whose tensors begin at `start`.
fn placed(
    entry: Entry,
    start: Option<u64>,
    alignment: u64,
    length: usize,
) -> Result<GgufTensor, GgufError> {
    let Entry { name, kind, shape, bytes, offset } = entry;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Unaligned { tensor: name, offset, alignment });
    }
    let begin = start.and_then(|start| start.checked_add(offset));
    let end = begin.and_then(|begin| begin.checked_add(bytes));
    let place = |at: Option<u64>| usize::try_from(at?).ok().filter(|at| *at <= length);
    // An empty tensor at the end may stand behind what would fill the file up to it.
    let range = match (place(begin), place(end)) {
        (Some(begin), Some(end)) => begin..end,
        _ if bytes == 0 && end.is_some() => length..length,
        _ => return Err(GgufError::OutOfFile { tensor: name, end, length }),
    };
    Ok(GgufTensor { name, kind, shape, range })
}

fn refuse_overlaps(tensors: &[GgufTensor]) -> Result<(), GgufError> {
    let mut placed: Vec<_> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    placed.sort_by_key(|tensor| tensor.range.start);
    for pair in placed.windows(2) {
        if let [first, second] = pair
            && first.range.end > second.range.start
        {
            let (first, second) = (first.name.clone(), second.name.clone());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(())
}
