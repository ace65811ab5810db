//! The open files of a component: where each tensor lies in them, without reading it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorView;

use super::file_set::ComponentFile;
use super::listing::FileListing;
use super::mapped::Place;
use super::naming::{Named, Naming};
use super::scales;
use super::storage::{Part, Storage};
use super::vectorised::vectorised;
use super::weight_files::{WeightFile, WeightFiles, shards};
use super::{CheckpointError, Snapshot};

/// The open files of one component.
pub(super) struct TensorFiles {
    buffers: Vec<Buffer>,
    entries: HashMap<String, Entry>,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) parts: Vec<Part>,
    pub(super) joining: Joining,
}

/// How the parts of a tensor make it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joining {
    /// Rows below each other, as along the first axis.
    Rows,
    /// Side by side along the third axis.
    Slices,
}

enum Buffer {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// How a file's names become those that a component asks for.
struct Names<'a> {
    /// Names without it are of other components.
    prefix: &'a str,
    naming: Naming,
    canonical: fn(&str) -> String,
}

impl TensorFiles {
    const EMPTY: fn() -> Self = || Self { buffers: Vec::new(), entries: HashMap::new() };

    /// Opens the weights of `component`: the files that the snapshot has for it, else those
    /// that [`WeightFiles`] chooses.
    pub(super) fn open(
        snapshot: &Snapshot,
        component: &str,
        stem: &str,
        canonical: fn(&str) -> String,
    ) -> Result<Self, CheckpointError> {
        let mut files = Self::EMPTY();
        let own = snapshot.files_of(component);
        for ComponentFile { path, naming, prefix, .. } in &own {
            let buffer = map(path)?;
            files.add(
                buffer,
                &path.display().to_string(),
                &Names { prefix, naming: *naming, canonical },
            )?;
        }
        if own.is_empty() {
            let names = Names { prefix: "", naming: Naming::Published, canonical };
            for name in file_names(snapshot, component, stem)? {
                let file = format!("{component}/{name}");
                files.add(open_buffer(snapshot, &file)?, &file, &names)?;
            }
        }
        Ok(files)
    }

    /// The one safetensors file `file`, its tensors as they lie, and its metadata.
    pub(super) fn open_one(
        snapshot: &Snapshot,
        file: &str,
    ) -> Result<(Self, BTreeMap<String, String>), CheckpointError> {
        let malformed = |reason| CheckpointError::Malformed { file: file.to_owned(), reason };
        let mut files = Self::EMPTY();
        let buffer = open_buffer(snapshot, file)?;
        let listing = FileListing::read(buffer.bytes()).map_err(malformed)?;
        files.buffers.push(buffer);
        for (name, tensor) in listing.tensors {
            let part = Part::new(0, tensor.range, tensor.storage, &tensor.shape);
            let part = part.ok_or_else(|| malformed(format!("has {name} in too few bytes")))?;
            let (shape, parts) = (tensor.shape, vec![part]);
            files.entries.insert(name, Entry { shape, parts, joining: Joining::Rows });
        }
        Ok((files, listing.metadata))
    }

    fn add(&mut self, buffer: Buffer, file: &str, names: &Names) -> Result<(), CheckpointError> {
        let malformed = |reason| CheckpointError::Malformed { file: file.to_owned(), reason };
        let listing = FileListing::read(buffer.bytes()).map_err(malformed)?;
        let mut listing = listing.below(names.prefix);
        scales::attach(&mut listing, buffer.bytes(), names.prefix).map_err(malformed)?;
        let number = self.buffers.len();
        let mut joined: BTreeMap<String, BTreeMap<usize, Joined>> = BTreeMap::new();
        for (stored, tensor) in listing.tensors {
            let part = Part::new(number, tensor.range, tensor.storage, &tensor.shape);
            let part = part.ok_or_else(|| malformed(format!("has {stored} in too few bytes")))?;
            let (name, place, joining) = match names.naming.named(&stored) {
                Named::Mark => continue,
                Named::Whole(name) => ((names.canonical)(&name), 0, Joining::Rows),
                Named::Rows(name, place) => (name, place, Joining::Rows),
                Named::Slice(name, place) => (name, place, Joining::Slices),
            };
            let parts = joined.entry(name).or_default();
            if parts.insert(place, Joined { shape: tensor.shape, part, joining }).is_some() {
                return Err(malformed(format!("has {stored} under two names")));
            }
        }
        for (name, parts) in joined {
            let entry = Joined::entry(parts.into_values().collect());
            let entry = entry.map_err(|fault| malformed(format!("{name} {fault}")))?;
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(malformed(format!("has {name}, which an earlier file has, too")));
            }
        }
        self.buffers.push(buffer);
        Ok(())
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The names of the quantized formats that tensors lie in.
    pub(super) fn quantized_formats(&self) -> Vec<String> {
        let parts = self.entries.values().flat_map(|entry| &entry.parts);
        let quantized = parts.filter(|part| part.storage.is_quantized());
        let names: BTreeSet<String> = quantized.map(|part| part.storage.name()).collect();
        names.into_iter().collect()
    }

    /// How many elements the files hold.
    pub(super) fn elements(&self) -> usize {
        let counts = self.entries.values().map(|entry| entry.shape.iter().product::<usize>());
        counts.fold(0, usize::saturating_add)
    }

    /// Asks the system to have the tensor `name` read from the disk. Returns at once.
    pub(super) fn read_ahead(&self, name: &str) {
        #[cfg(unix)]
        for part in self.entries.get(name).into_iter().flat_map(|entry| &entry.parts) {
            if let Some(Buffer::Mapped(map)) = self.buffers.get(part.buffer) {
                // Advice only: where it is refused, the tensor is read when it is taken.
                let (start, length) = (part.range.start, part.range.len());
                _ = map.advise_range(memmap2::Advice::WillNeed, start, length);
            }
        }
    }

    /// The tensor `name`, or why it cannot be taken with this shape.
    pub(super) fn find(&self, name: &str, shape: &[usize]) -> Option<Result<Stored<'_>, String>> {
        let entry = self.entries.get(name)?;
        if entry.shape != shape {
            return Some(Err(format!("{name} has shape {:?}, expected {shape:?}", entry.shape)));
        }
        let unknown = entry.parts.iter().find(|part| !part.storage.is_known());
        Some(match unknown {
            Some(part) => Err(format!(
                "{name} is stored as {}, which is not supported for weights",
                part.storage.name()
            )),
            None => Ok(Stored { files: self, entry }),
        })
    }

    /// The tensor `name` of whatever shape, if it is stored as one of `known`, or why it
    /// cannot be taken.
    pub(super) fn find_of(
        &self,
        name: &str,
        known: &[safetensors::Dtype],
    ) -> Option<Result<TensorView<'_>, String>> {
        let entry = self.entries.get(name)?;
        let view = (Stored { files: self, entry }).view();
        Some(match view {
            Some(view) if known.contains(&view.dtype()) => Ok(view),
            _ => {
                let name_of = |part: &Part| part.storage.name();
                let stored: Vec<String> = entry.parts.iter().map(name_of).collect();
                Err(format!("{name} is stored as {}", stored.join(" and ")))
            }
        })
    }

    /// Where the tensor `name` of `shape` lies, if it lies in one piece, unquantized.
    pub(super) fn place_of(&self, name: &str, shape: &[usize]) -> Option<Place> {
        let entry = self.entries.get(name).filter(|entry| entry.shape == shape)?;
        let [Part { buffer, range, storage: Storage::Plain(dtype), .. }] = &entry.parts[..] else {
            return None;
        };
        Some(Place { buffer: *buffer, range: range.clone(), dtype: *dtype })
    }

    /// Where the quantized matrix `name` of `shape` lies: its rows, part by part.
    pub(super) fn quantized_parts(&self, name: &str, shape: &[usize]) -> Option<&[Part]> {
        let entry = self.entries.get(name).filter(|entry| entry.shape == shape)?;
        let is_quantized = entry.parts.iter().any(|part| part.storage.is_quantized());
        (is_quantized && entry.joining == Joining::Rows).then_some(&entry.parts)
    }

    /// The bytes at `place`.
    pub(super) fn bytes_at(&self, place: &Place) -> Option<&[u8]> {
        self.buffers.get(place.buffer)?.bytes().get(place.range.clone())
    }

    /// The bytes of `part`.
    pub(super) fn bytes_of(&self, part: &Part) -> &[u8] {
        let bytes = self.buffers.get(part.buffer).map(Buffer::bytes).unwrap_or_default();
        bytes.get(part.range.clone()).unwrap_or_default()
    }

    /// The one finite number that the tensor `name` holds, of whatever format and rank.
    pub(super) fn number(&self, name: &str) -> Result<f64, String> {
        let entry = self.entries.get(name).ok_or_else(|| format!("{name} is missing"))?;
        if entry.shape.iter().product::<usize>() != 1 {
            return Err(format!("{name} has shape {:?}, expected one number", entry.shape));
        }
        let number = entry.parts.first().and_then(|part| match part.storage {
            Storage::Plain(dtype) => number_in(dtype, self.bytes_of(part)),
            Storage::Ggml(_) | Storage::Eight(_) => None,
        });
        let number = number.ok_or_else(|| format!("{name} is stored as no number"))?;
        let finite = number.is_finite().then_some(number);
        finite.ok_or_else(|| format!("{name} is {number}, expected a finite number"))
    }
}

/// A tensor that is a part of another, or all of it.
struct Joined {
    shape: Vec<usize>,
    part: Part,
    joining: Joining,
}

impl Joined {
    /// The tensor that `parts` make up, or why they do not.
    fn entry(parts: Vec<Self>) -> Result<Entry, String> {
        let Some(first) = parts.first() else { return Err("has no parts".to_owned()) };
        let (mut shape, joining) = (first.shape.clone(), first.joining);
        let inner = |part: &Self| part.shape.get(1..).unwrap_or_default().to_vec();
        let others: Vec<Vec<usize>> = parts.iter().map(inner).collect();
        if others.iter().any(|other| *other != inner(first)) {
            return Err("has parts that do not fit each other".to_owned());
        }
        match joining {
            Joining::Rows if parts.len() > 1 => {
                let rows = parts.iter().map(|part| part.shape.first().copied().unwrap_or(0));
                let rows = rows.fold(0_usize, usize::saturating_add);
                shape.splice(..shape.len().min(1), [rows]);
            }
            Joining::Rows => {}
            Joining::Slices => {
                if shape.len() < 2 || parts.iter().any(|part| part.shape != shape) {
                    return Err("has slices that do not fit each other".to_owned());
                }
                shape.insert(2, parts.len());
            }
        }
        Ok(Entry { shape, parts: parts.into_iter().map(|joined| joined.part).collect(), joining })
    }
}

/// A tensor in the files.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    files: &'a TensorFiles,
    entry: &'a Entry,
}

impl<'a> Stored<'a> {
    pub(super) fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// As it lies, if it lies in one piece, unquantized.
    pub(super) fn view(&self) -> Option<TensorView<'a>> {
        let [part] = &self.entry.parts[..] else { return None };
        let Storage::Plain(dtype) = part.storage else { return None };
        TensorView::new(dtype, self.entry.shape.clone(), self.files.bytes_of(part)).ok()
    }

    /// Rows, and elements of a row.
    pub(super) fn rows_and_width(&self) -> (usize, usize) {
        let elements: usize = self.entry.shape.iter().product();
        let rows = match self.entry.shape.len() {
            0 | 1 => 1,
            _ => self.entry.shape[0],
        };
        (rows, elements.checked_div(rows).unwrap_or(0))
    }

    /// Writes the rows from `rows.start` on to `made`.
    pub(super) fn decode(&self, rows: Range<usize>, made: &mut [f32]) {
        let (_, width) = self.rows_and_width();
        for (row, made) in rows.zip(made.chunks_exact_mut(width.max(1))) {
            vectorised(
                #[inline(always)]
                || self.decode_row(row, made),
            );
        }
    }

    #[inline(always)]
    fn decode_row(&self, row: usize, made: &mut [f32]) {
        let bytes_of = |part| self.files.bytes_of(part);
        match self.entry.joining {
            Joining::Rows if self.entry.shape.len() < 2 => self.decode_vector(made),
            Joining::Rows => decode_row(&self.entry.parts, bytes_of, row, made),
            Joining::Slices => self.decode_slices(row, made),
        }
    }

    /// A vector of parts, one after another.
    fn decode_vector(&self, made: &mut [f32]) {
        let mut rest = made;
        for part in &self.entry.parts {
            let (made, after) = rest.split_at_mut(part.width.min(rest.len()));
            part.storage.decode_row(self.files.bytes_of(part), 0, made);
            rest = after;
        }
    }

    /// A row (channels, slices, size) of slices (channels, size).
    fn decode_slices(&self, row: usize, made: &mut [f32]) {
        let slices = self.entry.parts.len().max(1);
        let channels = self.entry.shape.get(1).copied().unwrap_or(1).max(1);
        let size = (made.len() / slices / channels).max(1);
        let mut slice = vec![0.0; made.len() / slices];
        for (number, part) in self.entry.parts.iter().enumerate() {
            part.storage.decode_row(self.files.bytes_of(part), row, &mut slice);
            for (channel, from) in slice.chunks(size).enumerate() {
                let at = (channel * slices + number) * size;
                made[at..at + from.len()].copy_from_slice(from);
            }
        }
    }
}

/// Writes row `row` of those that `parts` hold one after another.
#[inline(always)]
pub(super) fn decode_row<'a>(
    parts: &'a [Part],
    bytes_of: impl Fn(&'a Part) -> &'a [u8],
    row: usize,
    made: &mut [f32],
) {
    let mut row = row;
    for part in parts {
        if row < part.rows {
            return part.storage.decode_row(bytes_of(part), row, made);
        }
        row -= part.rows;
    }
}

/// The number that `bytes` are in the format `dtype`.
fn number_in(dtype: safetensors::Dtype, bytes: &[u8]) -> Option<f64> {
    use safetensors::Dtype;
    match (dtype, bytes) {
        (Dtype::F64, _) => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
        (Dtype::F32, _) => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::F16, _) => Some(half::f16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::BF16, _) => Some(half::bf16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I64, _) => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
        (Dtype::U64, _) => Some(u64::from_le_bytes(bytes.try_into().ok()?) as f64),
        (Dtype::I32, _) => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U32, _) => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I16, _) => Some(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U16, _) => Some(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::I8, _) => Some(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        (Dtype::U8, [byte]) => Some((*byte).into()),
        _ => None,
    }
}

/// The safetensors files that hold the weights of `component`. What is chosen where
/// there was a choice is told in the log.
fn file_names(
    snapshot: &Snapshot,
    component: &str,
    stem: &str,
) -> Result<Vec<String>, CheckpointError> {
    let names = snapshot.names_in(component);
    let no_weights = |reason| CheckpointError::NoWeights {
        file: format!("{component}/{stem}.safetensors"),
        reason,
    };
    let chosen = WeightFiles::choose(stem, &names).map_err(no_weights)?;
    if let Some(variant) = &chosen.variant {
        tracing::warn!(
            component,
            variant,
            "there are no weights but of a variant, which are taken"
        );
    }
    let index = match chosen.first {
        WeightFile::Single(taken) => {
            log_choice(component, &taken, chosen.passed_over.as_deref());
            return Ok(vec![taken]);
        }
        WeightFile::Index(index) => index,
    };
    let file = format!("{component}/{index}");
    let malformed = |reason| CheckpointError::Malformed { file: file.clone(), reason };
    let shards = shards(&snapshot.text(&file)?).map_err(malformed)?;
    let missing = shards.iter().find(|shard| !names.contains(shard));
    match (missing, chosen.passed_over) {
        (Some(shard), Some(single)) => {
            tracing::warn!(component, index, shard, taken = single, "a shard is missing");
            Ok(vec![single])
        }
        (Some(shard), None) => Err(snapshot.missing(&format!("{component}/{shard}"))),
        (None, passed_over) => {
            log_choice(component, &index, passed_over.as_deref());
            Ok(shards)
        }
    }
}

fn log_choice(component: &str, taken: &str, passed_over: Option<&str>) {
    if let Some(passed_over) = passed_over {
        tracing::warn!(
            component,
            taken,
            passed_over,
            "there are two sets of weights; the one is taken that its library takes"
        );
    }
}

fn open_buffer(snapshot: &Snapshot, file: &str) -> Result<Buffer, CheckpointError> {
    let Some(path) = snapshot.path(file) else {
        return match snapshot.bytes(file)? {
            std::borrow::Cow::Borrowed(bytes) => Ok(Buffer::Embedded(bytes)),
            std::borrow::Cow::Owned(_) => Err(snapshot.missing(file)),
        };
    };
    if !path.is_file() {
        return Err(snapshot.missing(file));
    }
    map(&path)
}

/// What `read` makes of the bytes of the file at `path`.
pub(super) fn with_bytes<T>(
    path: &Path,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, CheckpointError> {
    Ok(read(map(path)?.bytes()))
}

#[expect(unsafe_code, reason = "memory-mapped weights: the one place that maps files")]
fn map(path: &Path) -> Result<Buffer, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
    let handle = std::fs::File::open(path).map_err(unreadable)?;
    // SAFETY: a checkpoint must not be changed while the program runs (weights may
    // be read again for each use): the documentation says so, downloads replace
    // files by renaming, and nothing else writes there.
    let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(unreadable)?;
    Ok(Buffer::Mapped(map))
}
